"""Run several commands side by side, as many at a time as this machine can run."""

import os
import subprocess
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Thread

from vqa_repro.utils.signals import SignalHandler

JOBS_ON_GPU = "VQA_JOBS_ON_GPU"  # environment variable: how many commands share a GPU

POLL = 0.05  # seconds


@dataclass(frozen=True)
class Outcome:
    """How a command ended. ``code`` is None for one that was never started."""

    code: int | None = None
    last_line: str = ""  # that it printed


class _Process:
    """A running command; prints its lines with its ``name`` in front.

    ``slot``: environment variables of the place that it takes.
    """

    def __init__(self, name: str, command: Sequence[str], slot: Mapping[str, str]) -> None:
        self.name, self.slot = name, slot
        self._last_line = ""
        # In a session of its own, so that Ctrl-C reaches it once: from here.
        self.popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, **slot},
            start_new_session=True,
        )
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout
        with self.popen.stdout as lines:
            for line in lines:
                if line.strip():
                    self._last_line = line.strip()
                    # A closed output must not stop the command, which would wait for a reader.
                    with suppress(OSError, ValueError):
                        # One write: print's own end of line may follow another thread's line.
                        print(f"{self.name} | {line.rstrip()}\n", end="", flush=True)

    def outcome(self) -> Outcome:
        code = self.popen.wait()
        self._reader.join()
        return Outcome(code, self._last_line)


def run_side_by_side(
    commands: Mapping[str, Sequence[str]], slots: Sequence[Mapping[str, str]]
) -> tuple[dict[str, Outcome], int]:
    """Run ``commands``, by name, one at a time in each of ``slots``.

    slots: the environment variables of each place. Return the outcomes, by name, and an exit code.

    A command that fails does not stop the others. SIGINT, SIGTERM, SIGHUP and SIGUSR1 are passed on
    to those that run, whose end is awaited, and no other is started; the exit code is then 128 plus
    the signal, else 0. A second SIGINT kills them and raises KeyboardInterrupt.
    """
    waiting, free = deque(commands.items()), list(slots)
    running: list[_Process] = []
    outcomes = {name: Outcome() for name in commands}
    with SignalHandler() as signals:
        passed_on = False
        try:
            while running or (waiting and signals.signal is None):
                while waiting and free and signals.signal is None:
                    running.append(_Process(*waiting.popleft(), free.pop(0)))
                if signals.signal is not None and not passed_on:
                    passed_on = True
                    for process in running:
                        process.popen.send_signal(signals.signal)
                for process in [p for p in running if p.popen.poll() is not None]:
                    running.remove(process)
                    free.append(process.slot)
                    outcomes[process.name] = process.outcome()
                time.sleep(POLL)
        finally:
            for process in running:
                process.popen.kill()
                process.outcome()
        return outcomes, signals.exit_code


def make_slots(count: int, gpus: Sequence[str]) -> list[dict[str, str]]:
    """Return the environment variables of ``count`` commands that run at the same time.

    They share the CPU cores evenly, each with no more threads than OMP_NUM_THREADS allows, and take
    turns with ``gpus`` (as in CUDA_VISIBLE_DEVICES); the GPU that they name themselves, if they do,
    they share.
    """
    threads = str(max(1, min(allowed_threads(), cores() // count)))
    sharers = str(-(-count // max(1, len(gpus))))
    slots = []
    for number in range(count):
        # By how many memory is shared, see utils/memory.py.
        memory = {"LOCAL_WORLD_SIZE": str(count), JOBS_ON_GPU: sharers}
        slot = {"OMP_NUM_THREADS": threads, **memory}
        if gpus:
            slot["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
        slots.append(slot)
    return slots


def is_one_of_several() -> bool:
    """Return whether this process is a command that runs in a slot of ``make_slots``."""
    return JOBS_ON_GPU in os.environ


def allowed_threads() -> int:
    """Return the number in OMP_NUM_THREADS (the first of "4,2"), or all cores without one."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) else cores()


def cores() -> int:
    """Return how many CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
