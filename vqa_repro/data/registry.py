"""The data sets. To add one, write a module that yields Examples and add a line here."""

import hashlib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from vqa_repro.data import coco_qa, daquar, easy_vqa, vqa
from vqa_repro.data.folder import load_folder
from vqa_repro.data.sources import MissingFileError
from vqa_repro.data.types import Split
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.paths import expand


class DataSet(NamedTuple):
    load: Callable[[Path, str], Split]
    splits: Sequence[str]  # those that together contain every image once
    images: str  # the image collection: data sets with the same one share their features
    wups: bool = False  # also scored with WUPS
    sequences: bool = False  # images with consecutive numbers may show one scene
    address: str = ""  # where its authors publish it
    single_answers: Callable[[Split], Split] = daquar.single_answers  # removes "table, chair"


def _vqa(version: str) -> DataSet:
    def load(root: Path, split: str) -> Split:
        return vqa.load(root, version, split)

    folder = {"v1": "https://s3.amazonaws.com/cvmlp", "v2": "https://cvmlp.s3.amazonaws.com"}
    address = f"{folder[version]}/vqa/mscoco/vqa/"
    return DataSet(load, ("train", "val", "test2015"), "coco", address=address)


_COCO_QA = "http://www.cs.toronto.edu/~mren/imageqa/data/cocoqa/"
_DAQUAR = "http://datasets.d2.mpi-inf.mpg.de/mateusz14visual-turing/"

DATASETS = {
    "easy-vqa": DataSet(easy_vqa.load, easy_vqa.SPLITS, "easy-vqa"),
    "vqa-v1": _vqa("v1"),
    "vqa-v2": _vqa("v2"),
    "coco-qa": DataSet(coco_qa.load, coco_qa.SPLITS, "coco", wups=True, address=_COCO_QA),
    "daquar": DataSet(
        daquar.load, daquar.SPLITS, "daquar", wups=True, sequences=True, address=_DAQUAR
    ),
    "daquar-reduced": DataSet(
        daquar.load_reduced, daquar.SPLITS, "daquar", wups=True, sequences=True, address=_DAQUAR
    ),
}


def find_data_set(data: str) -> DataSet:
    """Return the data set called ``data``, or the one in the folder of that path."""
    if data in DATASETS:
        return DATASETS[data]
    folder = expand(data)
    if folder.is_dir():
        # Folders may share a name, and names of images too: the path distinguishes them.
        digest = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
        return DataSet(
            partial(_load_folder, folder),
            ("train", "val", "test"),
            f"{folder.resolve().name}-{digest}",
        )
    raise UserError(f"{data}: no such folder or data set; the data sets are {', '.join(DATASETS)}")


def is_same(one: str, other: str) -> bool:
    """Return whether both are the name of one data set, or paths of one folder."""
    if one in DATASETS or other in DATASETS:
        return one == other
    return expand(one).resolve() == expand(other).resolve()


def _load_folder(folder: Path, root: Path, split: str) -> Split:
    return load_folder(folder, split)


def load_split(data: str, root: Path, split: str, *, single_answers: bool = False) -> Split:
    """Read ``split`` of the data set called ``data`` from below ``root``.

    single_answers: only the questions with one answer, the part that SAN used of DAQUAR.
    """
    data_set = find_data_set(data)
    try:
        whole = data_set.load(root, split)
    except MissingFileError as error:
        if not data_set.address:
            raise
        raise MissingFileError(
            f"{error}; published at {data_set.address} (docs/data.md lists the files)"
        ) from None
    return data_set.single_answers(whole) if single_answers else whole


def load_scored(data: str, root: Path) -> Split:
    """Return the split to score: "test" or, if that is absent or its answers are hidden, "val".

    With neither, "test" with its hidden answers. Raise UserError for a damaged split, or none.
    """
    hidden, absent = None, None
    for name in ("test", "val"):
        if name not in find_data_set(data).splits:
            continue
        try:
            split = load_split(data, root, name)
        except MissingFileError as error:
            absent = absent or error
            continue
        if not split.hidden:
            return split
        hidden = hidden or split
    if hidden is None:
        raise absent or UserError(f"{data}: has neither a split test nor val")
    return hidden


def load_all(data: str, root: Path) -> list[Split]:
    """Return the splits of ``data`` that can be read below ``root``; print why others cannot.

    Raise UserError if there is none.
    """
    splits, missing = [], []
    for name in find_data_set(data).splits:
        try:
            splits.append(load_split(data, root, name))
        except UserError as error:
            missing.append(error)
    if not splits:
        raise missing[0]
    for reason in missing:
        print(f"note: skipped: {reason}", file=sys.stderr)
    return splits
