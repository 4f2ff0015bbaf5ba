"""A run folder: everything about one training, self-contained.

recipe.json         the recipe with all options
environment.json    versions, hardware, missing capabilities
vocabulary.json     words and answers
features.json       provenance and shape of the features
log.jsonl           one JSON object per line: loss, accuracy, questions/s
model.safetensors   the weights to use
checkpoint.pt       weights, optimiser, random state, position: what --resume needs;
                    checkpoint.previous.pt is the one before
results.json        answers to the test questions, in the submission format
metrics.json        written last: if it exists, the run is finished
image_statistics.json  mean and deviation of the training images' features
held_out.json       of a run with a held-out fold: how it answered each question of the fold
score_details.json  numbers of test questions by type, and the answers confused most often
gallery.json        example questions for the report; gallery/ contains their images
README.md           the model card
tracking.json       what Weights & Biases and MLflow call the run, if they were used
curves.png, attention/, tensorboard/, wandb/
"""

import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch

from vqa_repro import recipe as recipes
from vqa_repro.data.vocabulary import Vocabulary
from vqa_repro.recipe import Recipe
from vqa_repro.release import local_run
from vqa_repro.utils.errors import UserError, first_line
from vqa_repro.utils.files import read_bounded, read_json, write_atomic, write_json
from vqa_repro.utils.paths import describe_missing, why_not_created
from vqa_repro.utils.schema import convert
from vqa_repro.utils.torch_utils import load_torch

# Runs may be untrusted.
WIDEST = 2**16  # channels of a region, units of a layer
MAX_LOG = 2**28  # bytes of log.jsonl


class _Features(msgspec.Struct):
    """The fields of features.json that a network is built from."""

    made_by: dict[str, Any]
    channels: Annotated[int, msgspec.Meta(ge=1, le=WIDEST)]
    scale: float
    rows: Annotated[int, msgspec.Meta(ge=1)] | None = None  # of the store then; None: early runs


@dataclass(frozen=True)
class Run:
    """A run folder with its recipe, vocabulary and features."""

    folder: Path
    recipe: Recipe
    vocabulary: Vocabulary
    # Of the feature store: "made_by", "channels" of a region, "fingerprint", "scale" of the values.
    features: dict[str, Any]

    @property
    def finished(self) -> bool:
        return (self.folder / "metrics.json").exists()

    def check_finished(self, option: str = "") -> None:
        """Raise UserError if the run is not finished. option: what named it, for the message."""
        if not self.finished:
            named = f"{option} = {self.folder}" if option else f"{self.folder}"
            raise UserError(f"{named}: not finished; train it with --resume")

    def epochs_so_far(self) -> tuple[int, int] | None:
        """Return how many epochs are trained, and how many there will be; None if finished."""
        if self.finished:
            return None
        epochs = self.recipe.training.epochs
        logged = (record.get("epoch") for record in self.log())  # runs may be untrusted
        trained = [e for e in logged if isinstance(e, (int, float)) and 0 <= e <= epochs]
        return int(trained[-1]) if trained else 0, epochs

    def note(self) -> str | None:
        """Return a line for the reader of the run's answers if its training is not finished."""
        if (epochs := self.epochs_so_far()) is None:
            return None
        return f"note: {self.folder}: not finished: epoch {epochs[0]} of {epochs[1]}"

    @property
    def has_checkpoint(self) -> bool:
        return any(path.exists() for path in self._checkpoints())

    def log(self) -> list[dict[str, Any]]:
        """Return the log's records, without a last line truncated by a kill."""
        path = self.folder / "log.jsonl"
        if not path.exists():
            return []
        return list(_whole_lines(read_bounded(path, MAX_LOG)))

    def keep_log_until(self, step: int) -> None:
        """Remove the records after ``step``, which will be trained and logged again."""
        kept = [record for record in self.log() if record["step"] <= step]
        text = "".join(json.dumps(record) + "\n" for record in kept)
        write_atomic(self.folder / "log.jsonl", lambda file: file.write(text.encode()))

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Save ``state`` as the newest checkpoint, and keep the previous one."""
        newest, previous = self._checkpoints()
        fresh = self.folder / "checkpoint.new.pt"
        # Through memory: on a full disk torch.save alone fails without the reason.
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomic(fresh, lambda file: file.write(buffer.getbuffer()))
        if newest.exists():
            os.replace(newest, previous)
        os.replace(fresh, newest)

    def load_checkpoint(self, report: Callable[[str], None]) -> dict[str, Any] | None:
        """Return the newest intact checkpoint; None if none has been written yet.

        ``report`` gets a line for a damaged one, and the previous one is used. Raise UserError if
        all are damaged.
        """
        present = [path for path in self._checkpoints() if path.exists()]
        for path in present:
            try:
                state = load_torch(path)
                if not isinstance(state, dict):
                    raise ValueError("it contains no training state")
                return state
            except Exception as error:  # of many kinds, for a damaged file
                report(f"{path} is damaged ({first_line(error)}); trying the previous one")
        if present:
            raise UserError(f"{self.folder}: all checkpoints are damaged; train with another --out")
        return None

    @contextmanager
    def restoring(self) -> Iterator[None]:
        """Turn errors of restoring a checkpoint into a UserError: it does not fit this run."""
        try:
            yield
        except (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{self._checkpoints()[0]}: not of this run, or of another version of the program "
                f"({first_line(error)}); train with another --out"
            ) from None

    def _checkpoints(self) -> tuple[Path, Path]:
        return self.folder / "checkpoint.pt", self.folder / "checkpoint.previous.pt"


def create_run(run: Run, environment: dict[str, Any]) -> None:
    """Create the folder of a new run atomically. Raise UserError if that is not possible."""
    try:
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new-run-", dir=run.folder.parent) as scratch:
            fresh = Path(scratch) / "run"
            fresh.mkdir()
            write_json(fresh / "environment.json", environment)
            write_json(fresh / "vocabulary.json", run.vocabulary.to_json())
            write_json(fresh / "features.json", run.features)
            write_json(fresh / "recipe.json", run.recipe.to_json())
            os.rename(fresh, run.folder)
    except OSError as error:
        why = why_not_created(run.folder, error)
        raise UserError(f"--out {run.folder}: cannot be created: {why}") from None


def record_resumed(run: Run, facts: dict[str, Any]) -> None:
    """Append ``facts`` to "resumed" in environment.json, if they differ from the last ones."""
    path = run.folder / "environment.json"
    environment = read_json(path)
    if not isinstance(environment, dict) or not isinstance(environment.get("resumed", []), list):
        raise UserError(f"{path}: damaged; copy it again, or train with another --out")
    resumed = environment.get("resumed", [])
    if facts != {key: (resumed or [environment])[-1].get(key) for key in facts}:
        write_json(path, {**environment, "resumed": [*resumed, facts]})


def open_run(folder: Path) -> Run:
    """Open a run folder, or a release of a run (see release.py).

    Raise UserError, naming the file, if it is missing or damaged.
    """
    folder = local_run(folder)
    path = folder / "recipe.json"
    if not path.is_file():
        raise UserError(not_a_run(folder))
    recipe = recipes.from_json(recipes.upgrade(read_json(path)), str(path))
    path = folder / "vocabulary.json"
    vocabulary = Vocabulary.from_json(read_json(path), str(path))
    path = folder / "features.json"
    features = read_json(path)
    backbone = convert(features, _Features, str(path)).made_by.get("backbone")
    if not isinstance(backbone, str):
        raise UserError(f"{path}: made_by names no backbone")
    used = recipe.data.features
    without_backbone = {"none": "cnn", "no picture": "none"}  # backbone -> data.features
    if without_backbone.get(backbone) != (used if used in without_backbone.values() else None):
        raise UserError(f"{path}: features of {backbone!r:.80}, recipe.json: of {used!r:.80}")
    return Run(folder, recipe, vocabulary, features)


def not_a_run(folder: Path) -> str:
    """Return the error for a path that is no run folder, and name a run in it if there is one."""
    if not folder.exists():
        where = describe_missing(folder)
        return f"{folder}: not a run folder or release: no such file or folder ({where})"
    if not folder.is_dir():
        return f"{folder}: a file, not a run folder; if it is a release, unpack it into a folder"
    runs = sorted(path.parent for path in folder.glob("*/recipe.json"))
    hint = f"; name a run in it, such as {runs[0]}" if runs else ""
    return f"{folder}: not a run folder (it has no recipe.json){hint}"


def _whole_lines(data: bytes) -> Iterator[dict[str, Any]]:
    for line in data.split(b"\n"):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "step" in record:
            yield record
