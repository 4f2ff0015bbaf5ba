"""The scale of features: around 1 for the paper's form, unchanged for the code's."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from vqa_repro.features.provider import Runtime, open_features, open_or_extract, root_mean_square
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


def test_a_test_whose_answers_are_hidden_cannot_be_looked_at(
    drawn_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "own"
    shutil.copytree(drawn_folder, folder)
    (folder / "val_questions.json").rename(folder / "test_questions.json")
    changes = {"data.name": str(folder), "data.test": "test", "training.test_every": 1}
    recipe = load_recipe("easy-vqa", changes)
    runtime = Runtime(torch.device("cpu"), root=tmp_path)
    splits = load_splits(recipe, tmp_path)
    store = open_or_extract(recipe.data, splits, runtime)
    run = new_run(recipe, tmp_path, splits[0], store)
    with pytest.raises(UserError, match=r"training\.test_every.*hidden"):
        prepare(run, splits, store, runtime)


@pytest.mark.parametrize("name", ["vgg19-cafe", "vgg19-bfloat16", "resnet50-v2"])
def test_a_mistyped_backbone_is_not_another_one(name: str, tmp_path: Path) -> None:
    store = tmp_path / "features" / f"easy-vqa-{name.partition('-')[0]}-torchvision.safetensors"
    store.parent.mkdir()
    store.touch()
    data = load_recipe("easy-vqa", {"data.features": name}).data
    with pytest.raises(UserError, match=name):
        open_or_extract(data, [], Runtime(torch.device("cpu"), root=tmp_path))
