"""What the installer prints and logs. Nothing here can fail, or start a process."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path

from vqa_repro.install.errors import InstallError
from vqa_repro.install.redact import redact

LOGS_KEPT = 10
REMEMBERED = 1 << 20  # characters of what the last command printed


def is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def color(name: str, text: str) -> str:
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb"
    if plain or not is_terminal() or sys.stderr is None or not sys.stderr.isatty():
        return text
    return f"\x1b[{ {'red': 31, 'green': 32, 'yellow': 33}[name] }m{text}\x1b[0m"


def say(text: str, end: str = "\n") -> None:
    """Print to standard output; where nobody reads it any more, the work continues without it."""
    try:
        print(redact(text), end=end, flush=True)
    except (OSError, ValueError) as error:
        silence(1)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 # for the rest of this process
        if not isinstance(error, BrokenPipeError):
            complain(f"note: standard output cannot be written: {error}")


def complain(text: str) -> None:
    """Print to standard error."""
    try:
        print(redact(text), file=sys.stderr, flush=True)
    except (OSError, ValueError):
        silence(2)  # Python flushes it once more at exit, and a failure then changes the exit code


def silence(stream: int) -> None:
    """Let this standard stream lead nowhere."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def row(name: str, state: str, text: str) -> None:
    """Print one line of the table; state is "ok", "note" or "problem"."""
    name_of_color = {"ok": "green", "note": "yellow", "problem": "red"}[state]
    say(f"  {name:<9} {color(name_of_color, f'{state:<8}')} {text}")


def also(text: str) -> None:
    """Print a further line of the row above."""
    say(f"{'':21}{text}")


def report(error: InstallError, log: Log | None = None) -> None:
    """Print a failure: what, why, the end of the log, and what to do next."""
    lines = [f"{color('red', 'failed')}: {error.what}", f"  why:  {error.why}"]
    if log:
        lines += [f"      | {line}" for line in log.text.splitlines()[-8:]]
        lines += [f"  log:  {log.path}"] if log.path else []
    complain("\n".join([*lines, f"  next: {error.next}"]))


class Log:
    """The log of one run, and what the last command printed; a log that cannot be written is none.

    ``text`` is what the last command has printed so far, without credentials.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path: Path | None = None
        self.text = ""
        self.failed = False

    def begin(self) -> None:
        """Forget the last command's output, and make the file if there is none yet."""
        self.text = ""
        if self.path or self.failed:
            return
        path = self.folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for old in sorted(self.folder.glob("*.log"))[: -LOGS_KEPT + 1]:
                old.unlink()
            path.touch()
        except OSError as error:
            self.give_up(error)
        else:
            self.path = path

    def write(self, text: str) -> None:
        text = redact(text)
        self.text = (self.text + text)[-REMEMBERED:]
        if self.path:
            try:
                with self.path.open("a", encoding="utf-8", errors="replace") as file:
                    file.write(text)
            except OSError as error:
                self.give_up(error)

    def give_up(self, error: OSError) -> None:
        self.path, self.failed = None, True
        say(f"  note: no log is written: {error.filename or self.folder}: {error.strerror}")
