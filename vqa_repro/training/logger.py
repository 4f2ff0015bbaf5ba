"""Training log: log.jsonl, experiment trackers, and the first batch with a non-finite loss."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vqa_repro.run import Run
from vqa_repro.training.trackers import Trackers
from vqa_repro.utils.distributed import SharedError, World

TRACKED = 100  # steps; the loss is read far more often
NAMED = 5  # questions named in a message


class NonFiniteLossError(SharedError):
    """The loss of a recent step is infinite or not a number."""

    def __init__(self, step: int) -> None:
        super().__init__(
            f"the loss is not finite at or shortly before step {step}; "
            "lower training.learning_rate (the run's last checkpoint is intact)"
        )


class _Pending(NamedTuple):
    record: dict[str, Any]
    totals: Tensor  # on the CPU, once ``copied``
    copied: torch.cuda.Event | None


class Logger:
    """Appends records to the log of ``run`` and to ``trackers``; only the main process writes.

    The others check the loss too, so that all stop at the same step. ``show`` displays a text next
    to the progress bar.
    """

    def __init__(
        self, run: Run, world: World, trackers: Trackers, show: Callable[[str], None]
    ) -> None:
        self._path = run.folder / "log.jsonl"
        self._is_main, self._trackers, self._show = world.is_main, trackers, show
        self._pending: _Pending | None = None

    def defer(self, record: dict[str, Any], totals: Tensor) -> None:
        """Write ``record`` with the means of ``totals`` (3,) without waiting for a GPU.

        From a GPU they are copied asynchronously and written with the next record.
        """
        self.flush()
        copied = None
        if totals.is_cuda:
            totals = totals.to("cpu", non_blocking=True)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record()
        self._pending = _Pending(record, totals, copied)
        if copied is None:
            self.flush()

    def flush(self) -> None:
        """Write the deferred record, if there is one."""
        if self._pending is None:
            return
        record, totals, copied = self._pending
        self._pending = None
        if copied is not None:
            copied.synchronize()
        record = record | means(totals, record["step"])
        self._write(record)
        self._show(f"loss {record['loss']:.3f}, accuracy {record['accuracy']:.1f}%")

    def write(self, record: dict[str, Any]) -> None:
        """Write ``record`` at once, after the deferred one."""
        self.flush()
        self._write(record)

    def _write(self, record: dict[str, Any]) -> None:
        if not self._is_main:
            return
        with self._path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        self._trackers.log(record)


def means(totals: Tensor, step: int) -> dict[str, float]:
    """Return mean loss and accuracy in percent of summed loss, correct answers, questions.

    Raise NonFiniteLossError if the loss is not finite.
    """
    loss, correct, count = totals.tolist()
    if not loss < float("inf"):
        raise NonFiniteLossError(step)
    return {"loss": loss / count, "accuracy": 100 * correct / count}


class NonFiniteLossTracker:
    """Keeps the latest batches and their losses on the device, to find the first non-finite one.

    question_id: (N,) int64 of the Questions that batches refer to.
    """

    def __init__(self, question_id: Tensor) -> None:
        self._question_id = question_id
        self._latest: deque[tuple[int, int, int, Tensor, Tensor]] = deque(maxlen=TRACKED)

    def add(self, step: int, epoch: int, batch: int, positions: Tensor, loss: Tensor) -> None:
        """Record a step; all numbers count from 1. ``loss`` () may be overwritten afterwards.

        positions: (B,) int64 positions in the Questions.
        """
        self._latest.append((step, epoch, batch, positions, loss.detach().clone()))

    @contextmanager
    def explain(self) -> Iterator[None]:
        """Turn a NonFiniteLossError into one that names step, batch and questions.

        With several processes each names the questions of its own share.
        """
        try:
            yield
        except NonFiniteLossError:
            if message := self._message():
                raise SharedError(message) from None
            raise

    def _message(self) -> str | None:
        if not self._latest:
            return None
        losses = torch.stack([loss for *_, loss in self._latest]).tolist()
        first = next((n for n, loss in enumerate(losses) if not loss < float("inf")), None)
        if first is None:
            return None
        step, epoch, batch, positions, _ = self._latest[first]
        ids = self._question_id[positions].tolist()
        named = ", ".join(map(str, ids[:NAMED]))
        more = f" and {len(ids) - NAMED:,} more" if len(ids) > NAMED else ""
        return (
            f"the loss is {losses[first]} at step {step}, batch {batch} of epoch {epoch}, for the "
            f"questions {named}{more}; lower training.learning_rate, or set training.clip=1 "
            "(the run's last checkpoint is intact)"
        )
