"""Running the programs of an installation, and ending them with all that they have started.

Each runs in a session of its own: a signal reaches it through us alone, and no terminal can stop it
(stty tostop).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import IO, Any

from vqa_repro.install import locks
from vqa_repro.install.console import Log, is_terminal, say


class Signalled(BaseException):
    """A signal asks us to end; ``code`` is the exit code."""

    def __init__(self, number: int) -> None:
        self.code = 128 + number


SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


def catch_signals() -> None:
    """Let the first signal raise Signalled; further ones do not disturb the cleaning up."""

    def obey(number: int, frame: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise Signalled(number)

    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, obey)


def replace_by(command: list[str]) -> None:
    """Become this program."""
    for number in (*SIGNALS, signal.SIGPIPE, signal.SIGXFSZ):
        if number == signal.SIGPIPE or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    os.execv(command[0], command)


@contextlib.contextmanager
def started(
    command: list[str], note: Path | None, **settings: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program; end it and all that it has started if the block is left early.

    ``note`` is the file that tells a later run which process to end, should this one be killed.
    """

    def sign() -> None:  # in the child, so that there is no moment without it
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        with contextlib.suppress(OSError):
            if note:
                note.write_text(f"{os.getpid()} {locks.start_time(os.getpid())}\n")

    # A signal during Popen would leave a program that nothing ends: it waits until the block.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=sign, **settings
        )
    except BaseException:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        raise
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        yield process
    except BaseException:
        end_group(process.pid, process.poll)
        raise
    finally:
        if note:
            with contextlib.suppress(OSError):
                note.unlink()


def end_group(group: int, reap: Callable[[], object] = bool, seconds: float = 5.0) -> None:
    """End a process and all that it has started, which have so long to obey.

    Return when they are gone: a killed process, too, needs a moment on a busy machine.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):
        for number in (signal.SIGTERM, signal.SIGKILL):
            os.killpg(group, number)
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                reap()
                os.killpg(group, 0)
                time.sleep(0.05)
    reap()


def end_orphan(note: Path) -> None:
    """End what a run that was killed has left running, as its note says."""
    with contextlib.suppress(OSError, ValueError):
        pid, start = note.read_text().split()
        if locks.is_running(int(pid), start):
            end_group(int(pid))
        note.unlink()


def attached(
    command: list[str], environ: dict[str, str], cwd: Path | None = None, note: Path | None = None
) -> int:
    """Run a program that talks to the user; return its exit code."""
    with started(command, note, env=environ, cwd=cwd) as process:
        return exit_code(process.wait())


def logged(
    what: str, command: list[str], environ: dict[str, str], cwd: Path, note: Path, log: Log
) -> int:
    """Run a program whose output goes to the log; show that it lives; return its exit code."""
    log.begin()
    try:
        with started(
            command, note, env=environ, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            reader = threading.Thread(target=copy, args=(process.stdout, log), daemon=True)
            reader.start()
            wait_with_progress(what, process, cwd)
            reader.join(5)
            if process.returncode < 0:
                name = signal.strsignal(-process.returncode)
                log.write(f"killed by signal {-process.returncode} ({name})\n")
            return exit_code(process.returncode)
    except OSError as error:  # it is not there any more, or there are too many processes
        log.write(f"{error.filename or command[0]}: {error.strerror}\n")
        return 127


def copy(source: IO[bytes], log: Log) -> None:
    for line in source:
        log.write(line.decode("utf-8", "replace"))
    source.close()


def wait_with_progress(what: str, process: subprocess.Popen[bytes], folder: Path) -> None:
    """Wait for the process; say every second on a terminal, else twice a minute, how it goes."""
    terminal, begin, free = is_terminal(), time.monotonic(), free_bytes(folder)
    every = 1 if terminal else 30
    due = every
    while True:
        try:
            process.wait(timeout=max(0.05, begin + due - time.monotonic()))
        except subprocess.TimeoutExpired:
            written = (free - free_bytes(folder)) >> 20
            text = f"  {what}: {due} s, about {written} MB written"
            say(f"\r\x1b[K{text}" if terminal else text, end="" if terminal else "\n")
            due += every
        else:
            if terminal:
                say("\r\x1b[K", end="")
            return


def free_bytes(folder: Path) -> int:
    try:
        disk = os.statvfs(folder)
    except OSError:
        return 0
    return disk.f_bavail * disk.f_frsize


def exit_code(returncode: int) -> int:
    return 128 - returncode if returncode < 0 else returncode
