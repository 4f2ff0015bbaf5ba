"""uv, or pip where it cannot be had; and what they do to an environment."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import time
import zipfile
from pathlib import Path
from typing import Protocol

from vqa_repro.install import settings
from vqa_repro.install.console import say
from vqa_repro.install.errors import ExitCode, InstallError
from vqa_repro.install.options import STATE
from vqa_repro.install.processes import free_bytes
from vqa_repro.install.session import Session, remove

SPACE_FOR_UV = 4000 << 20  # bytes, below which uv needs the space of half a download more
TRIES = 3
NETWORK = re.compile(
    "connect|timed? ?out|request|network|resolve|certificate|http|reset", re.IGNORECASE
)
LASTING = re.compile(
    "hash mismatch|do not match|no space left|quota|permission denied|read-only"
    "|too many open files|memory allocation|cannot allocate memory",
    re.IGNORECASE,
)
# What uv and pip print where a package is not to be had without the network.
MISSING = re.compile(
    "no solution found|not found in|network connectivity is disabled|no matching distribution"
    "|could not find a version|could not be fetched",
    re.IGNORECASE,
)
# pip of the base Python, or the wheel of it that its ensurepip carries.
BASE_PIP = """
import glob, os, runpy, sys
sys.path[:] = [folder for folder in sys.path if folder]
try:
    import pip
except ImportError:
    import ensurepip
    folder = getattr(ensurepip, "_WHEEL_PKG_DIR", None) or os.path.dirname(ensurepip.__file__)
    wheels = glob.glob(os.path.join(folder, "**", "pip-*.whl"), recursive=True)
    sys.path.insert(0, wheels[0])
sys.argv[0] = "pip"
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""


class Target(Protocol):
    """What an installer needs of the environment that it fills."""

    folder: Path
    locks: list[Path]
    make_stage: str

    def command(self, *words: str) -> str: ...

    def without_venv(self) -> str: ...


class Installer:
    """Installs what the locks of an environment name. ``uv`` is its program, "" for pip."""

    def __init__(self, session: Session, environment: Target) -> None:
        self.session, self.environment = session, environment
        self.uv = ""
        self.cut_off = False  # an installation was, by a kill or by the network

    # ------------------------------------------------------------ which one

    def choose(self) -> None:
        """Find uv, or settle for pip, and say why."""
        session = self.session
        environ = session.package_environment(self.environment.folder)
        settings.refuse_unreadable_addresses(environ)
        if session.options.installer == "pip":
            say("  installer: pip, as requested")
            return
        pinned = re.search(r"(?m)^uv==(\S+)", session.lock.read_text(encoding="utf-8"))
        version = pinned[1] if pinned else ""
        own = STATE / f"uv-{version}"
        if version and answers(own / "uv"):
            self.uv = str(own / "uv")
            say(f"  installer: uv {version}, as {session.lock.name} names it, kept from before")
            return
        if session.options.dry_run:
            say(f"  installer: uv {version} would be fetched, or else what is at hand be used")
            return
        why = self.fetch(version, own) if version else f"{session.lock.name} names no uv"
        if not why:
            self.uv = str(own / "uv")
            say(f"  installer: uv {version}, as {session.lock.name} names it, fetched just now")
            return
        self.take_another(why)

    def take_another(self, why: str) -> None:
        found = shutil.which("uv")
        answer = answers(found) if found else ""
        if found and answer:
            self.uv = found
            say(f"  installer: {answer} found at {found}, as {why}")
            return
        command = self.session.options.command("env", without="--installer")
        if self.session.options.installer == "uv":
            raise InstallError(ExitCode.PACKAGES, "no uv", why, f"{command} --installer pip")
        if settings.socks_proxy() and not self.session.options.offline:
            raise InstallError(
                ExitCode.PACKAGES,
                "no way to the packages",
                why,
                "put uv on PATH, which speaks SOCKS; or name an HTTP proxy in https_proxy; "
                "or use --bundle DIR",
            )
        say(f"  installer: pip, as {why}")

    def fetch(self, version: str, folder: Path) -> str:
        """Put the uv that the lock names, verified by its hash, into ``folder``; return why not."""
        session, target = self.session, settings.scratch(STATE) / "fetch"
        proxy = settings.socks_proxy()
        if proxy and not session.options.offline:
            return f"{proxy} is a SOCKS proxy, which pip of {session.base} cannot use"
        session.log.begin()
        try:
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True, exist_ok=True)
            if session.options.bundle:
                for wheel in (STATE / "bundle/wheels").glob(f"uv-{version}-*.whl"):
                    shutil.copy(wheel, target)
            elif not self.download(target):
                return f"uv {version} could not be fetched: {last_line(session.log.text)}"
            with zipfile.ZipFile(next(target.glob("uv-*.whl"))) as archive:
                archive.extractall(target)
            programs = target / f"uv-{version}.data/scripts"
            (programs / "uv").chmod(0o755)
            if not answers(programs / "uv"):
                raise OSError("what was fetched does not run")
            shutil.rmtree(folder, ignore_errors=True)
            os.rename(programs, folder)
            shutil.rmtree(target, ignore_errors=True)
        except (OSError, StopIteration, zipfile.BadZipFile) as error:
            session.log.write(f"{error}\n")
            why = str(error) or "no wheel of it for this machine"
            return f"uv {version} could not be fetched: {why}"
        return ""

    def download(self, target: Path) -> bool:
        session = self.session
        text = session.lock.read_text(encoding="utf-8")
        entry = re.search(r"(?m)^uv==(.*\\\n)*.*\n?", text)
        (target / "uv.txt").write_text(entry[0] if entry else "", encoding="utf-8")
        command = [session.need_base(), "-E", "-c", BASE_PIP, "download", "--quiet", "--no-deps"]
        command += ["--require-hashes", "--only-binary", ":all:", "--retries", "2"]
        command += ["--dest", str(target), "-r", str(target / "uv.txt")]
        return session.logged("fetching uv", command, self.environment.folder)

    # ------------------------------------------------------------ what it does

    def make_venv(self, folder: Path) -> None:
        base = self.session.need_base()
        prompt = self.environment.folder.name  # not that of the folder's place until it is whole
        command = [base, "-I", "-m", "venv", "--prompt", prompt, str(folder)]
        if self.uv:
            command = [self.uv, "venv", "--quiet", "--no-project", "--allow-existing"]
            command += ["--python", base, str(folder)]
        if not self.session.logged("making the environment", command, folder):
            raise self.failure("the environment could not be made")

    def install(self, folder: Path) -> None:
        """Install what the locks name, wheels only and hashes required, and nothing else."""
        python, locks = str(folder / "bin/python"), list(map(str, self.environment.locks))
        command = [python, "-I", "-m", "pip", "install", "--no-deps"]
        command += [f"--requirement={lock}" for lock in locks]
        if self.uv:
            command = [self.uv, "pip", "sync", "--python", python, *locks]
        command += ["--require-hashes", "--only-binary", ":all:"]
        offline = self.session.options.offline
        for number in range(1, TRIES + 1):
            if self.cut_off and self.uv and not offline:
                self.install_big_wheels(folder)
            if self.session.logged("installing the packages", command, folder):
                break
            text = self.session.log.text
            if number == TRIES or offline or not NETWORK.search(text) or LASTING.search(text):
                raise self.failure("the packages could not be installed")
            seconds = 5 * number
            say(f"  the network failed; finished downloads are kept; trying again in {seconds} s")
            self.cut_off = True
            # Some networks sign with a certificate that only the system knows.
            self.session.system_certificates |= "certificate" in text.lower()
            time.sleep(seconds)
        if not self.uv:
            self.remove_extras(folder)

    def install_big_wheels(self, folder: Path) -> None:
        """Fetch them by a downloader that resumes; what fails is left to uv."""
        session, big = self.session, STATE / "big"
        command = [session.base, "-E", "-s", "-B", "-m", "vqa_repro.install.big_wheels", str(big)]
        command += ["--python", session.python, "--uv", self.uv, "--venv", str(folder)]
        command += map(str, self.environment.locks)
        done = session.logged("fetching the big packages", command, folder)
        if not done and free_bytes(STATE) < SPACE_FOR_UV:
            remove(big)
        lock = big / "wanted.lock"
        if not done or not lock.exists() or not lock.stat().st_size:
            return
        command = [self.uv, "pip", "install", "--python", str(folder / "bin/python"), "--no-deps"]
        command += ["--no-index", "--find-links", str(big / "wheels"), "--require-hashes"]
        session.logged(
            "installing the big packages", [*command, "--requirement", str(lock)], folder
        )

    def remove_extras(self, folder: Path) -> None:
        """Remove what no lock names, as uv pip sync does."""
        locked = {"pip"}
        for lock in self.environment.locks:
            for line in lock.read_text(encoding="utf-8").splitlines():
                locked |= {canonical(line.partition("==")[0])} if "==" in line else set()
        packages = map(str, folder.glob("lib/python3*/site-packages"))
        names = {
            each.metadata["Name"] for each in importlib.metadata.distributions(path=[*packages])
        }
        extras = sorted(name for name in names if canonical(name) not in locked)
        if not extras:
            return
        command = [str(folder / "bin/python"), "-I", "-m", "pip", "uninstall", "-y", *extras]
        if not self.session.logged(f"removing {' '.join(extras)}", command, folder):
            raise self.failure("superfluous packages could not be removed")

    # ------------------------------------------------------------ why it failed

    def failure(self, what: str) -> InstallError:
        """Return the error for what the last command's output says."""
        text, options = self.session.log.text.lower(), self.session.options
        make = self.environment.command()
        folder = self.environment.folder
        if not STATE.is_dir():
            why = f"{STATE} was removed while it was in use"
            return InstallError(ExitCode.PACKAGES, what, why, make)
        if not folder.is_dir():
            why = f"{folder} was removed while it was being filled"
            return InstallError(ExitCode.PACKAGES, what, why, make)
        if re.search("hash mismatch|do not match the hashes", text):
            why = "a downloaded file is not the one that the *.lock files name"
            return InstallError(
                ExitCode.HASH_MISMATCH,
                what,
                why,
                f"try another index or mirror, then {make}; if it stays, the lock is out of date: "
                "git pull",
            )
        if "too many open files" in text:
            why = "too many open files are not allowed here"
            return InstallError(ExitCode.PACKAGES, what, why, f"ulimit -n 4096; then {make}")
        if re.search("memory allocation|cannot allocate memory|out of memory", text):
            why = "there is too little memory, or it is limited"
            return InstallError(ExitCode.PACKAGES, what, why, f"ulimit -v unlimited; then {make}")
        killed = re.search(r"killed by signal .*", text)
        if killed:
            why = f"its program was {killed[0]}: too little memory, or a limit?"
            next_ = f"raise that (ulimit -a shows the limits), then {make}"
            return InstallError(ExitCode.PACKAGES, what, why, next_)
        if re.search("no space left|quota exceeded", text) or is_full(folder):
            why = "no space left on the disk (df -h, df -i)"
            next_ = f"free some space, then {make}; or --venv DIR, UV_CACHE_DIR=DIR"
            return InstallError(ExitCode.DISK_FULL, what, why, next_)
        if re.search("permission denied|read-only file system", text):
            again = self.environment.without_venv()
            next_ = f"other folders: UV_CACHE_DIR=DIR {again} --venv DIR"
            return InstallError(ExitCode.NO_PERMISSION, what, "no permission to write", next_)
        if options.bundle:
            return InstallError(ExitCode.PACKAGES, what, "see the last lines of the log", make)
        if options.offline and MISSING.search(text):
            why = "not all packages are here, and --offline forbids to fetch them"
            online = options.command(self.environment.make_stage, without="--offline")
            next_ = f"{online}, without --offline; or PIP_FIND_LINKS=FOLDER with the wheels"
            return InstallError(ExitCode.PACKAGES, what, why, next_)
        why = "see the last lines of the log"
        return InstallError(ExitCode.PACKAGES, what, why, f"{make} (finished downloads are kept)")


def answers(uv: str | Path) -> str:
    """Return uv's version as it says it; "" for one that is missing, damaged or does not run."""
    try:
        done = subprocess.run([uv, "--version"], capture_output=True, text=True, errors="replace")
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def is_full(folder: Path) -> bool:
    try:
        disk = os.statvfs(settings.existing(folder))
    except OSError:
        return False
    no_inodes = bool(disk.f_files) and disk.f_favail < 10
    return disk.f_bavail * disk.f_frsize < 100 << 20 or no_inodes


def canonical(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower().strip()


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1]
