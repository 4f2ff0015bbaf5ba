"""What one call of ./bootstrap.sh knows, and the commands that it runs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vqa_repro.install import locks, processes, settings
from vqa_repro.install.console import Log, say
from vqa_repro.install.driver import driver_facts
from vqa_repro.install.errors import ERRNO_CODES, ExitCode, InstallError
from vqa_repro.install.lockfile import lock_of
from vqa_repro.install.options import PROJECT, STATE, Options, named_by_bundle
from vqa_repro.install.stamp import read_stamp
from vqa_repro.install.torch_builds import advise
from vqa_repro.utils.files import reason

CHILD = STATE / "child"  # tells a later run what a killed one has left running
TORCH_PAGES = "https://download.pytorch.org/whl"


@dataclass
class Session:
    """One call. ``base`` is the Python that environments are made of, "" if none is fit."""

    options: Options
    base: str
    version: str
    rejected: list[str]
    used: list[str] = field(default_factory=list)  # names of variables
    set_aside: list[str] = field(default_factory=list)
    build: str = ""  # of torch, once it is settled
    conf: dict[str, str] | None = None
    log: Log = field(default_factory=lambda: Log(STATE / "log"))
    checked: bool = False
    fresh: bool = False  # the environment was made by this call
    opened: bool = False  # what the bundle offers is in STATE/bundle
    system_certificates: bool = False
    network: str = ""  # why there is none, for train to record
    without: list[str] = field(default_factory=list)  # what training does without

    @property
    def python(self) -> str:
        """3.X, of the base."""
        return ".".join(self.version.split(".")[:2])

    @property
    def lock(self) -> Path:
        return PROJECT / lock_of(self.build or "cu130")

    def need_base(self) -> str:
        if not self.base:
            why = "; ".join(self.rejected) or "none was found"
            raise InstallError(
                ExitCode.NO_PYTHON, "no usable Python", why, self.options.command("check")
            )
        return self.base

    def pip_conf(self) -> dict[str, str]:
        if self.conf is None:
            self.conf = settings.pip_conf(os.environ)
        return self.conf

    def package_environment(self, venv: Path) -> dict[str, str]:
        options = self.options
        pages: tuple[str, ...] = ()
        if self.build == "cpu" and not options.offline:
            index = options.torch_index or f"{TORCH_PAGES}/{self.build}"
            pages = (f"{index}/torch/", f"{index}/torchvision/")
        result = settings.package_environment(
            dict(os.environ),
            self.pip_conf(),
            STATE,
            venv,
            offline=options.offline,
            bundle=options.bundle is not None,
            pages=pages,
            system_certificates=self.system_certificates,
        )
        return result

    def logged(self, what: str, command: list[str], venv: Path) -> bool:
        """Run one of the installer's programs; return whether it ended well."""
        environ = self.package_environment(venv)
        with contextlib.suppress(OSError):
            os.makedirs(environ["TMPDIR"], exist_ok=True)
        return processes.logged(what, command, environ, PROJECT, CHILD, self.log) == 0

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Be alone at work in this project, on all machines that share it."""
        try:
            STATE.mkdir(parents=True, exist_ok=True)
            text = locks.acquire(STATE / "lock", self.options.lock_wait, lambda t: say(f"  {t}"))
        except locks.Busy as busy:
            raise InstallError(
                ExitCode.LOCK_WAIT,
                "another bootstrap is at work here",
                busy.owner,
                f"wait for it; if it is no more: rm '{STATE / 'lock'}'",
            ) from None
        except OSError as error:
            raise InstallError(
                ERRNO_CODES.get(error.errno or 0, ExitCode.NO_PERMISSION),
                f"cannot write into {PROJECT}",
                reason(error, settings.existing(STATE)),
                "fix that, or copy the project to a folder of yours",
            ) from None
        try:
            processes.end_orphan(CHILD)
            yield
        finally:
            with contextlib.suppress(OSError):
                locks.release(STATE / "lock", text)

    # ------------------------------------------------------------ bundles

    def bundle_command(self, *arguments: str) -> list[str]:
        return [self.need_base(), *("-E", "-s", "-B", "-m", "vqa_repro.install.bundle"), *arguments]

    def open_bundle(self) -> None:
        """Verify all of the bundle, once; under the lock."""
        bundle = self.options.bundle
        if bundle is None or (self.opened and (STATE / "bundle").is_dir()):
            return
        say(f"  bundle: {bundle}")
        command = self.bundle_command("open", str(bundle), "--into", str(STATE / "bundle"))
        build = self.build or named_by_bundle(bundle, "torch") or "cu130"
        command += ["--python", self.python, "--torch", build]
        code = processes.attached(command, dict(os.environ), PROJECT, CHILD)
        if code:
            next_ = f"fix that, then {self.options.again()}"
            raise InstallError(code, "nothing is taken from the bundle", "see above", next_)
        self.opened = True

    def close_bundle(self) -> None:
        if self.opened:
            with self.locked():
                remove(STATE / "bundle")
            self.opened = False


def known_build(options: Options) -> str:
    """Return the requested build of torch, or else the environment's; "" without one."""
    if options.torch not in ("", "auto"):
        return options.torch
    if options.verb == "bundle":
        return "cu130"  # not for this machine's cards
    stamp = read_stamp(options.venv)
    if not stamp:
        return ""
    present = stamp.get("torch", "cu130")  # which was the only one at first
    return chosen_again(options, present) if options.torch == "auto" else present


def chosen_again(options: Options, present: str) -> str:
    """Return the build for this machine's cards, "" where none runs them.

    Where no card decides, as on a login node, an environment keeps its CUDA build.
    """
    offered = named_by_bundle(options.bundle, "torch")
    advice = advise(driver_facts(4), "auto", offered)
    if advice.problem:
        return ""  # the check says why
    return advice.build or (present if present != "cpu" else offered or "cu130")


def remove(*folders: Path) -> None:
    """Remove these folders; what cannot be removed is mentioned and stays."""
    import shutil

    for folder in folders:
        if folder.exists():
            shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():
            say(f"  note: {folder} cannot be removed, perhaps another user's; left as it is")
