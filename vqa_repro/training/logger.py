"""What a training says of itself while it runs: log.jsonl, event files, the numbers by the bar."""

import json
from contextlib import ExitStack
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from vqa_repro.run import Run
from vqa_repro.training.events import Events
from vqa_repro.training.suspects import NonFiniteLossError
from vqa_repro.utils.distributed import World


class _Waiting(NamedTuple):
    entry: dict[str, Any]
    sums: Tensor  # on the CPU, once ``copied``
    copied: torch.cuda.Event | None
    bar: "tqdm[Any]"


class Log:
    """The log of ``run`` from ``step`` on. A context manager; written by the first process alone.

    The others check the numbers too, so that all stop at the same step.
    """

    def __init__(self, run: Run, step: int, world: World, *, tensorboard: bool) -> None:
        self._waiting: _Waiting | None = None
        self._first = world.is_main
        if self._first:
            run.keep_log_until(step)
            self._stack = ExitStack()
            self._file = self._stack.enter_context((run.folder / "log.jsonl").open("a"))
            self._events = (
                self._stack.enter_context(Events(run.folder, step)) if tensorboard else None
            )

    def later(self, entry: dict[str, Any], sums: Tensor, bar: "tqdm[Any]") -> None:
        """Record ``entry`` and the means of ``sums`` (3,), once those can be read without waiting.

        On a GPU that is when the next entry comes.
        """
        self.flush()
        copied = None
        if sums.is_cuda:
            sums = sums.to("cpu", non_blocking=True)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record()
        self._waiting = _Waiting(entry, sums, copied, bar)
        if copied is None:
            self.flush()

    def flush(self) -> None:
        """Record what still waits."""
        if self._waiting is None:
            return
        entry, sums, copied, bar = self._waiting
        self._waiting = None
        if copied is not None:
            copied.synchronize()
        entry = entry | means(sums, entry["step"])
        self._write(entry)
        bar.set_postfix_str(f"loss {entry['loss']:.3f}, accuracy {entry['accuracy']:.1f}%")

    def record(self, entry: dict[str, Any]) -> None:
        self.flush()
        self._write(entry)

    def _write(self, entry: dict[str, Any]) -> None:
        if self._first:
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()
            if self._events:
                self._events.add(entry)

    def __enter__(self) -> "Log":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._first:
            self._stack.close()


def means(sums: Tensor, step: int) -> dict[str, float]:
    """Mean loss and accuracy in percent, of summed loss, right answers, questions.

    Raises NotFiniteError if the loss is not finite.
    """
    loss, right, count = sums.tolist()
    if not loss < float("inf"):
        raise NonFiniteLossError(step)
    return {"loss": loss / count, "accuracy": 100 * right / count}
