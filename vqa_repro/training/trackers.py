"""Experiment trackers behind one interface: TensorBoard, Weights & Biases, MLflow.

Each gets the options at the start, the numbers of log.jsonl during training, and the test scores
and attention images at the end. The last two are optional packages, configured by their own
variables (WANDB_MODE, WANDB_PROJECT, MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, ...).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from vqa_repro.run import Run
from vqa_repro.utils.errors import UserError, first_line
from vqa_repro.utils.files import read_json, write_json

# Fields of a log record that trackers show, steps and epochs in separate charts.
SCALARS = (
    *("loss", "accuracy", "rate", "validation_accuracy", "test_accuracy"),
    "questions_per_second",
)
PROJECT = "vqa_repro"  # the project or experiment that runs are listed in
IDS = "tracking.json"  # in a run folder: tracker -> its id of the run, which a resume continues


class Tracker(Protocol):
    """One tracker of one run. It is made when training starts or resumes, after ``step``."""

    def __init__(self, run: Run, step: int) -> None: ...
    def log(self, scalars: dict[str, float], step: int) -> None: ...
    def finish(self, scores: dict[str, float], images: Sequence[Path], step: int) -> None:
        """Add test scores and attention images."""

    def close(self, finished: bool) -> None: ...


class TensorBoard:
    """Event files in the run folder; those of an interrupted run after ``step`` are hidden."""

    def __init__(self, run: Run, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes seconds

        self._options = options(run)
        self._writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=step + 1)

    def log(self, scalars: dict[str, float], step: int) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def finish(self, scores: dict[str, float], images: Sequence[Path], step: int) -> None:
        import numpy as np
        from PIL import Image

        self._writer.add_hparams(self._options, scores, run_name=".")
        for path in images:
            with Image.open(path) as image:
                pixels = np.array(image.convert("RGB"))
            self._writer.add_image(f"attention/{path.stem}", pixels, step, dataformats="HWC")

    def close(self, finished: bool) -> None:
        self._writer.close()


class WandB:
    """A run of Weights & Biases; its files are in the run folder."""

    def __init__(self, run: Run, step: int) -> None:
        import wandb

        self._wandb = wandb
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.folder.name,
            id=known_id(run, "wandb"),
            resume="allow",
            dir=run.folder,
            config=options(run),
        )
        keep_id(run, "wandb", self._run.id)
        # Its own counter refuses the steps that a resumed training repeats.
        self._run.define_metric("*", step_metric="step")

    def log(self, scalars: dict[str, float], step: int) -> None:
        self._run.log({**scalars, "step": step})

    def finish(self, scores: dict[str, float], images: Sequence[Path], step: int) -> None:
        drawn = [self._wandb.Image(str(path), caption=path.stem) for path in images]
        self._run.log({"attention": drawn, "step": step})
        self._run.summary.update(scores)

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


class MLflow:
    """A run of MLflow."""

    def __init__(self, run: Run, step: int) -> None:
        from mlflow import MlflowClient, set_experiment
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = set_experiment(name).experiment_id
        self._client = MlflowClient()
        if (known := known_id(run, "mlflow")) is None:
            made = self._client.create_run(experiment, run_name=run.folder.name)
            self._id = made.info.run_id
            parameters = [Param(key, str(value)) for key, value in options(run).items()]
            self._client.log_batch(self._id, params=parameters)
            keep_id(run, "mlflow", self._id)
        else:
            self._id = known
            self._client.update_run(self._id, status="RUNNING")

    def log(self, scalars: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._client.log_batch(
            self._id, metrics=[Metric(name, value, now, step) for name, value in scalars.items()]
        )

    def finish(self, scores: dict[str, float], images: Sequence[Path], step: int) -> None:
        # MLflow refuses names with "?" or ",", which a type of question may have.
        self.log({re.sub(r"[^\w/. -]", "_", name): value for name, value in scores.items()}, step)
        for path in images:
            self._client.log_artifact(self._id, str(path), "attention")

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")


TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}


class Trackers:
    """The chosen trackers of one training, in its main process.

    One that cannot start is an error. One that fails later is dropped with a note: it is no reason
    to lose a training, and log.jsonl has the same numbers.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._names = list(names)
        self._active: dict[str, Tracker] = {}
        self._finished = False
        for name in self._names:
            if find_spec(name) is None:
                raise UserError(
                    f"--{name}: the package {name} is not installed in this environment; install "
                    f"it (docs/remote.md) or leave out --{name}"
                )

    def start(self, run: Run, step: int) -> None:
        """Begin to track ``run``, or continue after ``step``."""
        for name in self._names:
            try:
                self._active[name] = TRACKERS[name](run, step)
            except Exception as error:
                self.close()
                raise UserError(
                    f"--{name}: cannot start: {first_line(error)}; correct that or leave out "
                    f"--{name}, and continue with --resume --out {run.folder}"
                ) from error

    def log(self, record: dict[str, Any]) -> None:
        """Show the numbers of a record of log.jsonl."""
        kind, step = record["type"], record["step"]
        scalars = {f"{kind}/{name}": float(record[name]) for name in SCALARS if name in record}
        self._each(lambda tracker: tracker.log(scalars, step))

    def finish(self, run: Run) -> None:
        """Add the results in the folder of ``run``."""
        metrics = read_json(run.folder / "metrics.json")
        images = sorted((run.folder / "attention").glob("*.png"))
        step = run.log()[-1]["step"]
        self._each(lambda tracker: tracker.finish(_scores(metrics), images, step))
        self._finished = True

    def close(self) -> None:
        self._each(lambda tracker: tracker.close(self._finished))
        self._active.clear()

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._active.items()):
            try:
                call(tracker)
            except Exception as error:
                print(f"  note: --{name} failed and is off from here: {first_line(error)}")
                del self._active[name]


def options(run: Run) -> dict[str, Any]:
    """Return the options of the recipe, as "section.key"; None and lists as text."""
    return {
        key: value if isinstance(value, bool | int | float | str) else str(value)
        for key, value in run.recipe.options().items()
    }


def _scores(metrics: dict[str, Any]) -> dict[str, float]:
    """Return the scores of metrics.json, as "test/overall"."""
    scores = {key: metrics.get(key) for key in ("overall", "prior", "coverage")}
    scores |= {key: value for key, value in metrics.items() if key.startswith("wups")}
    scores |= metrics["per_answer_type"]
    return {f"test/{key}": value for key, value in scores.items() if value is not None}


def known_id(run: Run, tracker: str) -> str | None:
    """Return the id under which ``tracker`` knows the run, if it does."""
    path = run.folder / IDS
    return read_json(path).get(tracker) if path.exists() else None


def keep_id(run: Run, tracker: str, value: str) -> None:
    path = run.folder / IDS
    write_json(path, {**(read_json(path) if path.exists() else {}), tracker: value})
