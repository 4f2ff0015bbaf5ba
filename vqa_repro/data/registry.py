"""Which data sets there are. Adding one: a module that yields Examples, and a line here."""

import hashlib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from vqa_repro.data import coco_qa, daquar, easy_vqa, vqa
from vqa_repro.data.folder import load_folder
from vqa_repro.data.types import Split
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.paths import expand


class DataSet(NamedTuple):
    load: Callable[[Path, str], Split]
    splits: Sequence[str]  # those that together hold every picture, each once
    pictures: str  # whose they are: data sets that ask about the same ones share their features
    wups: bool = False  # is scored with WUPS too
    single_answers: Callable[[Split], Split] = daquar.single_answers  # no "table, chair"


def _vqa(version: str) -> DataSet:
    def load(root: Path, split: str) -> Split:
        return vqa.load(root, version, split)

    return DataSet(load, ("train", "val", "test2015"), "coco")


DATASETS = {
    "easy-vqa": DataSet(easy_vqa.load, easy_vqa.SPLITS, "easy-vqa"),
    "vqa-v1": _vqa("v1"),
    "vqa-v2": _vqa("v2"),
    "coco-qa": DataSet(coco_qa.load, coco_qa.SPLITS, "coco", wups=True),
    "daquar": DataSet(daquar.load, daquar.SPLITS, "daquar", wups=True),
    "daquar-reduced": DataSet(daquar.load_reduced, daquar.SPLITS, "daquar", wups=True),
}


def find_data_set(data: str) -> DataSet:
    """The data set called ``data``, or the folder of VQA-format JSON and pictures of that path."""
    if data in DATASETS:
        return DATASETS[data]
    folder = expand(data)
    if folder.is_dir():
        # Folders of one's own may share a name, and their pictures too: the path tells them apart.
        where = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
        return DataSet(
            partial(_load_folder, folder),
            ("train", "val", "test"),
            f"{folder.resolve().name}-{where}",
        )
    raise UserError(f"--data {data}: no such folder or data set; there are {', '.join(DATASETS)}")


def _load_folder(folder: Path, root: Path, split: str) -> Split:
    return load_folder(folder, split)


def load_split(data: str, root: Path, split: str, *, single_answers: bool = False) -> Split:
    """Read ``split`` of the data set called ``data`` from below ``root``.

    single_answers: only the questions with one answer, the part that SAN used of DAQUAR.
    """
    data_set = find_data_set(data)
    whole = data_set.load(root, split)
    return data_set.single_answers(whole) if single_answers else whole


def load_all(data: str, root: Path) -> list[Split]:
    """Every split of ``data`` that can be read below ``root``; the others are said.

    Raises UserError if none can be.
    """
    data_set = find_data_set(data)
    splits, missing = [], []
    for name in data_set.splits:
        try:
            splits.append(data_set.load(root, name))
        except UserError as error:
            missing.append(error)
    if not splits:
        raise missing[0]
    for reason in missing:
        print(f"note: left out: {reason}", file=sys.stderr)
    return splits
