"""Whether an image is unlike the training images."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from vqa_repro.evaluation.familiarity import (
    NAME,
    averaged,
    image_statistics,
    read_statistics,
    write_statistics,
)
from vqa_repro.features.store import Store
from vqa_repro.models.network import VQAModel
from vqa_repro.utils.errors import UserError


def test_the_limit_holds_99_percent_of_the_training_and_others_are_beyond(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(3, [1.0, 5.0, 0.1], (500, 4, 3)).astype(np.float16)
    store = Store(tmp_path, rows, {str(n): n for n in range(500)}, {})
    network = VQAModel(None, nn.Linear(3, 2))
    found = image_statistics(network, store, list(store.row_of))
    assert found is not None and found.images == 500
    write_statistics(tmp_path, found)
    again = read_statistics(tmp_path, 3)
    assert again is not None
    features = averaged(network, torch.from_numpy(rows))
    # The definition, in float64, with the covariance diagonal.
    z = (features - features.mean(0, dtype=np.float64)) / features.std(0, dtype=np.float64)
    expected = np.sqrt((z**2).mean(1))
    distances = np.array([again.distance(row) for row in features])
    assert np.allclose(distances, expected / np.percentile(expected, 99), rtol=0.02)
    assert np.mean(distances <= 1) == pytest.approx(0.99, abs=0.01)
    assert again.distance(np.array([3, 3, 9], np.float32)) > 10
    assert image_statistics(network, store, ["0"]) is None


def test_images_are_taken_evenly_from_many(tmp_path: Path) -> None:
    rows = np.zeros((3999, 1, 1), np.float16)
    rows[2000:] = 1
    store = Store(tmp_path, rows, {str(n): n for n in range(3999)}, {})
    found = image_statistics(VQAModel(None, nn.Linear(1, 2)), store, list(store.row_of))
    assert found is not None and found.images == 2000
    assert float(found.mean[0]) == pytest.approx(0.5, abs=0.001)


@pytest.mark.parametrize(
    "change", [{"mean": [1.0]}, {"deviation": [0.0, 1.0, 1.0]}, {"limit": None}, {"odd": 1}]
)
def test_damaged_statistics_are_one_line(tmp_path: Path, change: dict[str, object]) -> None:
    good = {"mean": [0.0] * 3, "deviation": [1.0] * 3, "limit": 1.0, "images": 5}
    (tmp_path / NAME).write_text(json.dumps({**good, **change}))
    with pytest.raises(UserError, match="image_statistics") as error:
        read_statistics(tmp_path, 3)
    assert "\n" not in str(error.value)
    assert read_statistics(tmp_path / "elsewhere", 3) is None
