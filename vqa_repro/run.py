"""A run folder: everything about one training, complete in itself.

recipe.json         what was asked for
environment.json    versions, hardware, what was done without
vocabulary.json     words and answers
features.json       what made the features, and their shape
log.jsonl           one JSON object per line: loss, accuracy, questions/s
model.safetensors   the weights to use
checkpoint.pt       weights, optimiser, random numbers, position: what --resume needs;
                    checkpoint.previous.pt is the one before
results.json        answers to the test questions, in the submission format
metrics.json        written last: its presence says that the run is finished
image_statistics.json  mean and deviation of the training images' features
score_details.json  numbers of test questions by type, and the answers confused most often
gallery.json        test questions worth looking at, for the report; gallery/ has their pictures
README.md           the model card
curves.png, attention/, tensorboard/
"""

import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vqa_repro import recipe as recipes
from vqa_repro.data.vocabulary import Vocabulary
from vqa_repro.recipe import Recipe
from vqa_repro.release import local_run
from vqa_repro.utils.errors import UserError, first_line
from vqa_repro.utils.files import write_atomic
from vqa_repro.utils.torch_file import load_torch

# Run folders may come from strangers.
MAX_JSON = 2**24  # bytes
WIDEST = 2**16  # channels of a region, units of a layer


def write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_atomic(path, lambda file: file.write(text.encode()))


def read_json(path: Path) -> Any:
    """Raises UserError, naming the file, where there is no JSON to read."""
    try:
        return json.loads(read_bounded(path, MAX_JSON))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {error}") from None


def read_bounded(path: Path, most: int) -> bytes:
    """The bytes of a file of a stranger's. Raises UserError if there are more than ``most``."""
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > most:
        raise UserError(f"{path}: more than {most:,} bytes: not made by this program")
    return data


@dataclass(frozen=True)
class Run:
    """A run folder, and what it was made from."""

    folder: Path
    recipe: Recipe
    vocabulary: Vocabulary
    # Of the store: "made_by", "channels" of a region, "fingerprint"; "scale" of its numbers.
    features: dict[str, Any]

    @property
    def finished(self) -> bool:
        return (self.folder / "metrics.json").exists()

    def log(self) -> list[dict[str, Any]]:
        """The log's records. A last line cut off by a kill is left out."""
        path = self.folder / "log.jsonl"
        if not path.exists():
            return []
        return list(_whole_lines(path.read_bytes()))

    def keep_log_until(self, step: int) -> None:
        """Drop the records after ``step``: what is trained again is logged again."""
        kept = [record for record in self.log() if record["step"] <= step]
        text = "".join(json.dumps(record) + "\n" for record in kept)
        write_atomic(self.folder / "log.jsonl", lambda file: file.write(text.encode()))

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Keep ``state`` as the newest checkpoint, and the one before it."""
        newest, previous = self._checkpoints()
        fresh = self.folder / "checkpoint.new.pt"
        # Through memory: written to a full disk directly, torch.save fails without saying why.
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomic(fresh, lambda file: file.write(buffer.getbuffer()))
        if newest.exists():
            os.replace(newest, previous)
        os.replace(fresh, newest)

    def load_checkpoint(self, say: Callable[[str], None]) -> dict[str, Any] | None:
        """The newest checkpoint that is whole; None if none was written yet.

        A damaged one is named through ``say`` and the one before is taken. Raises UserError if
        there are checkpoints but none is whole.
        """
        present = [path for path in self._checkpoints() if path.exists()]
        for path in present:
            try:
                state = load_torch(path)
                if not isinstance(state, dict):
                    raise ValueError("it holds no training state")
                return state
            except Exception as error:  # of many kinds, for a damaged file
                say(f"{path} is damaged ({first_line(error)}); trying the one before")
        if present:
            raise UserError(f"{self.folder}: no checkpoint is whole; train anew with another --out")
        return None

    @contextmanager
    def restoring(self) -> Iterator[None]:
        """Say in one line that a checkpoint, whole as it is, holds something else."""
        try:
            yield
        except (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{self._checkpoints()[0]}: not of this run, or of another version of the program "
                f"({first_line(error)}); train anew with another --out"
            ) from None

    def _checkpoints(self) -> tuple[Path, Path]:
        return self.folder / "checkpoint.pt", self.folder / "checkpoint.previous.pt"


def create_run(run: Run, environment: dict[str, Any]) -> None:
    """Make the folder of a new run, whole or not at all. Raises UserError if it cannot be made."""
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
        raise UserError(f"--out {run.folder}: cannot be made: {error.strerror}") from None


def record_resumed(run: Run, facts: dict[str, Any]) -> None:
    """Add ``facts`` to those in environment.json, under "resumed", where they are news there."""
    path = run.folder / "environment.json"
    environment = read_json(path)
    if not isinstance(environment, dict) or not isinstance(environment.get("resumed", []), list):
        raise UserError(f"{path}: damaged; copy it anew, or train anew with another --out")
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
        raise UserError(f"{folder}: not a run folder (it has no recipe.json)")
    recipe = recipes.from_json(recipes.upgrade(read_json(path)), str(path))
    path = folder / "vocabulary.json"
    vocabulary = Vocabulary.from_json(read_json(path), str(path))
    path = folder / "features.json"
    features = read_json(path)
    if not isinstance(features, dict) or type(features.get("channels")) is not int:
        raise UserError(f"{path}: does not say how many channels a region has")
    if not 1 <= features["channels"] <= WIDEST:
        raise UserError(f"{path}: regions of {features['channels']} channels")
    if type(features.get("scale")) is not float:
        raise UserError(f"{path}: does not say by how much features are scaled")
    made_by = features.get("made_by")
    if not isinstance(made_by, dict) or not isinstance(made_by.get("backbone"), str):
        raise UserError(f"{path}: does not say what made the features")
    seen, made = recipe.data.features, made_by["backbone"]
    without_network = {"none": "cnn", "no picture": "none"}  # who made it -> the recipe's word
    if without_network.get(made) != (seen if seen in without_network.values() else None):
        raise UserError(f"{path}: features of {made!r:.80}, recipe.json: of {seen!r:.80}")
    return Run(folder, recipe, vocabulary, features)


def _whole_lines(data: bytes) -> Iterator[dict[str, Any]]:
    for line in data.split(b"\n"):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "step" in record:
            yield record
