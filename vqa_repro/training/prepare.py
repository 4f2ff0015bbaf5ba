"""Prepare the data of a recipe: splits, encoded questions and a feature loader."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch

from vqa_repro.data import registry
from vqa_repro.data.check import data_notes
from vqa_repro.data.folds import split_fold
from vqa_repro.data.questions import Questions, encode, train_validation_split
from vqa_repro.data.types import Example, Split
from vqa_repro.data.vocabulary import build_vocabulary
from vqa_repro.features.loader import FeatureLoader
from vqa_repro.features.provider import Runtime, root_mean_square
from vqa_repro.features.store import Store
from vqa_repro.models.network import VQAModel, build, check_memory
from vqa_repro.recipe import Data, Recipe
from vqa_repro.run import Run
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.plurals import plural

RANK_SEED = 7919  # difference between the seeds of two processes


@dataclass(frozen=True)
class PreparedData:
    """What training and testing read."""

    train: Questions
    untaught: Questions  # ``train`` before teachers answer more questions
    validation: Questions
    test: Questions
    loader: FeatureLoader  # of this process's images: every world.size-th row from world.rank
    store: Store
    train_split: Split
    test_split: Split
    notes: list[str]  # limitations of the data, one line each: damaged images, truncated questions


def load_splits(recipe: Recipe, root: Path) -> tuple[Split, Split]:
    """Read the training and the test split of ``recipe`` below ``root``.

    With ``data.fold`` the latter is that fold of the training split, which the former lacks.
    Raise UserError for data that is missing or damaged, or a recipe that cannot be trained.
    """
    data = recipe.data
    if recipe.training.keep == "best" and not data.validation:
        raise UserError('training.keep = "best" needs a validation split: set data.validation')
    if data.features == "none" and recipe.model["name"] != "question-only":
        raise UserError('data.features = "none" is for the model question-only: it sees no image')

    if data.fold:
        return _split_fold(data, root)
    return _load(data, data.train, root), _load(data, data.test, root)


def load_test_split(data: Data, root: Path) -> Split:
    """Read what a run with ``data`` is tested on: the fold that it held out, or the test split.

    Raise UserError for data that is missing or damaged.
    """
    return _split_fold(data, root)[1] if data.fold else _load(data, data.test, root)


def new_run(recipe: Recipe, folder: Path, train: Split, store: Store) -> Run:
    """Return a run with the vocabulary of ``train``, which is not on the disk yet.

    Raise UserError if the answers of ``train`` are hidden.
    """
    examples = with_features(train, store).examples
    vocabulary = build_vocabulary(examples, recipe.data.num_answers)
    if not vocabulary.answers:
        name = f"{recipe.data.name}, {recipe.data.train}"
        raise UserError(f"{name}: its answers are hidden; train on another split")
    return Run(folder, recipe, vocabulary, describe_features(recipe, store))


def prepare(run: Run, splits: tuple[Split, Split], store: Store, runtime: Runtime) -> PreparedData:
    """Encode the questions of ``splits`` and load the features of this process.

    Raise UserError if ``store`` is not what the run was trained on, or leaves nothing to train on.
    """
    recipe, world = run.recipe, runtime.world
    now = describe_features(recipe, store, run.features.get("rows"))
    if run.features != {key: now.get(key) for key in run.features}:
        raise UserError(f"{run.folder}: was trained on other features than {store.path}")
    train, test = (with_features(split, store) for split in splits)
    if recipe.training.test_every and test.hidden:
        raise UserError(f"training.test_every: the answers of {test.name} are hidden; set it to 0")
    training, validation = train_validation_split(train.examples, recipe.data.validation)
    if recipe.training.keep == "best" and not validation:
        raise UserError(
            f"{recipe.data.name}, {recipe.data.train}: too few images ({len(train.images):,}) to "
            f"hold out data.validation = {recipe.data.validation:g} of them: raise it, or "
            "--set training.keep=last --set training.patience=0"
        )

    def arrays(examples: Sequence[Example]) -> Questions:
        return encode(examples, run.vocabulary, store.row_of).to(runtime.device)

    trainable = arrays(training).trainable(recipe.training.answers)
    if not len(trainable):
        name = f"{recipe.data.name}, {recipe.data.train}"
        raise UserError(f"{name}: no question has an answer to train on")
    share = replace(store, rows=store.rows[world.rank :: world.size])
    return PreparedData(
        train=trainable,
        untaught=trainable,
        validation=arrays(validation),
        test=arrays(test.examples),
        loader=FeatureLoader(share, runtime.device, runtime.placement),
        store=store,
        train_split=train,
        test_split=test,
        notes=[
            *(line for split in splits if (line := _skipped(split, store))),
            *data_notes(*splits),
        ],
    )


def build_network(run: Run, runtime: Runtime) -> VQAModel:
    """Return the network of ``run`` with its initial weights, the same in every process.

    Seed torch's random numbers: the same for the weights, then different in every process.
    """
    world, seed = runtime.world, run.recipe.training.seed
    world.run_together(lambda: check_memory(run, runtime.device))
    torch.manual_seed(seed)
    network = build(run).to(runtime.device)
    world.broadcast_weights(network)
    if world.rank:
        torch.manual_seed(seed + RANK_SEED * world.rank)
    return network


def describe_features(recipe: Recipe, store: Store, count: int | None = None) -> dict[str, object]:
    """Return the content of a run's features.json.

    count: of the first so many rows, to which an extraction appends those of new images.
    """
    row_of = dict(islice(store.row_of.items(), count))
    store = replace(store, rows=store.rows[:count], row_of=row_of)
    return {
        "rows": len(store.rows),
        "made_by": store.made_by,
        "channels": store.rows.shape[-1],
        "fingerprint": store.fingerprint(),
        "scale": _scale(recipe, store),
    }


def with_features(split: Split, store: Store) -> Split:
    """Return ``split`` without damaged images and the questions about them."""
    examples = [example for example in split.examples if example.image in store.row_of]
    images = {image: path for image, path in split.images.items() if image in store.row_of}
    return replace(split, examples=examples, images=images)


def _load(data: Data, name: str, root: Path) -> Split:
    return registry.load_split(data.name, root, name, single_answers=data.single_answers)


def _split_fold(data: Data, root: Path) -> tuple[Split, Split]:
    train = _load(data, data.train, root)
    return split_fold(train, data.fold, registry.find_data_set(data.name).sequences)


def _scale(recipe: Recipe, store: Store) -> float:
    """Return the factor of region vectors that makes their mean square 1; 1.0 for raw features.

    The first layer of the papers' models could absorb it, so their equations hold; but our initial
    values assume inputs of magnitude 1. The authors' code uses raw features.
    """
    scale = recipe.data.feature_scale
    if scale == "auto":
        scale = "none" if recipe.model.get("fidelity") == "released" else "unit"
    if store.rows.ndim != 3 or scale == "none":  # images, or raw
        return 1.0
    return 1 / (root_mean_square(store.rows) or 1.0)


def _skipped(split: Split, store: Store) -> str:
    skipped = [example for example in split.examples if example.image not in store.row_of]
    if not skipped:
        return ""
    images = len({example.image for example in skipped})
    return (
        f"{len(skipped):,} of {len(split.examples):,} questions of {split.name}: "
        f"{images:,} {plural(images, 'image is', 'images are')} damaged (see {store.path})"
    )
