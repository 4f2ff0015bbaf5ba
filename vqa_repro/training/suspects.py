"""Which batch made the loss a number no longer: found once it is seen, at no cost before."""

from collections import deque
from types import TracebackType

import torch
from torch import Tensor

from vqa_repro.data.questions import Questions
from vqa_repro.utils.distributed import SharedError

KEPT = 100  # steps; the loss is looked at far more often
NAMED = 5  # questions named in the message


class NonFiniteLossError(SharedError):
    """The loss of a step not long ago is infinite or not a number."""

    def __init__(self, step: int) -> None:
        super().__init__(
            f"the loss is not finite at or shortly before step {step}; "
            "lower training.learning_rate (the run's last checkpoint is whole)"
        )


class NonFiniteLossTracker:
    """The last batches and their losses, left on the device.

    A context manager: a NotFiniteError inside becomes one that says at which step, in which batch
    and about which questions the loss was not finite first; of several processes, each names the
    questions of its own share.
    """

    def __init__(self, questions: Questions) -> None:
        self._questions = questions
        self._last: deque[tuple[int, int, int, Tensor, Tensor]] = deque(maxlen=KEPT)

    def add(self, step: int, epoch: int, batch: int, questions: Tensor, loss: Tensor) -> None:
        """A step that was made, both numbers from 1; ``loss`` () may be used again afterwards.

        questions: (B,) int64 positions in the Questions.
        """
        self._last.append((step, epoch, batch, questions, loss.detach().clone()))

    def __enter__(self) -> "NonFiniteLossTracker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not isinstance(error, NonFiniteLossError) or not self._last:
            return
        losses = torch.stack([loss for *_, loss in self._last]).tolist()
        at = next((n for n, loss in enumerate(losses) if not loss < float("inf")), None)
        if at is None:
            return
        step, epoch, batch, which, _ = self._last[at]
        ids = self._questions.question_id[which].tolist()
        named = ", ".join(map(str, ids[:NAMED]))
        more = f" and {len(ids) - NAMED:,} more" if len(ids) > NAMED else ""
        raise SharedError(
            f"the loss is {losses[at]} at step {step}, batch {batch} of epoch {epoch}, about the "
            f"questions {named}{more}; lower training.learning_rate, or set training.clip=1 "
            "(the run's last checkpoint is whole)"
        ) from None
