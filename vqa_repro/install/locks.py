"""One lock for processes that share a folder, also over a network file system.

A lock is a symbolic link whose target names its owner ("PID START HOST DATE TIME NAMESPACE TOKEN"):
made in one step together with its contents, on every file system that has links. Where there are
none (FAT, exFAT), it is a file made with O_EXCL. The lock of a process that died on this host is
taken over; one that another host made is respected, as nobody here can know.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

POLL_S = 0.2
REMINDER_S = 30.0
UNSIGNED_S = 60.0  # a lock file without a text of this age belongs to a process that died
TEXT_LIMIT = 1000  # characters
NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


class Busy(Exception):
    """Another process held the lock for longer than the caller would wait."""

    def __init__(self, path: Path, owner: str, wait_s: float) -> None:
        super().__init__(f"{owner} still holds {path} after {wait_s:g} s")
        self.path, self.owner = path, owner


@dataclass(frozen=True)
class Owner:
    """The process that a lock names; ``started`` tells it from a later one with its number."""

    pid: int
    started: str
    host: str
    since: str
    namespace: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    def is_gone(self) -> bool:
        """Return whether it has ended for certain: only processes seen from here can be known."""
        if self.host != socket.gethostname() or self.namespace not in ("", pid_namespace()):
            return False
        return not is_running(self.pid, self.started)


@contextlib.contextmanager
def hold(path: Path, wait_s: float, notify: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock ``path``; wait up to ``wait_s`` seconds for its owner.

    ``notify`` gets a line on each owner that is waited for, and on one whose lock is taken over.
    Raise Busy after that time, and OSError where no lock can be made.
    """
    text = acquire(path, wait_s, notify)
    try:
        yield
    finally:
        release(path, text)


def acquire(path: Path, wait_s: float, notify: Callable[[str], None]) -> str:
    """Take the lock and return its text, which ``release`` wants; see ``hold``."""
    deadline = time.monotonic() + wait_s
    next_note = time.monotonic()
    text = signature()
    while not create(path, text):
        current = read(path)
        if current is None:  # released this moment
            time.sleep(0.01)
            continue
        owner = parse(current)
        if is_stale(path, current) and break_stale(path, current):
            notify(f"{owner or 'a process'} died before it was done: its lock is taken over")
            continue
        holder = str(owner or "another process")
        if time.monotonic() >= deadline:
            raise Busy(path, holder, wait_s)
        if time.monotonic() >= next_note:
            notify(f"waiting for {holder}, at most {wait_s:g} s")
            next_note += REMINDER_S
        time.sleep(POLL_S)
    return text


def release(path: Path, text: str) -> None:
    """Remove the lock if it is still the one that ``acquire`` returned."""
    if read(path) == text:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


# ---------------------------------------------------------------- the lock itself


def create(path: Path, text: str) -> bool:
    """Make the lock; return False if there is one that is not ours."""
    try:
        os.symlink(text, path)
        return True
    except FileExistsError:  # over NFS also the answer to a request that was repeated
        return read(path) == text
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(handle, "w") as file:
        file.write(text)
    return True


def read(path: Path) -> str | None:
    """Return the text of the lock, "" for an unreadable one; None where there is no lock."""
    try:
        return os.readlink(path)
    except FileNotFoundError:
        return None
    except OSError:  # a file, or a file system without links
        pass
    try:
        with path.open(encoding="ascii", errors="replace") as file:
            return file.read(TEXT_LIMIT)
    except FileNotFoundError:
        return None
    except OSError:
        return ""


def is_stale(path: Path, text: str) -> bool:
    """Return whether the lock with this text was left behind by a process that died."""
    owner = parse(text)
    if owner:
        return owner.is_gone()
    if text:
        return False
    try:
        return time.time() - path.lstat().st_mtime > UNSIGNED_S
    except FileNotFoundError:
        return False


def break_stale(path: Path, text: str) -> bool:
    """Remove the stale lock with this text; of several that try, one returns True.

    Between reading the lock and removing it another process may have replaced it with its own, so
    a second lock guards the removal.
    """
    guard = path.with_name(f"{path.name}.takeover")
    mine = signature()
    if not create(guard, mine):
        content = read(guard)
        if content is not None and is_stale(guard, content):  # killed within these few lines
            with contextlib.suppress(FileNotFoundError):
                guard.unlink()
        return False
    try:
        if read(path) != text:
            return False
        path.unlink()
        return True
    except FileNotFoundError:
        return False
    finally:
        release(guard, mine)


# ---------------------------------------------------------------- processes


def signature() -> str:
    """Return the text of a lock that this process makes; no two are the same."""
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    started = start_time(os.getpid()) or "?"
    host = socket.gethostname() or "?"
    namespace = pid_namespace() or "?"
    return f"{os.getpid()} {started} {host} {since} {namespace} {secrets.token_hex(4)}"


def parse(text: str) -> Owner | None:
    """Return the owner that a lock's text names; None if it makes no sense."""
    fields = [field if field != "?" else "" for field in text.split()]
    if len(fields) < 4 or not fields[0].isdecimal() or len(fields[0]) > 18:
        return None
    namespace = fields[5] if len(fields) > 5 else ""
    return Owner(int(fields[0]), fields[1], fields[2], " ".join(fields[3:5]), namespace)


def is_running(pid: int, started: str) -> bool:
    """Return whether process ``pid`` runs and is the one that started then ("": not known)."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user
        pass
    now = start_time(pid)
    return now is not None and (not started or now in ("", started))


def start_time(pid: int) -> str | None:
    """Return when process ``pid`` started; "" if that is hidden, None for one that has ended."""
    if not Path("/proc/self/stat").exists():
        command = ["ps", "-o", "lstart=", "-p", str(pid)]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, timeout=5)
        except (OSError, subprocess.TimeoutExpired):
            return ""
        if answer.stderr:  # it cannot tell: also ps needs /proc on Linux
            return ""
        return "_".join(answer.stdout.split()) or None
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(") ")[2].split()
        return None if fields[0] == "Z" else fields[19]
    except (OSError, IndexError):  # another user's, where the system hides these (hidepid)
        return ""


def pid_namespace() -> str:
    """Return what tells this container's process numbers from the host's; "" where not known."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
