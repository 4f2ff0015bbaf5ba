"""The fused update through Triton's interpreter, on the CPU; test_optim.py starts this by itself.

Reference: PyTorch's optimisers, on the same gradients in float64.
"""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from vqa_repro.recipe import Training
from vqa_repro.training import fused_update
from vqa_repro.training.optim import before_step, fuse, make_optimizer, set_rate

TRAINING = Training(
    epochs=1,
    learning_rate=0.05,
    optimizer="sgd",
    momentum=0.9,
    weight_decay=1e-3,
    embedding_rate=80.0,
    clip=0.1,
    clip_per="tensor",
)
CASES = {
    "SAN's": TRAINING,
    "clipped together": replace(TRAINING, clip_per="all", clip=0.7),
    "not clipped": replace(TRAINING, clip=0.0),
    "without decay": replace(TRAINING, weight_decay=0.0),
    "HieCoAtt's": replace(TRAINING, optimizer="rmsprop", clip=0.0, weight_decay=1e-8),
    "RMSprop, clipped": replace(TRAINING, optimizer="rmsprop"),
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(50, 30), nn.Linear(30, 20), nn.Linear(20, 1, bias=False))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("low", [False, True], ids=["float32", "a bfloat16 gradient"])
def test_it_takes_the_optimiser_s_steps(
    case: str, low: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused_update, "BLOCK", 128)  # several blocks a tensor
    training = CASES[case]
    ours = network()
    plain = copy.deepcopy(ours).double()
    optimizer, expected = make_optimizer(training, ours), make_optimizer(training, plain)
    for group in optimizer.param_groups:  # as on a GPU
        group["lr"] = torch.tensor(training.learning_rate)
    fused = fuse(training, ours, optimizer)
    for step, size in enumerate((1e-4, 1.0, 0.01, 3.0)):
        for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
            gradient = size * torch.randn_like(a)
            if low and a.ndim > 1:
                gradient = gradient.bfloat16().float()
            a.grad, b.grad = gradient, gradient.double()
        rate = 0.05 / (1 + step)
        set_rate(optimizer, rate)
        set_rate(expected, rate)
        fused.step()
        before_step(training, plain)
        expected.step()
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2e-5, atol=2e-6)
    for a, b in zip(optimizer.state.values(), expected.state.values(), strict=True):
        assert set(a) == set(b)


def test_it_is_checked_before_it_is_used() -> None:
    assert fused_update.self_test(torch.device("cpu")) is None


def test_a_resumed_state_goes_on_and_unused_weights_stay() -> None:
    ours, plain = network(), network()
    optimizer, expected = make_optimizer(TRAINING, ours), make_optimizer(TRAINING, plain)
    for network_, taken in ((ours, optimizer), (plain, expected)):
        for parameter in network_.parameters():
            parameter.grad = torch.ones_like(parameter)
        taken.step()
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(0.1)
    set_rate(expected, 0.1)
    set_rate(optimizer, 0.1)
    fused = fuse(TRAINING, ours, optimizer)
    ours[2].weight.grad = plain[2].weight.grad = None
    fused.step()
    before_step(TRAINING, plain)
    expected.step()
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
