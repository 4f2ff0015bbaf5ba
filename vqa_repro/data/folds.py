"""Folds for cross-validation: parts of a training split that share no scene.

Photos of DAQUAR come from NYU Depth v2, where those of one room have consecutive numbers. With a
room on both sides, learning the training photos by heart would look like learning to answer, so
whole stretches of consecutive numbers belong to one fold. Elsewhere whole images do.
"""

import heapq
import re
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from vqa_repro.data.types import Split
from vqa_repro.utils.errors import UserError

# Missing numbers within a stretch: a photo without questions must not divide a room.
MAX_GAP = 1


def image_groups(images: Iterable[str], sequences: bool) -> dict[str, str]:
    """Return the group of each image, named by its first image.

    sequences: whether images with consecutive numbers belong together.
    """
    ordered = sorted(set(images), key=lambda image: (_number(image), image))
    if not sequences:
        return {image: image for image in ordered}
    groups: dict[str, str] = {}
    before = -MAX_GAP - 2
    for image in ordered:
        number = _number(image)
        if number - before > MAX_GAP + 1:
            first = image
        groups[image] = first
        before = number
    return groups


def assign_folds(groups: dict[str, str], count: int) -> dict[str, int]:
    """Return the fold, from 1 to ``count``, of each group: folds of about as many images.

    Does not depend on a run's seed, so that runs can be compared.
    """
    names = sorted(set(groups.values()))
    sizes = dict.fromkeys(names, 0)
    for group in groups.values():
        sizes[group] += 1
    shuffled = [names[i] for i in np.random.default_rng(0).permutation(len(names))]
    smallest = [(0, fold) for fold in range(1, count + 1)]
    folds = {}
    for name in sorted(shuffled, key=lambda name: -sizes[name]):
        images, fold = heapq.heappop(smallest)
        folds[name] = fold
        heapq.heappush(smallest, (images + sizes[name], fold))
    return folds


def split_fold(split: Split, fold: str, sequences: bool) -> tuple[Split, Split]:
    """Return ``split`` without the fold "2/5" of it, and that fold.

    Raise UserError for a fold that does not exist or has no images.
    """
    number, _, count = fold.partition("/")
    groups = image_groups(split.images, sequences)
    folds = assign_folds(groups, int(count))
    if int(count) < 2 or int(number) > int(count) or int(count) > len(folds):
        raise UserError(
            f'data.fold = "{fold}" (--folds): write K/N with K from 1 to N and N from 2 to '
            f"{len(folds)}, the groups of images in {split.data}, {split.name}"
        )

    def part(name: str, inside: bool) -> Split:
        images = {
            image: path
            for image, path in split.images.items()
            if (folds[groups[image]] == int(number)) == inside
        }
        examples = [example for example in split.examples if example.image in images]
        return replace(split, name=name, examples=examples, images=images)

    rest, held_out = f"{split.name} without fold {fold}", f"{split.name}, fold {fold}"
    return part(rest, False), part(held_out, True)


def _number(image: str) -> int:
    """Return the last number in an image's key; -1 without one."""
    found = re.findall(r"\d+", image)
    return int(found[-1]) if found else -1
