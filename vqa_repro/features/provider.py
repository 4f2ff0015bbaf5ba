"""The features of a run: the recipe's words -> an open store, made where it does not exist yet."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from vqa_repro.data.types import Split
from vqa_repro.extract import extract, seeded, store_path
from vqa_repro.features.backbones import BACKBONES, FrozenBackbone, Preprocess
from vqa_repro.features.extraction import store_pixels
from vqa_repro.features.store import Store, open_store
from vqa_repro.recipe import Data
from vqa_repro.utils.device import describe
from vqa_repro.utils.errors import UserError

NO_PICTURE = {"backbone": "no picture"}  # made_by of the features of models that see none


def open_features(
    data: Data,
    root: Path,
    splits: Sequence[Split],
    device: torch.device,
    weights: Path | None = None,
    *,
    leave_out_damaged: bool = False,
) -> Store:
    """The store with a row for every picture of ``splits``, made where it does not exist yet.

    weights: the frozen backbone's checkpoint; by default the seeded one. Raises UserError for
    features that are not there and cannot be made, or lack a picture.
    """
    images = {key: path for split in splits for key, path in split.images.items()}
    if data.features == "none":
        rows = np.zeros((len(images), 1, 1), np.float16)
        return Store(Path("no picture"), rows, {key: i for i, key in enumerate(images)}, NO_PICTURE)
    if data.features == "cnn":
        path = store_path(root, data.name, f"pixels{data.picture_size}")
        if path.exists():  # as it is, with what it was made to leave out
            store = open_store(path)
            if images.keys() <= store.row_of.keys() | store.left_out.keys():
                return store
        return store_pixels(images, path, data.picture_size, leave_out_damaged=leave_out_damaged)
    path = Path(data.features)
    fix = "were they made from another data set?"
    backbone, preprocess = frozen(data.features)
    if backbone in BACKBONES:
        path = store_path(root, data.name, backbone, preprocess)
        fix = (
            f"`python -m vqa_repro.extract --data {data.name} --backbone {backbone} "
            f"--preprocess {preprocess}` adds them"
        )
        if not path.exists():
            network = FrozenBackbone(backbone, weights or seeded(data.features), preprocess, device)
            print(
                f"  no features yet; {len(images):,} pictures through {data.features} "
                f"({network.made_by['weights']}) on {describe(device)} -> {path}"
            )
            return extract(images, path, network, leave_out_damaged=leave_out_damaged)
    store = open_store(path)
    absent = [key for key in images if key not in store.row_of and key not in store.left_out]
    if absent:
        raise UserError(
            f"{path}: has no features for {len(absent)} of {len(images)} pictures, e.g. "
            f"{absent[0]}; {fix}"
        )
    return store


def frozen(features: str) -> tuple[str, Preprocess]:
    """ "vgg19-caffe" -> the backbone vgg19, with the weights of the original Caffe release."""
    backbone, _, release = features.partition("-")
    return backbone, "caffe" if release == "caffe" else "torchvision"


def root_mean_square(rows: npt.NDArray[Any]) -> float:
    """Of the numbers in up to 256 rows, taken evenly."""
    some = rows[:: max(1, len(rows) // 256)]
    return float(np.sqrt(np.mean([np.square(row, dtype=np.float32).mean() for row in some])))
