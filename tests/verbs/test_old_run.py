"""Run folders and a feature store written by version 0.1, before the package had sub-packages.

``tests/data_files/old_run`` holds what that version's ``train`` wrote in six epochs: a SAN on the
features of ``features.safetensors``, and a question-only model. Paths in it are relative to it.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import run_verb
from safetensors.numpy import load_file

from vqa_repro.features.store import open_store
from vqa_repro.run import open_run

OLD = Path(__file__).parents[1] / "data_files" / "old_run"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD, tmp_path / "old"))


def test_an_old_run_and_its_store_open() -> None:
    run = open_run(OLD / "run")
    assert run.finished and run.recipe.training.epochs == 6
    assert run.features["channels"] == 8 and len(run.log()) == 8
    store = open_store(OLD / "features.safetensors")
    assert store.rows.shape == (52, 4, 8) and store.rows.dtype == np.float16
    assert store.fingerprint() == run.features["fingerprint"]
    assert open_run(OLD / "question-only").recipe.model["name"] == "question-only"


def test_an_old_run_is_evaluated_to_the_same_figures(folder: Path) -> None:
    before = json.loads((folder / "run" / "metrics.json").read_text())["overall"]
    done = run_verb("evaluate", "--run", "run", "--device", "cpu", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert f"{before:.2f}%" in done.stdout


def test_an_old_run_answers_and_is_reported(folder: Path) -> None:
    image = next((folder / "drawn" / "images").glob("*.png"))
    asked = ("--image", image, "--question", "is it red?", "--device", "cpu")
    done = run_verb("predict", "--run", "question-only", *asked, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "yes" in done.stdout
    done = run_verb("report", "run", "question-only", "--out", "page.html", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "page.html").stat().st_size > 10_000


def test_an_old_checkpoint_resumes_to_the_same_weights(folder: Path) -> None:
    run = folder / "run"
    expected = load_file(run / "model.safetensors")
    for name in ("metrics.json", "results.json", "model.safetensors"):
        (run / name).unlink()
    recipe = json.loads((run / "recipe.json").read_text())
    options = [f"{key}={_value(recipe, key)}" for key in recipe["changed"]]
    changes = [word for option in options for word in ("--set", option)]
    command = ("train", "--recipe", "easy-vqa", "--resume", "--out", "run", "--device", "cpu")
    done = run_verb(*command, *changes, cwd=folder)
    assert done.returncode == 0, done.stderr
    weights = load_file(run / "model.safetensors")
    assert weights.keys() == expected.keys()
    for name, values in weights.items():  # another processor may sum in a different order
        np.testing.assert_allclose(values, expected[name], rtol=1e-3, atol=1e-5, err_msg=name)


def _value(recipe: dict[str, Any], key: str) -> str:
    section, _, option = key.partition(".")
    return json.dumps(recipe[section][option])
