"""The recipe for a data set that has none of its own: sizes from its questions and images."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vqa_repro.data.images import open_image
from vqa_repro.data.registry import load_scored, load_split
from vqa_repro.data.types import Split
from vqa_repro.evaluation.baselines import coverage, prior_and_coverage
from vqa_repro.features.extractor import cached_checkpoint
from vqa_repro.recipe import Recipe, load_recipe
from vqa_repro.run import Run
from vqa_repro.training.prepare import PreparedData
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.plurals import plural

ALL_ANSWERS = 1000  # up to so many, every answer is a class
COVERED = 0.95  # share of the training questions that the classes cover beyond that
MOST_ANSWERS = 5000
SMALL = 128  # pixels: images up to this size are not photos
QUESTIONS_SEEN = 400_000  # in all epochs together
EPOCHS = (10, 40)
FEWEST_TO_DIVIDE = 20  # training images; with fewer, all are trained on and none validated on
IMAGES_OPENED = 50  # to learn their size


def own_data_recipe(data: str, root: Path, changes: Mapping[str, Any]) -> Recipe:
    """Return a recipe for the data set or folder ``data`` with ``changes`` applied.

    It depends on the data alone, and on whether VGG-19's weights are on this machine: the same
    command makes the same recipe. Raise UserError if ``data`` cannot be read.
    """
    split = load_split(data, root, changes.get("data.train", "train"))
    tested = "test" if changes.get("data.fold") else ""  # which is not read then
    sizes = {
        "data.test": changes.get("data.test") or tested or load_scored(data, root).name,
        "data.num_answers": answers_to_keep(split),
        "training.epochs": epochs_for(len(split.examples)),
        **image_options(split),
    }
    if len(split.images) < FEWEST_TO_DIVIDE:
        sizes["data.validation"] = 0.0
    if not (sizes | dict(changes)).get("data.validation", 1.0):
        sizes["training.keep"] = "last"
    recipe = load_recipe("_own-data", {**sizes, **changes, "data.name": data})
    changed = [key for key in recipe.changed if key in changes and key != "data.name"]
    return replace(recipe, changed=changed)


def answers_to_keep(split: Split) -> int:
    """Return how many of the most frequent answers become classes."""
    counts = Counter(example.answer for example in split.examples if example.answer is not None)
    if len(counts) <= ALL_ANSWERS:
        return max(1, len(counts))
    needed, kept = COVERED * counts.total(), 0
    for number, (_, count) in enumerate(counts.most_common(MOST_ANSWERS), start=1):
        kept += count
        if kept >= needed and number >= ALL_ANSWERS:
            return number
    return MOST_ANSWERS


def epochs_for(questions: int) -> int:
    fewest, most = EPOCHS
    return min(most, max(fewest, round(QUESTIONS_SEEN / max(1, questions))))


def image_options(split: Split) -> dict[str, Any]:
    """Return the options of the image features.

    Photos go through VGG-19 if its weights are on this machine. Other images, and photos without
    the weights, go through a small CNN that is trained with the model.
    """
    side = _typical_side(split)
    if side > SMALL:
        for backbone in ("vgg19-caffe", "vgg19"):
            try:
                cached_checkpoint(backbone)
            except UserError:
                continue
            return {"data.features": backbone}
    return {"data.features": "cnn", "data.picture_size": SMALL if side > SMALL else 64}


def _typical_side(split: Split) -> float:
    """Return the median length in pixels of the longer side of some images; 0 without any."""
    paths = list(split.images.values())
    sides = []
    for path in paths[:: max(1, len(paths) // IMAGES_OPENED)]:
        try:
            with open_image(path) as image:
                sides.append(max(image.size))
        except Exception:  # missing or damaged: reading all images reports it
            continue
    return statistics.median(sides) if sides else 0.0


def describe_choice(recipe: Recipe) -> str:
    """Return a line on what ``own_data_recipe`` chose."""
    data = recipe.data
    pixels = f" ({data.picture_size} pixels a side)" if data.features == "cnn" else ""
    return (
        f"options for {data.name}: data.test={data.test}, data.num_answers={data.num_answers}, "
        f"data.features={data.features}{pixels}, training.epochs={recipe.training.epochs}, "
        f"data.validation={data.validation}; "
        "--set changes any of them, --recipe takes all from a recipe"
    )


def coverage_line(run: Run, data: PreparedData) -> str:
    """Return a line on images, the share of questions covered, and the prior; "" if hidden."""
    answers = run.vocabulary.answers
    train, test = data.train_split, data.test_split
    images = plural(len(test.images), "image", "images")
    line = f"  {len(train.images):,} training and {len(test.images):,} test {images}; "
    line += f"the answers cover {coverage(train, answers):.1f}% of {train.name}"
    figures = prior_and_coverage(test, answers)
    if not figures:
        return f"{line}\n"
    return (
        f"{line}, {figures['coverage']:.1f}% of {test.name}; always answering "
        f'"{answers[0]}" scores {figures["prior"]:.1f}%\n'
    )
