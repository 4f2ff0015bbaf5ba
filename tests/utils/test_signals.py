"""Signals that are deferred to the next step."""

import signal

from vqa_repro.utils.signals import SignalHandler


def test_what_was_ignored_meanwhile_stays_ignored() -> None:
    numbers = (signal.SIGUSR1, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        with SignalHandler() as handler:
            signal.raise_signal(signal.SIGTERM)
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        assert handler.signal == signal.SIGTERM
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) == before[signal.SIGTERM]
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)
