"""Progress of long work: a bar on a terminal, a plain line now and then in a log."""

import sys
import time
from types import TracebackType

from tqdm import tqdm

LOG_EVERY = 30.0  # seconds between two plain lines


class Progress:
    """A context manager around work on ``total`` items, of which ``done`` are done already.

    Writes to standard error, if this process is to ``show`` progress at all.
    """

    def __init__(self, what: str, unit: str, total: int, done: int = 0, *, show: bool) -> None:
        self._unit, self._total, self._done, self._before = unit, total, done, done
        self._started = self._reported = time.monotonic()
        self._show, self._note = show, ""
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=what,
            unit=f" {unit}",
            unit_scale=total >= 1000,
            disable=None if show else True,  # None: drawn on a terminal only
            dynamic_ncols=True,
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def note(self, text: str) -> None:
        """Show ``text`` next to the bar and in the next plain line."""
        self._note = text
        self._bar.set_postfix_str(text)

    def advance(self, count: int) -> None:
        self.update(self._done + count)

    def update(self, done: int) -> None:
        """Set how many items are done; print a plain line every LOG_EVERY seconds."""
        self._bar.update(done - self._done)
        self._done = done
        now = time.monotonic()
        if self._show and self._bar.disable and now - self._reported > LOG_EVERY:
            rate = (done - self._before) / (now - self._started)
            left = f", {format_duration((self._total - done) / rate)} left" if rate else ""
            note = f"; {self._note}" if self._note else ""
            print(
                f"  {done:,} of {self._total:,} {self._unit}, {rate:,.1f} {self._unit}/s"
                f"{left}{note}",
                file=sys.stderr,
                flush=True,
            )
            self._reported = now

    def line(self, text: str) -> None:
        """Print ``text`` above the bar."""
        tqdm.write(text)
        self._reported = time.monotonic()


def format_duration(seconds: float) -> str:
    """Return "45 s", "12 min", "3.4 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
