"""Is this machine fit? All problems at once, and nothing is changed."""

from __future__ import annotations

import math
import os
import platform
import re
import resource
import socket
import urllib.parse
import urllib.request
from pathlib import Path

from vqa_repro.install import checkpoints, settings
from vqa_repro.install.console import also, row
from vqa_repro.install.driver import driver_facts
from vqa_repro.install.environment import Environment, State
from vqa_repro.install.errors import ExitCode, InstallError
from vqa_repro.install.http_client import QUOTING, SourceFailed, is_socks, proxy_handler
from vqa_repro.install.options import STATE, named_by_bundle
from vqa_repro.install.redact import shown
from vqa_repro.install.session import Session
from vqa_repro.install.torch_builds import advise, how_to_have
from vqa_repro.utils.subprocesses import run_limited

# Measured: 6 GB of packages in the cache; linked into the environment where both are on one disk,
# copied (6 GB again) where not. pip unpacks what it downloads, so holds all of it twice.
ENVIRONMENT_GB, CACHE_GB, PIP_GB = 7, 6, 12
ENVIRONMENT_FILES = 45_000  # measured
OPEN_FILES = 256
ADDRESS_SPACE = 8 << 30  # bytes; torch alone maps several GB
PORTS = {"http": 80, "https": 443}
SOCKS_PORT = 1080


class Checks:
    """The rows of the table; ``code`` is the exit code of the first problem, 0 without one."""

    def __init__(self, session: Session, environment: Environment) -> None:
        self.session, self.environment = session, environment
        self.code = 0

    def problem(self, code: int, name: str, text: str) -> None:
        row(name, "problem", text)
        self.code = self.code or code

    def all(self) -> int:
        self.system()
        self.python()
        self.limits()
        self.disk()
        if self.session.base:
            self.gpu()
            self.network()
        try:
            checkpoints.require_absolute_dir()
        except InstallError as error:
            self.problem(error.code, "checkpoint", str(error))
        if self.session.used or self.session.conf:
            names = " ".join(self.session.used)
            conf = " ".join(self.session.pip_conf())
            row("settings", "ok", f"used: {names}{' pip.conf: ' + conf if conf else ''}")
        if self.session.set_aside:
            row("settings", "note", f"set aside: {' '.join(self.session.set_aside)}")
        return self.code

    def system(self) -> None:
        name, machine = (answer(["uname", option]) for option in ("-s", "-m"))
        system = f"{name} {machine}"
        if re.match("MINGW|MSYS|CYGWIN", name):
            return self.problem(ExitCode.SYSTEM, "system", "Windows: run this inside WSL 2")
        if system == "Darwin arm64":
            return row("system", "ok", "macOS arm64")
        if system not in ("Linux x86_64", "Linux aarch64"):
            text = f"{system}: PyTorch is made for Linux x86_64/aarch64 and macOS arm64"
            return self.problem(ExitCode.SYSTEM, "system", text)
        libc = answer(["getconf", "GNU_LIBC_VERSION"]) or "no glibc (musl?)"
        version = re.match(r"glibc 2\.(\d+)", libc)
        if version and int(version[1]) >= 28:
            return row("system", "ok", f"{system}, {libc}")
        self.problem(
            ExitCode.SYSTEM, "system", f"{system}, {libc}: PyTorch needs glibc 2.28 or newer"
        )
        also(
            "Ubuntu 20.04, Debian 10, RHEL 8 and newer have it; CentOS 7 never will: "
            "use a container"
        )

    def python(self) -> None:
        session, options = self.session, self.session.options
        if session.base:
            return row("python", "ok", f"{session.version}, {session.base}")
        if options.bundle and options.python == named_by_bundle(options.bundle, "python"):
            here = platform.python_version()
            text = f"the bundle is for Python {options.python}, but this machine has {here}"
            self.problem(ExitCode.BUNDLE, "python", text)
            version = ".".join(here.split(".")[:2])
            also(f"on the other machine: ./bootstrap.sh bundle OUT --python {version}")
            also("or --with-python, for a machine with any Python or none")
        else:
            text = "no suitable Python; install Python 3.10 to 3.15, or name one: --python PATH"
            self.problem(ExitCode.NO_PYTHON, "python", text)
        for why in session.rejected:
            also(why)
        if not session.rejected and options.python:
            also(f"no python{options.python} on PATH or in the usual folders")
        also("without root: --python managed fetches one")

    def limits(self) -> None:
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        memory, _ = resource.getrlimit(resource.RLIMIT_AS)
        if 0 <= files < OPEN_FILES:
            row("limits", "note", f"at most {files} open files; raise that: ulimit -n 4096")
        if 0 <= memory < ADDRESS_SPACE:
            size = f"{memory / 1e9:.1f} GB"
            row(
                "limits",
                "note",
                f"at most {size} of virtual memory; raise that: ulimit -v unlimited",
            )

    # ------------------------------------------------------------ disks

    def disk(self) -> None:
        venv, cache = self.environment.folder, settings.cache_dir(os.environ, STATE)
        need = 0 if self.is_ready() else ENVIRONMENT_GB
        if self.session.options.installer == "pip":
            need, cache = PIP_GB, venv
        try:
            self.environment.check_link()
        except InstallError as error:
            self.problem(error.code, "write", error.what)
            return also(error.next)
        if not settings.same_disk(cache, venv):
            self.disk_space(CACHE_GB, cache, "the installer's cache")
        parts = self.parts_gb()
        what = "the environment"
        if parts and settings.same_disk(STATE, venv):
            need, what = need + parts, f"{what}, with {parts} GB for joining the bundle's parts,"
        elif parts:
            self.disk_space(parts, STATE, "joining the bundle's parts")
        self.disk_space(need, venv, what)
        self.inodes(venv)
        for folder in (venv, STATE):
            self.write_access(folder)
            if os.statvfs(settings.existing(folder)).f_flag & getattr(os, "ST_NOEXEC", 0):
                text = f"{folder} is on a disk mounted noexec, which runs no programs"
                text += "; try --venv DIR, or another copy"
                self.problem(ExitCode.NO_PERMISSION, "exec", text)

    def write_access(self, folder: Path) -> None:
        if settings.is_writable(folder):
            return
        move = "another copy" if folder == STATE else "--venv DIR, or another copy"
        self.problem(ExitCode.NO_PERMISSION, "write", f"not allowed in {folder}; try {move}")
        if folder.exists() and folder.stat().st_uid != os.getuid():
            also(f"it is another user's; if sudo made it: sudo chown -R $USER {folder}")

    def inodes(self, folder: Path) -> None:
        """Is there space for so many files? A quota may limit their number alone."""
        disk = os.statvfs(settings.existing(folder))
        if not disk.f_files or disk.f_favail >= ENVIRONMENT_FILES or self.is_ready():
            return
        text = f"{disk.f_favail:,} more files are allowed on the disk of {folder} (df -i), "
        text += f"the environment has about {ENVIRONMENT_FILES:,}"
        if self.environment.state() is State.ABSENT:
            return self.problem(ExitCode.DISK_FULL, "disk", f"{text} (move it with --venv DIR)")
        row("disk", "note", f"{text}, less what an earlier run has left there")

    def parts_gb(self) -> int:
        """Return the size of all files that the bundle holds in parts, in GB; 0 without any."""
        bundle = self.session.options.bundle
        if bundle is None or self.is_ready():
            return 0
        parts = bundle.glob("*/**/*.[0-9][0-9][0-9]")
        return math.ceil(sum(path.stat().st_size for path in parts if path.is_file()) / 1e9)

    def is_ready(self) -> bool:
        return self.environment.state() is State.READY

    def disk_space(self, need: int, folder: Path, what: str) -> None:
        fields = answer(["df", "-Pk", str(settings.existing(folder))]).splitlines()[-1:]
        words = fields[0].split(None, 5) if fields else []
        if len(words) < 6 or not words[3].isdigit():
            return row("disk", "note", f"df gives no answer for {folder}; {what} needs {need} GB")
        free = int(words[3]) >> 20
        text = f"{free} GB free on {words[5]}, {what} needs about {need} GB"
        if self.is_ready():
            row("disk", "ok", f"{free} GB free on {words[5]}; the environment is there")
        elif free >= need:
            row("disk", "ok", text)
        elif self.environment.state() is State.INCOMPLETE or self.environment.fresh.exists():
            # Part of it is there already.
            row("disk", "note", f"{text}, less what an earlier run has left there")
        else:
            self.problem(
                ExitCode.DISK_FULL, "disk", f"{text} (move it with --venv DIR, UV_CACHE_DIR=DIR)"
            )

    # ------------------------------------------------------------ cards

    def gpu(self) -> None:
        """Look at the driver and its cards, and settle on the build of torch."""
        session = self.session
        offered = named_by_bundle(session.options.bundle, "torch")
        advice = advise(driver_facts(4), session.build or "auto", offered)
        for state, text in advice.rows:
            row("gpu", state, text)
        if advice.problem:
            return self.problem(ExitCode.NO_TORCH_BUILD, "torch", advice.problem)
        session.build = advice.build or offered or "cu130"
        self.environment.locks[0] = session.lock
        if session.lock.is_file():
            return row("torch", "ok", f"the build {session.build}, as {session.lock.name} names it")
        text = f"the build {session.build} is needed, but {session.lock.name} is missing"
        self.problem(ExitCode.NO_TORCH_BUILD, "torch", text)
        also(how_to_have(session.build))
        also("until then, on the CPU: export CUDA_VISIBLE_DEVICES=''")

    # ------------------------------------------------------------ network

    def network(self) -> None:
        options = self.session.options
        if options.offline:
            text = f"not used ({'--bundle' if options.bundle else '--offline'})"
            self.session.network = text
            return row("network", "note", text)
        environ = self.session.package_environment(self.environment.folder)
        url = environ.get("UV_DEFAULT_INDEX") or environ.get("UV_INDEX_URL")
        url = url or environ.get("PIP_INDEX_URL") or settings.default_index()
        url = url.partition("=")[2] if re.match(r"\w+=", url) else url
        if why := index_problem(url):
            return self.problem(ExitCode.BAD_INPUT, "network", f"{why}: {shown(url)}")
        reached, text = reach(url)
        row("network", "ok" if reached else "note", text)
        self.session.network = "" if reached else text


def index_problem(url: str) -> str:
    """Return why neither pip nor uv can use this as their index, "" if they can."""
    if not settings.is_readable(url):
        return f"the index's address cannot be read; {QUOTING}"
    parts = urllib.parse.urlsplit(url)
    if parts.scheme in PORTS:
        return "" if parts.hostname else "the index's address names no host"
    folder = urllib.request.url2pathname(parts.path) if parts.scheme == "file" else url
    if not url or os.path.isdir(folder):
        return ""
    return "the index is neither a web address nor a folder"


def reach(url: str) -> tuple[bool, str]:
    """Return whether something answers at the package index, and what there is to say."""
    if not url:
        return True, "the default index, which was not tried"
    parts = urllib.parse.urlsplit(url)
    host, port = parts.hostname, parts.port or PORTS.get(parts.scheme)
    if parts.scheme not in PORTS:
        return True, f"not needed: {shown(url)}"
    proxies = urllib.request.getproxies()
    proxy = (proxies.get(parts.scheme) or proxies.get("all") or "").strip()
    if proxy and host and not urllib.request.proxy_bypass(host):
        try:
            if not is_socks(proxy):
                proxy_handler(url)
            at = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
            host, port = at.hostname, at.port or PORTS.get(at.scheme, SOCKS_PORT)
        except SourceFailed as failure:
            return False, f"no ({failure})"
        except ValueError:
            return False, f"no (the address of the proxy for {parts.scheme} cannot be read)"
        through = "through a SOCKS proxy, " if is_socks(proxy) else "through a proxy, "
    else:
        through = ""
    try:
        socket.create_connection((host or "", port or 0), 1.5).close()
    except (OSError, UnicodeError) as error:
        return False, f"no ({through}{host}: {getattr(error, 'strerror', None) or error})"
    return True, f"yes ({through}{host} answers)"


def answer(command: list[str]) -> str:
    """Return what the program prints; "" where it fails or gives no answer."""
    done = run_limited(command, 3, dict(os.environ))
    return "" if done.failure else done.stdout.strip()
