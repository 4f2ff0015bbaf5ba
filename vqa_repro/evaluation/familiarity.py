"""How unlike the training images an image is: a warning, not a proof of anything.

image_statistics.json of a run folder has mean and standard deviation of the training images'
features, averaged over regions. The distance of an image is the root mean square over the channels
of its standardised features (a Mahalanobis distance with a diagonal covariance), in units of the
distance that 99% of the training images stay below.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from msgspec import Meta

from vqa_repro.features.store import Store
from vqa_repro.models.network import VQAModel
from vqa_repro.run import WIDEST
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.files import read_json, write_json
from vqa_repro.utils.schema import convert

NAME = "image_statistics.json"
IMAGES = 2000  # of the training, at most
BATCH = 50  # images
WITHIN = 99  # percent of the training images

Number = Annotated[float, Meta(ge=-1e30, le=1e30)]
Positive = Annotated[float, Meta(gt=0, le=1e30)]


class ImageStatistics(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of the features (C,) of the training images, averaged over regions."""

    mean: Annotated[list[Number], Meta(min_length=1, max_length=WIDEST)]
    deviation: Annotated[list[Positive], Meta(min_length=1, max_length=WIDEST)]
    limit: Positive  # the distance that WITHIN percent of the images stay below
    images: Annotated[int, Meta(ge=1)]

    def distance(self, features: npt.NDArray[np.float32]) -> float:
        """Return the distance of an image with averaged ``features`` (C,); 1 is ``limit``."""
        return float(_distances(features[None], self)[0]) / self.limit


def _distances(
    features: npt.NDArray[np.float32], of: ImageStatistics
) -> npt.NDArray[np.floating[Any]]:
    """Return the root mean square (N,) of the standardised ``features`` (N, C)."""
    standard = (features - np.array(of.mean)) / np.array(of.deviation)
    return np.sqrt(np.mean(standard**2, axis=1))


@torch.inference_mode()
def averaged(network: VQAModel, rows: torch.Tensor) -> npt.NDArray[np.float32]:
    """Return the features (N, C) that ``network`` sees of ``rows`` of a store, averaged."""
    training = network.training
    network.eval()
    grid = rows if network.cnn is None else network.cnn(rows)
    network.train(training)
    pooled: npt.NDArray[np.float32] = grid.float().mean(dim=1).cpu().numpy()
    return pooled


def image_statistics(
    network: VQAModel, store: Store, images: Sequence[str]
) -> ImageStatistics | None:
    """Return the statistics of up to IMAGES of ``images``, taken evenly; None with too few."""
    rows = sorted(store.row_of[key] for key in images if key in store.row_of)
    if len(rows) > IMAGES:
        rows = [rows[i * len(rows) // IMAGES] for i in range(IMAGES)]
    if len(rows) < 2:
        return None
    device = next(network.parameters()).device
    parts = [
        averaged(network, torch.from_numpy(store.rows[rows[i : i + BATCH]]).to(device))
        for i in range(0, len(rows), BATCH)
    ]
    features = np.concatenate(parts).astype(np.float64)
    deviation = features.std(axis=0)
    deviation += 1e-3 * deviation.mean() + 1e-12  # channels that are nearly constant
    found = ImageStatistics(features.mean(axis=0).tolist(), deviation.tolist(), 1.0, len(rows))
    limit = float(np.percentile(_distances(features.astype(np.float32), found), WITHIN))
    return msgspec.structs.replace(found, limit=max(limit, 1e-12))


def write_statistics(folder: Path, statistics: ImageStatistics) -> None:
    rounded = {
        key: [float(f"{number:.5g}") for number in value] if isinstance(value, list) else value
        for key, value in msgspec.to_builtins(statistics).items()
    }
    write_json(folder / NAME, rounded)


def read_statistics(folder: Path, channels: int) -> ImageStatistics | None:
    """Return the statistics in a run folder, None if there are none (of an early version).

    Raise UserError, naming the file, if it is damaged or has not ``channels`` numbers.
    """
    path = folder / NAME
    if not path.exists():
        return None
    damaged = f"{path}: damaged; delete it, or copy it again"
    found = convert(read_json(path), ImageStatistics, damaged)
    if not len(found.mean) == len(found.deviation) == channels:
        raise UserError(f"{damaged}: {len(found.mean)} means of {channels} channels")
    return found
