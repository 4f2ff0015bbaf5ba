"""TensorBoard event files of a run: the numbers of its log, step by step.

tensorboard --logdir runs     # then the browser, through an SSH tunnel
"""

from pathlib import Path
from types import TracebackType
from typing import Any

FOLDER = "tensorboard"  # in the run folder

# What of a record of log.jsonl is drawn, and under which heading; epochs are drawn beside steps.
_SHOWN = ("loss", "accuracy", "rate", "validation_accuracy", "questions_per_second")


class Events:
    """Writes records of the log as scalars. What an interrupted run had after ``step`` is hidden.

    A context manager: leaving it writes what is still in memory.
    """

    def __init__(self, run_folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes seconds

        folder = str(run_folder / FOLDER)
        self._writer = SummaryWriter(folder, purge_step=step + 1)

    def add(self, record: dict[str, Any]) -> None:
        for name in _SHOWN:
            if name in record:
                tag = f"{record['type']}/{name}"
                self._writer.add_scalar(tag, record[name], record["step"])

    def __enter__(self) -> "Events":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.close()
