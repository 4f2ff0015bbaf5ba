"""From a recipe to all that training and testing read: questions as arrays, features, splits."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from vqa_repro.data import registry
from vqa_repro.data.check import data_notes
from vqa_repro.data.questions import Questions, encode, train_validation_split
from vqa_repro.data.types import Example, Split
from vqa_repro.data.vocabulary import build_vocabulary
from vqa_repro.features.loader import FeatureLoader, Placement
from vqa_repro.features.provider import open_features, root_mean_square
from vqa_repro.features.store import Store
from vqa_repro.recipe import Recipe
from vqa_repro.run import Run
from vqa_repro.utils.distributed import SINGLE_PROCESS, World
from vqa_repro.utils.errors import UserError


@dataclass(frozen=True)
class PreparedData:
    train: Questions
    validation: Questions
    test: Questions
    rows: FeatureLoader  # of this process's images: every world.size-th row from world.rank
    store: Store
    test_split: Split
    left_out: list[str]  # what was done without, one phrase each


def prepare(
    recipe: Recipe,
    folder: Path,
    run: Run | None,
    root: Path,
    device: torch.device,
    weights: Path | None = None,
    *,
    leave_out_damaged: bool = False,
    place: Placement | None = None,
    world: World = SINGLE_PROCESS,
) -> tuple[Run, PreparedData]:
    """Read the data set, open the features, number words and answers.

    place: where features are kept; by default where there is room for them.

    ``run`` is the one that goes on, or None; returned is that one or a new one for ``folder``.
    """
    data, training = recipe.data, recipe.training
    if training.keep == "best" and not data.validation:
        raise UserError('training.keep = "best" needs held-out pictures: set data.validation')
    if data.features == "none" and recipe.model["name"] != "question-only":
        raise UserError('data.features = "none" is for the model question-only: it sees no picture')
    splits = [
        registry.load_split(data.name, root, name, single_answers=data.single_answers)
        for name in (data.train, data.test)
    ]
    store = open_features(data, root, splits, device, weights, leave_out_damaged=leave_out_damaged)
    left_out = [what for split in splits if (what := _left_out(split, store))]
    left_out += data_notes(*splits)
    train_split, test_split = (_with_features(split, store) for split in splits)
    features = {
        "made_by": store.made_by,
        "channels": store.rows.shape[-1],
        "fingerprint": store.fingerprint(),
        "scale": _scale(recipe, store),
    }
    kept, held = train_validation_split(train_split.examples, data.validation)
    if run is None:
        vocabulary = build_vocabulary(train_split.examples, data.num_answers)
        if not vocabulary.answers:
            raise UserError(f"{data.name}, {data.train}: its answers are hidden; train on another")
        run = Run(folder, recipe, vocabulary, features)
    elif run.features != features:
        raise UserError(f"{folder}: was trained on other features than {store.path}")

    def arrays(examples: Sequence[Example]) -> Questions:
        return encode(examples, run.vocabulary, store.row_of).to(device)

    trainable = arrays(kept).trainable(training.answers)
    if not len(trainable):
        raise UserError(f"{data.name}, {data.train}: no question has an answer to train on")
    return run, PreparedData(
        train=trainable,
        validation=arrays(held),
        test=arrays(test_split.examples),
        rows=FeatureLoader(
            replace(store, rows=store.rows[world.rank :: world.size]), device, place
        ),
        store=store,
        test_split=test_split,
        left_out=left_out,
    )


def _scale(recipe: Recipe, store: Store) -> float:
    """What region vectors are multiplied by, so that their numbers are 1 in the mean square.

    The papers' first layer could absorb it, so their equations hold; but initial values that suit
    numbers around 1 meet such numbers. The authors' code takes features as they are.
    """
    if store.rows.ndim != 3 or recipe.model.get("fidelity") == "released":  # pictures, or as there
        return 1.0
    return 1 / (root_mean_square(store.rows) or 1.0)


def _left_out(split: Split, store: Store) -> str:
    without = [example for example in split.examples if example.image not in store.row_of]
    if not without:
        return ""
    pictures = len({example.image for example in without})
    return (
        f"{len(without):,} of {len(split.examples):,} questions of {split.name}: "
        f"{pictures:,} pictures are damaged (see {store.path})"
    )


def _with_features(split: Split, store: Store) -> Split:
    examples = [example for example in split.examples if example.image in store.row_of]
    return replace(split, examples=examples)
