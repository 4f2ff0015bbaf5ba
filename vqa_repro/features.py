"""The features of a run: the recipe's words -> an open store, made where it does not exist yet."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vqa_repro.backbone import BACKBONES
from vqa_repro.datasets import DATA_SETS
from vqa_repro.errors import UserError
from vqa_repro.example import Split
from vqa_repro.recipe import Data
from vqa_repro.store import Store, open_store, store_pixels


def open_features(data: Data, root: Path, splits: Sequence[Split]) -> Store:
    """The store with a row for every picture of ``splits``.

    "cnn" stores the pictures themselves, for a network that is trained along with the model.
    """
    images = {key: path for split in splits for key, path in split.images.items()}
    if data.features == "cnn":
        path = store_path(root, data.name, f"pixels{data.picture_size}")
        return store_pixels(images, path, data.picture_size)
    path = Path(data.features)
    if data.features in BACKBONES:
        path = store_path(root, data.name, data.features, "torchvision")
        if not path.exists():
            command = f"python -m vqa_repro.extract --data {data.name} --backbone {data.features}"
            raise UserError(f"{path}: no features yet; {command}")
    store = open_store(path)
    absent = [key for key in images if key not in store.row_of]
    if absent:
        raise UserError(
            f"{path}: has no features for {len(absent)} of {len(images)} pictures, e.g. "
            f"{absent[0]}; were they made from another data set?"
        )
    return store


def store_path(root: Path, data: str, *what: str) -> Path:
    """Where the features of ``data`` made by ``what`` are kept.

    Folders of one's own may share a name, and their pictures too: the path tells them apart.
    """
    if data not in DATA_SETS:
        folder = Path(data).resolve()
        data = f"{folder.name}-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"
    return root / "features" / f"{'-'.join([data, *what])}.safetensors"


class Rows:
    """The rows of a store where the computing happens, if they fit; gathered from disk if not."""

    def __init__(self, store: Store, device: torch.device) -> None:
        self.device = device
        self._mapped = store.rows
        self.resident: Tensor | None = None
        if device.type == "cpu" or store.rows.nbytes < 0.8 * torch.cuda.mem_get_info(device)[0]:
            self.resident = torch.from_numpy(np.array(store.rows)).to(device)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """rows (I,) int64 -> (I, ...) on the device."""
        if self.resident is not None:
            return self.resident.index_select(0, rows)
        return torch.from_numpy(self._mapped[rows.cpu().numpy()]).to(self.device)
