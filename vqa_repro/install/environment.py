"""An environment: in which state it is, and making it what the locks say.

FOLDER/.incomplete: being made or changed. FOLDER/.finished: done, and from what, as "key value"
lines; it stays while the environment is updated.
Using an environment never deletes it. One whose update was cut off is made again, and so is, by
the stage env only, one that is finished but does not work here: next to the old one, which is
replaced when the new one is whole.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

from vqa_repro.install import settings, swap
from vqa_repro.install.console import say
from vqa_repro.install.errors import ERRNO_CODES, ExitCode, InstallError
from vqa_repro.install.installer import Installer, canonical
from vqa_repro.install.lockfile import entries
from vqa_repro.install.options import PROJECT, STATE
from vqa_repro.install.scripts import rewrite_paths
from vqa_repro.install.session import Session, remove
from vqa_repro.install.stamp import read_stamp, write_stamp
from vqa_repro.utils.files import reason

PROBE = """
import importlib.util, json, platform, sys
found = importlib.util.find_spec("vqa_repro")
print(json.dumps([platform.python_version(), sys.prefix, found.origin if found else ""]))
"""
# The packages' folder learns where the project is, so that python -m vqa_repro.X works from
# anywhere; relative to an environment inside the project, which may be seen under several paths.
# An import line, as a path file is otherwise read in the locale's encoding.
ADD_PROJECT = """
import os, sys, sysconfig
project, text = sys.argv[1], ascii(sys.argv[1])
inside = os.path.relpath(sys.prefix, project)
if not inside.startswith(".."):
    up = os.path.join(*[".."] * len(inside.split(os.sep)))
    text = "os.path.realpath(os.path.join(sys.prefix, %s))" % ascii(up)
path = os.path.join(sysconfig.get_path("purelib"), "vqa_repro_project.pth")
with open(path, "w", encoding="ascii") as file:
    file.write("import os, sys; sys.path.append(%s)\\n" % text)
print("%d.%d.%d" % sys.version_info[:3])
"""
# The command vqa of this environment, wherever it is and from whichever link it is called.
COMMAND = """#!/bin/sh
exec "$(dirname -- "$(readlink -f -- "$0")")/python" -m vqa_repro "$@"
"""


class State(enum.Enum):
    """What is to be done about an environment."""

    ABSENT = "to be made"
    FOREIGN = "not made by bootstrap.sh"
    INCOMPLETE = "an installation was cut off"
    UNUSABLE = "finished, and does not work here"
    STALE = "finished, from other locks or by another installer"
    HALF_UPDATED = "finished, and then an update was cut off"
    READY = "up to date"


class Environment:
    """The environment in ``folder``, of what these locks name. ``make`` is the stage to type."""

    def __init__(
        self, session: Session, folder: Path, locks: list[Path], make: str = "env"
    ) -> None:
        self.session, self.folder, self.locks, self.make_stage = session, folder, locks, make
        self.difference = ""  # why it is UNUSABLE
        self.cached: State | None = None

    @property
    def python(self) -> Path:
        return self.folder / "bin/python"

    @property
    def fresh(self) -> Path:
        """Where one is made that is to replace it."""
        return swap.sibling(self.folder, ".new")

    @property
    def only_looking(self) -> bool:
        """Whether this call changes nothing: what needs a repair is then taken for repaired."""
        return self.session.options.dry_run or self.session.options.verb == "check"

    def command(self, *words: str) -> str:
        return self.session.options.command(self.make_stage, *words)

    def stamp(self) -> dict[str, str]:
        return read_stamp(self.folder)

    def digest(self) -> str:
        total = hashlib.sha256()
        for lock in self.locks:
            total.update(lock.read_bytes() if lock.is_file() else b"")
        return total.hexdigest()

    # ------------------------------------------------------------ its state

    def state(self) -> State:
        if self.cached is None:
            self.cached = self.look()
        return self.cached

    def look(self) -> State:
        folder = self.folder
        cut_off = (folder / ".incomplete").exists()
        if not (folder / ".finished").exists():
            if cut_off:
                return State.INCOMPLETE
            if folder.is_dir():
                return State.FOREIGN if any(folder.iterdir()) else State.ABSENT
            return State.FOREIGN if folder.exists() else State.ABSENT
        self.difference = self.what_differs()
        if self.difference:
            return State.UNUSABLE
        if cut_off:
            return State.HALF_UPDATED
        stamp, wanted = self.stamp(), self.session.options.installer
        same = self.locks[0].is_file() and stamp.get("lock") == self.digest()
        if not same or wanted not in ("auto", stamp.get("installer")):
            return State.STALE
        if self.session.options.verb != "env":
            return State.READY  # other stages use what is there: the doctor reports changes
        old = Path(stamp["venv"])
        # Moved; another stage may see a shared disk under another path.
        if not old.exists() and not self.only_looking:
            with contextlib.suppress(OSError):
                rewrite_paths(folder, old)
                write_stamp(folder, {**stamp, "venv": folder})
        changed = self.changed_package(stamp.get("python", ""))
        if changed:
            say(f"env: {changed}, as if by pip; it is replaced")
        return State.STALE if changed else State.READY

    def changed_package(self, python: str) -> str:
        """Return which package is not the one that the locks name for this Python, "" for none."""
        found: dict[str, str] = {}
        for info in self.folder.glob("lib/python3*/site-packages/*.dist-info"):
            name, _, version = info.name.removesuffix(".dist-info").rpartition("-")
            found[canonical(name)] = version
        for lock in self.locks:
            for entry in entries(lock.read_text(encoding="utf-8"), python):
                version = found.get(canonical(entry.name), "missing")
                if version != entry.version:
                    return f"{entry.name} is {version}, not {entry.version}"
        return ""

    def what_differs(self) -> str:
        """Return why the finished environment cannot be used here, "" if it can."""
        stamp, base = self.stamp(), self.session.base
        if not (stamp.get("base") and stamp.get("venv")):
            return f"{self.folder / '.finished'} is damaged or cannot be read"
        made_of = stamp["base"]
        if self.session.options.python and not (base and same_file(base, made_of)):
            wanted = base or self.session.options.python
            return f"it was made of {made_of}, and {wanted} is wanted"
        command = [str(self.python), "-I", "-c", PROBE]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60
            )
            version, prefix, origin = json.loads(done.stdout)
        except (OSError, ValueError, subprocess.TimeoutExpired):
            if not os.path.exists(made_of):
                return f"it was made of {made_of}, which is not here: load that module or mount it"
            return f"its Python, {self.python}, does not run here"
        here = same_file(stamp["venv"], self.folder)
        moved = f"it was made as {stamp['venv']}, and is {self.folder} here"
        moved = "its folder of packages is damaged" if here else moved
        if not same_file(prefix, self.folder):
            return f"it is damaged: its Python belongs to {prefix}" if here else moved
        if version.split(".")[:2] != stamp.get("python", "").split(".")[:2]:
            return f"it was made of Python {stamp.get('python')}, and its Python is {version} here"
        if not same_file(origin, PROJECT / "vqa_repro/__init__.py"):
            other = stamp.get("project", "")
            if os.path.isdir(other) and not same_file(other, PROJECT):
                return f"it belongs to the project in {other}, and this is {PROJECT}"
            if self.only_looking:
                return ""
            try:
                self.add_project(self.folder)
            except InstallError:
                return moved
        return ""

    # ------------------------------------------------------------ making it

    def recover(self) -> bool:
        """Finish what a run that was killed while it replaced the environment left undone."""
        if self.only_looking or not swap.was_cut_off(self.folder):
            return False
        with self.session.locked():
            swap.finish(self.folder)
        return True

    def make(self) -> None:
        """Make it, or bring it up to date; under the lock."""
        session = self.session
        with session.locked():
            swap.finish(self.folder)
            self.cached = None
            if self.state() is State.READY:
                say("  the other process has made it")
                return
            session.open_bundle()
            installer = Installer(session, self)
            installer.choose()
            if self.state() in (State.UNUSABLE, State.HALF_UPDATED):
                self.make_next_to_it(installer)
            else:
                self.fill(installer, self.folder)
            # tmp-python-* stays: a bootstrap.sh without the lock is at work there.
            remove(STATE / "tmp", *STATE.glob("tmp-[0-9]*"), STATE / "big")
            session.fresh, self.cached = True, State.READY

    def make_next_to_it(self, installer: Installer) -> None:
        """Make a new one; the old one stays as it is until then: trainings may run from it."""
        if self.state() is State.HALF_UPDATED:
            say("  an update was interrupted: the old one stays until a new one is whole")
        installer.cut_off = self.state() is State.HALF_UPDATED or self.fresh.exists()
        remove(self.fresh)
        self.fill(installer, self.fresh)
        swap.replace(self.folder)

    def fill(self, installer: Installer, folder: Path) -> None:
        self.prepare(installer, folder)
        installer.install(folder)
        self.finish(installer, folder)

    def prepare(self, installer: Installer, folder: Path) -> None:
        """Have a folder with a Python in it, empty otherwise unless it is only to be updated."""
        mark = folder / ".incomplete"
        if folder == self.folder and self.state() is State.FOREIGN:
            raise InstallError(
                ExitCode.BAD_INPUT,
                f"{folder} is in the way",
                "it was not made by bootstrap.sh, so it is left alone",
                f"{self.without_venv()} --venv OTHER_FOLDER, or remove it yourself",
            )
        try:
            self.check_link()
            folder.mkdir(parents=True, exist_ok=True)
            if mark.exists():
                # A package that was half linked counts as installed; downloads are in the cache.
                installer.cut_off = True
                empty(folder, mark)
            mark.touch()
        except OSError as error:
            raise self.cannot_write(error) from None
        if not (folder / "bin/python").exists():
            installer.make_venv(folder)

    def check_link(self) -> None:
        """Raise InstallError for a link to nowhere in the folder's place."""
        if self.folder.is_symlink() and not self.folder.exists():
            target = os.readlink(self.folder)
            raise InstallError(
                ExitCode.NO_PERMISSION,
                f"{self.folder} is a link to {target}, which is not there",
                "a scratch disk that was purged, or is not mounted here?",
                f"mkdir -p {shlex.quote(target)}, or rm {shlex.quote(str(self.folder))}; "
                f"then {self.command()}",
            )

    def cannot_write(self, error: OSError) -> InstallError:
        return InstallError(
            ERRNO_CODES.get(error.errno or 0, ExitCode.NO_PERMISSION),
            f"cannot make {self.folder}",
            f"{error.filename or self.folder}: {reason(error, settings.existing(self.folder))}",
            f"{self.without_venv()} --venv DIR",
        )

    def without_venv(self) -> str:
        return self.session.options.command(self.make_stage, without="--venv")

    def finish(self, installer: Installer, folder: Path) -> None:
        version = self.add_project(folder)
        values = {
            "lock": self.digest(),
            "python": version,
            "base": self.session.base,
            "venv": str(self.folder),
            "project": str(PROJECT),
            "torch": self.session.build or "cu130",
            "installer": "uv" if installer.uv else "pip",
        }
        try:
            if self.make_stage == "env":
                (folder / "bin/vqa").write_text(COMMAND, encoding="ascii")
                (folder / "bin/vqa").chmod(0o755)
            write_stamp(folder, values)
            (folder / ".incomplete").unlink()
        except OSError as error:
            raise self.cannot_write(error) from None

    def add_project(self, folder: Path) -> str:
        """Let the environment find the project; return its Python's version."""
        command = [str(folder / "bin/python"), "-I", "-c", ADD_PROJECT, str(PROJECT)]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
        )
        if done.returncode:
            why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise InstallError(
                ExitCode.NO_PERMISSION, f"{folder} cannot be finished", why, self.command()
            )
        return done.stdout.strip()


def empty(folder: Path, kept: Path) -> None:
    """Remove all that is in ``folder`` but ``kept``."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path != kept:
            path.unlink()


def same_file(first: str | Path, second: str | Path) -> bool:
    try:
        return os.path.samefile(first, second)
    except OSError:
        return False
