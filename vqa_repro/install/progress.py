"""Messages and progress of a download, on standard error."""

from __future__ import annotations

import sys
import threading
import time

MIB = 1 << 20


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def mib(size: int) -> str:
    return f"{size / MIB:,.1f} MiB"


class Progress:
    """One updating line on a terminal, elsewhere a plain line every ten seconds."""

    def __init__(self, name: str, total: int, start: int) -> None:
        self.name, self.total, self.start = name, total, start
        self.begin = time.monotonic()
        # Of several downloads at a time, none may rewrite the line of another.
        alone = threading.current_thread() is threading.main_thread()
        self.terminal = alone and sys.stderr.isatty()
        self.every_s = 0.2 if self.terminal else 10.0
        self.last = self.begin
        self.width = 0

    def __enter__(self) -> Progress:
        return self

    def update(self, size: int) -> None:
        now = time.monotonic()
        if now - self.last < self.every_s:
            return
        self.last = now
        speed = max(1.0, (size - self.start) / (now - self.begin))
        minutes, seconds = divmod(round(max(0, self.total - size) / speed), 60)
        line = (
            f"{self.name}: {mib(size)} of {mib(self.total)}, "
            f"{mib(round(speed))}/s, {minutes}:{seconds:02d} left"
        )
        self.width = max(self.width, len(line))
        text = f"\r{line:{self.width}}" if self.terminal else f"{line}\n"
        print(text, end="", file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        if self.width and self.terminal:
            say("")
