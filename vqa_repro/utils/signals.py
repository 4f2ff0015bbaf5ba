"""Ctrl-C and the signals of batch systems, noticed between two steps instead of inside one."""

import signal
from types import FrameType, TracebackType

_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
]


class SignalHandler:
    """While entered, ``signal`` is the signal that asked to stop, or None.

    A second Ctrl-C stops at once, as if this were not here.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __enter__(self) -> "SignalHandler":
        self._before = {number: signal.signal(number, self._notice) for number in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _notice(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)

    @property
    def exit_code(self) -> int:
        """As a shell reports a process that a signal ended: 130 Ctrl-C, 143 TERM, 138 USR1."""
        return 128 + self.signal if self.signal else 0
