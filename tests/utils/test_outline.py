"""Outlines of networks have all shapes, take no memory, and import no more than needed."""

import subprocess
import sys

import pytest
import torch
from conftest import PROJECT, environ

from vqa_repro.models.hiecoatt import HieCoAtt
from vqa_repro.models.network import MODELS
from vqa_repro.utils.torch_utils import empty_weights


@pytest.mark.parametrize("name", MODELS)
def test_an_outline_has_the_shapes_and_takes_the_weights(name: str) -> None:
    model = MODELS[name](30, 7, 6)
    with empty_weights():
        outline = MODELS[name](30, 7, 6)
    assert all(parameter.is_meta for parameter in outline.parameters())
    outline.load_state_dict(model.state_dict(), assign=True)
    assert not any(parameter.is_meta for parameter in outline.parameters())
    with empty_weights():
        pass
    assert HieCoAtt(9, 2, 4, hidden=4).W_h.weight.device == torch.device("cpu")


def test_an_outline_is_made_without_sympy() -> None:
    """Initialisation on the meta device would import it, which takes seconds."""
    program = (
        "import sys; from vqa_repro.models.network import MODELS\n"
        "from vqa_repro.utils.torch_utils import empty_weights\n"
        "with empty_weights(): [make(30, 7, 6) for make in MODELS.values()]\n"
        "print('sympy' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT, env=environ(), capture_output=True, text=True
    )
    assert done.stdout.strip() == "False", done.stderr
