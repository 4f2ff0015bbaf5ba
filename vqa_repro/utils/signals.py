"""Defer SIGINT, SIGTERM, SIGHUP and SIGUSR1 to the next step boundary."""

import signal
from types import FrameType, TracebackType

_SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)
]


class SignalHandler:
    """A context manager: ``signal`` is the signal received since it was entered, or None.

    A second Ctrl-C raises KeyboardInterrupt at once. A hang-up that is ignored (``nohup``) stays
    so. The others are handled also where the parent ignores them: SIGINT is ignored by a script's
    jobs in the background, SIGTERM and SIGUSR1 by what a batch script with ``trap ''`` starts.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __enter__(self) -> "SignalHandler":
        self._before = {
            number: signal.signal(number, self._receive)
            for number in _SIGNALS
            if number != getattr(signal, "SIGHUP", None)
            or signal.getsignal(number) != signal.SIG_IGN
        }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._receive:  # nobody has changed it since
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)

    @property
    def exit_code(self) -> int:
        """128 plus ``signal``, as a shell reports it: 130 Ctrl-C, 143 TERM, 129 HUP, 138 USR1."""
        return 128 + self.signal if self.signal else 0
