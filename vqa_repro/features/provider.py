"""The features of a run: from ``data.features`` of the recipe to an open store."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from vqa_repro.data.types import Split
from vqa_repro.features.backbones import BACKBONES, FrozenBackbone, Preprocess
from vqa_repro.features.extraction import store_pixels
from vqa_repro.features.extractor import cached_checkpoint, extract, store_path
from vqa_repro.features.loader import Placement
from vqa_repro.features.store import Store, open_store
from vqa_repro.recipe import Data
from vqa_repro.utils.device import describe
from vqa_repro.utils.distributed import SINGLE_PROCESS, World
from vqa_repro.utils.errors import UserError

NO_IMAGE = {"backbone": "no picture"}  # provenance of the features of models that see no image


@dataclass(frozen=True)
class Runtime:
    """Where and how a command computes."""

    device: torch.device
    world: World = SINGLE_PROCESS
    root: Path = Path("resources")  # of the data sets and their features
    weights: Path | None = None  # the frozen backbone's checkpoint; default: the downloaded one
    placement: Placement | None = None  # of the features; default: where they fit
    skip_damaged: bool = False  # skip the images that cannot be read


def open_features(data: Data, splits: Sequence[Split], runtime: Runtime) -> Store:
    """Open the store with a row for every image of ``splits``. Extract nothing.

    Raise UserError for a store that is missing, damaged, or lacks an image.
    """
    images = _images(splits)
    if data.features == "none":
        rows = np.zeros((len(images), 1, 1), np.float16)
        return Store(Path("no picture"), rows, {key: i for i, key in enumerate(images)}, NO_IMAGE)
    path, fix = features_path(data, runtime.root), "were they extracted from another data set?"
    if not is_file(data.features):
        backbone, preprocess = frozen(data.features)
        command = f"python -m vqa_repro.extract --data {data.name} --backbone {backbone} "
        command += f"--preprocess {preprocess}"
        fix = "train on it to add them" if data.features == "cnn" else f"`{command}` adds them"
        if not path.exists():
            raise UserError(f"{path}: missing: run `{command}`")
    store = open_store(path)
    absent = [key for key in images if key not in store.row_of and key not in store.left_out]
    if absent:
        raise UserError(
            f"{path}: has no features for {len(absent)} of {len(images)} images, e.g. "
            f"{absent[0]}; {fix}"
        )
    return store


def open_or_extract(
    data: Data,
    splits: Sequence[Split],
    runtime: Runtime,
    made_by: dict[str, Any] | None = None,
) -> Store:
    """Open the store as ``open_features`` does, after extracting what is missing.

    Stored images of networks that are trained with the model are completed; features of a frozen
    backbone are extracted if there is no store at all: with the provenance ``made_by``, if given.
    A line on standard error announces it. Raise UserError for weights of another provenance.
    """
    images, path = _images(splits), features_path(data, runtime.root)
    backbone, preprocess = frozen(data.features)
    if data.features == "cnn":
        if path.exists():  # complete, but for the damaged images that it skips
            store = open_store(path)
            if images.keys() <= store.row_of.keys() | store.left_out.keys():
                return store
        side = data.picture_size
        _announce(f"  storing {len(images):,} images at {side} pixels a side -> {path}", runtime)
        return store_pixels(images, path, data.picture_size, skip_damaged=runtime.skip_damaged)
    if backbone in BACKBONES and not path.exists():
        if made_by:
            network = FrozenBackbone.like(made_by, runtime.weights, runtime.device)
        else:
            weights = runtime.weights or cached_checkpoint(data.features)
            network = FrozenBackbone(backbone, weights, preprocess, runtime.device)
        _announce(
            f"  no features yet: extracting {len(images):,} images through {data.features} "
            f"({network.made_by['weights']}) on {describe(runtime.device)} -> {path}",
            runtime,
        )
        return extract(images, path, network, skip_damaged=runtime.skip_damaged)
    return open_features(data, splits, runtime)


def _announce(text: str, runtime: Runtime) -> None:
    if runtime.world.is_main:
        print(text, file=sys.stderr, flush=True)


def features_path(data: Data, root: Path) -> Path:
    """Return the path of the store for ``data.features``, whether it exists or not."""
    if is_file(data.features):
        return Path(data.features)
    if data.features == "cnn":
        return store_path(root, data.name, f"pixels{data.picture_size}")
    return store_path(root, data.name, *frozen(data.features))


def _images(splits: Sequence[Split]) -> dict[str, Path]:
    return {key: path for split in splits for key, path in split.images.items()}


def frozen(features: str) -> tuple[str, Preprocess]:
    """Return the backbone and the preprocessing of a frozen ``data.features``.

    "vgg19-caffe" is the backbone vgg19 with the weights of the original Caffe release.
    """
    backbone, _, release = features.partition("-")
    if release == "caffe":
        return backbone, "caffe"
    return features, "torchvision"  # a backbone, or something else, with its whole name


def is_file(features: str) -> bool:
    """Return whether ``data.features`` is the path of a store, not the name of a network."""
    return features not in ("cnn", "none") and frozen(features)[0] not in BACKBONES


def root_mean_square(rows: npt.NDArray[Any]) -> float:
    """Return the root mean square of 256 to 511 evenly spaced rows, or of all if they are fewer."""
    sample = rows[:: max(1, len(rows) // 256)]
    return float(np.sqrt(np.mean([np.square(row, dtype=np.float32).mean() for row in sample])))
