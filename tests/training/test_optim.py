"""Optimisers and schedules against what the papers' code does, written out by hand."""

import math
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from conftest import PROJECT, environ
from torch import nn

from vqa_repro.models.san import SAN
from vqa_repro.recipe import Training
from vqa_repro.training.optim import (
    before_step,
    learning_rate,
    make_optimizer,
    set_rate,
)
from vqa_repro.utils.device import use_precision

SAN_CODE = Training(
    epochs=50,
    learning_rate=0.05,
    optimizer="sgd",
    momentum=0.9,
    weight_decay=1e-3,
    embedding_rate=80.0,
    clip=0.1,
    clip_per="tensor",
    schedule="constant",
)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2)).double()


def with_gradients(net: nn.Sequential, factor: float) -> None:
    for number, parameter in enumerate(net.parameters()):
        parameter.grad = factor * torch.ones_like(parameter) * (number + 1)


def test_sgd_matches_the_san_code() -> None:
    """v = 0.9 v + g, p -= lr v, where g is the gradient of loss + 5e-4 sum p^2, each tensor's
    clipped to 0.1 on its own; word embeddings learn 80 times faster and do not decay."""
    net = network()
    optimizer = make_optimizer(SAN_CODE, net)
    expected = [p.detach().clone() for p in net.parameters()]
    v = [torch.zeros_like(p) for p in expected]
    for factor in (0.001, 3.0):  # below and above the clip
        with_gradients(net, factor)
        for i, p in enumerate(net.parameters()):
            g = p.grad.clone() + (0 if i == 0 else 2 * 5e-4 * expected[i])
            g = g * min(1.0, 0.1 / float(g.norm()))
            v[i] = 0.9 * v[i] + g
            expected[i] = expected[i] - 0.05 * (80 if i == 0 else 1) * v[i]
        before_step(SAN_CODE, net)
        set_rate(optimizer, learning_rate(SAN_CODE, 0, 10))
        optimizer.step()
        for ours, reference in zip(net.parameters(), expected, strict=True):
            torch.testing.assert_close(ours.detach(), reference, rtol=1e-12, atol=1e-12)


def test_each_layer_of_attention_is_clipped_on_its_own() -> None:
    net = SAN(9, 5, 6, embedding=4, hidden=4, attention=3, layers=2)
    logits = net(torch.randn(2, 4, 6), torch.tensor([[2], [3]]), torch.tensor([1, 1])).logits
    (1000 * logits.sum()).backward()
    before_step(replace(SAN_CODE, weight_decay=0.0), net)
    for layer in net.W_IA:
        assert math.isclose(layer.weight.grad.norm(), 0.1, rel_tol=1e-4)


def test_rmsprop_matches_the_hiecoatt_code() -> None:
    """s = 0.99 s + 0.01 g^2, p -= lr g / (sqrt(s) + 1e-8)."""
    training = Training(epochs=1, learning_rate=4e-4, optimizer="rmsprop", schedule="exponential")
    net = network()
    optimizer = make_optimizer(training, net)
    expected = [p.detach().clone() for p in net.parameters()]
    s = [torch.zeros_like(p) for p in expected]
    for step, factor in enumerate((1.0, -0.5, 2.0)):
        with_gradients(net, factor)
        rate = 4e-4 * math.exp(math.log(0.1) / 300 / 1200 * step)
        for i, p in enumerate(net.parameters()):
            s[i] = 0.99 * s[i] + 0.01 * p.grad**2
            expected[i] = expected[i] - rate * p.grad / (s[i].sqrt() + 1e-8)
        before_step(training, net)
        set_rate(optimizer, learning_rate(training, step, 10))
        optimizer.step()
    for ours, reference in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(ours.detach(), reference, rtol=1e-12, atol=1e-12)


def test_clipping_all_tensors_together() -> None:
    net = network()
    with_gradients(net, 3.0)
    before_step(replace(SAN_CODE, weight_decay=0.0, clip=0.5, clip_per="all"), net)
    norm = torch.cat([p.grad.flatten() for p in net.parameters()]).norm()
    assert math.isclose(norm, 0.5, rel_tol=1e-5)


def test_adamw_does_not_decay_biases_and_embeddings() -> None:
    training = Training(epochs=1, learning_rate=0.1, weight_decay=0.5)
    net = network()
    before = [p.detach().clone() for p in net.parameters()]
    with_gradients(net, 0.0)
    optimizer = make_optimizer(training, net)
    before_step(training, net)
    optimizer.step()
    after = list(net.parameters())
    torch.testing.assert_close(after[0].detach(), before[0])
    torch.testing.assert_close(after[1].detach(), before[1] * (1 - 0.1 * 0.5))
    torch.testing.assert_close(after[2].detach(), before[2])


@pytest.mark.parametrize(
    ("schedule", "step", "rate"),
    [
        ("constant", 90, 1.0),
        ("exponential", 50, 0.1),
        ("exponential", 100, 0.01),
        ("cosine", 0, 0.1),  # the first of ten steps of warm-up
        ("cosine", 10, 1.0),
        ("cosine", 55, 0.5),
        ("cosine", 100, 0.0),
    ],
)
def test_schedules(schedule: str, step: int, rate: float) -> None:
    training = Training(epochs=1, learning_rate=1.0, schedule=schedule, decade=50)
    assert math.isclose(learning_rate(training, step, 100), rate, abs_tol=1e-12)


def test_float32_is_float32_everywhere_and_tf32_is_for_those_who_choose_it() -> None:
    try:
        for precision in ("tf32", "float32", "tf32", "bfloat16"):
            use_precision(precision)
            flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
            assert flags == (precision == "tf32",) * 2
    finally:
        use_precision("float32")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="there is no Triton for this platform")
def test_the_fused_update_through_triton_s_interpreter() -> None:
    files = ["tests/fused_update_kernels.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
        cwd=PROJECT,
        env={**environ(), "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
