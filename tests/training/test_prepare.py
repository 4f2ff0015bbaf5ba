"""The scale of features: around 1 for the paper's form, unchanged for the code's."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vqa_repro.features.provider import Runtime, open_features, root_mean_square
from vqa_repro.features.store import StoreWriter
from vqa_repro.recipe import load_recipe
from vqa_repro.training.prepare import load_splits, new_run, prepare
from vqa_repro.utils.errors import UserError


def test_root_mean_square() -> None:
    rows = np.full((1000, 4, 3), 2.0, np.float16)
    rows[::2] = 0
    assert root_mean_square(rows[::2]) == 0
    assert root_mean_square(rows[1::2]) == 2
    wide = np.full((2, 100, 100), 300.0, np.float16)  # their squares overflow float16
    assert root_mean_square(wide) == 300


@pytest.mark.parametrize(
    ("fidelity", "feature_scale", "expected"),
    [
        ("paper", "auto", 0.2),
        ("released", "auto", 1.0),
        ("paper", "none", 1.0),
        ("released", "unit", 0.2),
    ],
)
def test_region_vectors_are_scaled_as_the_recipe_says(
    fidelity: str, feature_scale: str, expected: float, drawn_folder: Path, tmp_path: Path
) -> None:
    keys = []
    for split in ("train", "val"):
        asked = json.loads((drawn_folder / f"{split}_questions.json").read_text())["questions"]
        keys += sorted({str(question["image_id"]) for question in asked})
    writer = StoreWriter(tmp_path / "f.safetensors", keys, (4, 6), np.float16, {"backbone": "x"})
    for row in range(len(keys)):
        writer.write(row, np.full((4, 6), 5.0))
    writer.finish()
    changes = {
        "data.name": str(drawn_folder),
        "data.test": "val",
        "data.features": str(tmp_path / "f.safetensors"),
        "model.fidelity": fidelity,
        "data.feature_scale": feature_scale,
    }
    recipe = load_recipe("easy-vqa", changes)
    runtime = Runtime(torch.device("cpu"), root=tmp_path)
    splits = load_splits(recipe, tmp_path)
    store = open_features(recipe.data, splits, runtime)
    run = new_run(recipe, tmp_path, splits[0], store)
    data = prepare(run, splits, store, runtime)
    assert run.features["scale"] == expected
    assert run.features["channels"] == 6 and len(data.test) == 36
    best = load_recipe("easy-vqa", {**changes, "training.keep": "best", "data.validation": 0.001})
    with pytest.raises(UserError, match=r"too few images .* data.validation"):
        prepare(new_run(best, tmp_path, splits[0], store), splits, store, runtime)
