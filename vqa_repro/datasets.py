"""Which data sets there are. Adding one: a module that yields Examples, and a line here."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from vqa_repro import coco_qa, daquar, easy_vqa, vqa_json
from vqa_repro.errors import UserError
from vqa_repro.example import Split


class DataSet(NamedTuple):
    load: Callable[[Path, str], Split]
    splits: Sequence[str]  # those that together hold every picture, each once


def _vqa(version: str) -> DataSet:
    def load(root: Path, split: str) -> Split:
        return vqa_json.load(root, version, split)

    return DataSet(load, ("train", "val", "test2015"))


DATA_SETS = {
    "easy-vqa": DataSet(easy_vqa.load, easy_vqa.SPLITS),
    "vqa-v1": _vqa("v1"),
    "vqa-v2": _vqa("v2"),
    "coco-qa": DataSet(coco_qa.load, coco_qa.SPLITS),
    "daquar": DataSet(daquar.load, daquar.SPLITS),
    "daquar-reduced": DataSet(daquar.load_reduced, daquar.SPLITS),
}


def find_data_set(data: str) -> DataSet:
    """The data set called ``data``, or the folder of VQA-format JSON and pictures of that path."""
    if data in DATA_SETS:
        return DATA_SETS[data]
    folder = Path(data)
    if folder.is_dir():
        return DataSet(partial(_load_folder, folder), ("train", "val", "test"))
    raise UserError(f"--data {data}: no such folder or data set; there are {', '.join(DATA_SETS)}")


def _load_folder(folder: Path, root: Path, split: str) -> Split:
    return vqa_json.load_folder(folder, split)


def load_split(data: str, root: Path, split: str) -> Split:
    """Read ``split`` of the data set called ``data`` from below ``root``."""
    return find_data_set(data).load(root, split)


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
