"""Runs stored before an option existed, and invalid options."""

import json
from pathlib import Path

import pytest
import torch

from vqa_repro.data.vocabulary import Vocabulary
from vqa_repro.models.network import build, load_model, save_weights
from vqa_repro.recipe import load_recipe
from vqa_repro.run import Run, create_run, open_run
from vqa_repro.utils.errors import UserError

WORDS = Vocabulary(("<pad>", "<unk>", "what"), ("yes", "no", "red"))
FEATURES = {"channels": 8, "scale": 1.0, "made_by": {"backbone": "vgg19"}, "fingerprint": ""}


def stored_run(folder: Path, changes: dict[str, object]) -> Run:
    small = {"model.hidden": 6, "model.last_hidden": 5}
    recipe = load_recipe("hiecoatt-parallel-coco-qa", {**small, **changes})
    run = Run(folder, recipe, WORDS, FEATURES)
    create_run(run, {})
    torch.manual_seed(0)
    save_weights(build(run), folder / "model.safetensors")
    return run


def forget_new_options(folder: Path) -> None:
    """Change recipe.json to its form before data.feature_scale and model.bias existed."""
    raw = json.loads((folder / "recipe.json").read_text())
    del raw["data"]["feature_scale"]
    raw["model"].pop("bias", None)
    (folder / "recipe.json").write_text(json.dumps(raw))


@pytest.mark.parametrize(
    ("fidelity", "bias"), [("paper", False), ("released", True)], ids=["paper", "released"]
)
def test_a_run_stored_before_the_paper_s_biases_opens(
    fidelity: str, bias: bool, tmp_path: Path
) -> None:
    run = stored_run(tmp_path / "run", {"model.fidelity": fidelity, "model.bias": bias})
    before = load_model(run, torch.device("cpu")).state_dict()
    forget_new_options(run.folder)
    after = load_model(open_run(run.folder), torch.device("cpu")).state_dict()
    assert before.keys() == after.keys() and ("answerer.W_h.bias" in after) == bias
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_new_run_has_the_paper_s_biases(tmp_path: Path) -> None:
    run = stored_run(tmp_path / "run", {})
    network = load_model(open_run(run.folder), torch.device("cpu"))
    assert "answerer.W_h.bias" in network.state_dict()


def test_bias_is_true_or_false(tmp_path: Path) -> None:
    recipe = load_recipe("hiecoatt-parallel-coco-qa", {"model.bias": 1})
    with pytest.raises(UserError, match="bias"):
        build(Run(tmp_path, recipe, WORDS, FEATURES))
