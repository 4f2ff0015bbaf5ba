"""The CPU's attention kernels against the plain form: values, gradients, dropout, refusals."""

import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from conftest import LIMIT, PROJECT, environ
from torch import Tensor

from vqa_repro.models.common import Dropout, QuestionGroups, group_by_image
from vqa_repro.models.ops import attention, reference

COUNTS = [3, 1, 2]  # questions about each of three images
N, IMAGES, R, T, D = 6, 3, 5, 4, 7
IMAGE_INDEX = torch.arange(IMAGES).repeat_interleave(torch.tensor(COUNTS))
GROUPS = group_by_image(IMAGE_INDEX, torch.empty(IMAGES))


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def scores_input(groups: QuestionGroups) -> list[Tensor]:
    return [numbers(len(groups.starts) - 1, R, D), numbers(N, D), numbers(D)]


def coattention_input(groups: QuestionGroups) -> list[Tensor]:
    images = len(groups.starts) - 1
    words = [numbers(N, T, D), numbers(N, T), numbers(N, T, D)]
    return [*words, numbers(images, R, D), numbers(images, R, D), numbers(D)]


@pytest.mark.parametrize(
    "groups",
    [
        GROUPS,
        group_by_image(IMAGE_INDEX[[5, 0, 3, 1, 4, 2]], torch.empty(IMAGES)),
        group_by_image(None, torch.empty(N)),
    ],
    ids=["grouped", "in any order", "one each"],
)
def test_values_and_gradients_are_those_of_the_plain_form(groups: QuestionGroups) -> None:
    torch.manual_seed(0)
    images = len(groups.starts) - 1
    for kernel, plain, inputs in (
        (attention.additive_scores, reference.additive_scores, scores_input(groups)),
        (attention.coattention, reference.coattention, coattention_input(groups)),
        (attention.pool, reference.pool, [numbers(N, R), numbers(images, R, D)]),
    ):
        ours, expected = kernel(*inputs, groups), plain(*inputs, groups)
        if isinstance(ours, Tensor):
            ours, expected = (ours,), (expected,)
        weights = [torch.randn_like(value) for value in expected]
        gradients = []
        for values in (ours, expected):
            total = sum((v * w).sum() for v, w in zip(values, weights, strict=True))
            gradients.append(torch.autograd.grad(total, inputs))
        for a, b in (*zip(ours, expected, strict=True), *zip(*gradients, strict=True)):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_strided_input_as_it_comes_from_a_joint_projection() -> None:
    image = numbers(IMAGES, R, 2 * D)
    question, w = numbers(N, D), numbers(D)
    for half in image.chunk(2, dim=2):
        ours = attention.additive_scores(half, question, w, GROUPS)
        expected = reference.additive_scores(half, question, w, GROUPS)
        a, b = (
            torch.autograd.grad(s.square().sum(), image, retain_graph=True)
            for s in (ours, expected)
        )
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_dropout_drops_its_share_and_the_gradient_matches() -> None:
    torch.manual_seed(0)
    drop, x = (
        Dropout(0.3),
        torch.ones(100, 10_001, dtype=torch.float64, requires_grad=True),
    )
    left = drop(x)
    assert abs((left == 0).double().mean() - 0.3) < 0.003
    assert abs(left.mean() - 1) < 0.003
    left.sum().backward()
    assert torch.equal(x.grad, left)
    assert torch.equal(drop.eval()(x), x)

    for kernel, inputs in (
        (attention.additive_scores, scores_input(GROUPS)),
        (attention.coattention, coattention_input(GROUPS)),
    ):

        def again(*given: Tensor, kernel: object = kernel) -> object:
            torch.manual_seed(1)  # the same numbers are left out
            return kernel(*given, GROUPS, 0.5)  # type: ignore[operator]

        assert torch.autograd.gradcheck(again, inputs)


def test_dropout_is_right_on_average() -> None:
    torch.manual_seed(0)
    inputs = [value.detach() for value in scores_input(GROUPS)]
    mean = sum(attention.additive_scores(*inputs, GROUPS, 0.5) for _ in range(4000)) / 4000
    torch.testing.assert_close(mean, attention.additive_scores(*inputs, GROUPS), rtol=0, atol=0.2)


def test_low_precision_comes_out_in_float32() -> None:
    inputs = [value.detach().bfloat16() for value in scores_input(GROUPS)]
    scores = attention.additive_scores(*inputs, GROUPS)
    assert scores.dtype == torch.float32
    exact = reference.additive_scores(*(v.double() for v in inputs), GROUPS)
    torch.testing.assert_close(scores.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="there is no Triton for this platform")
def test_triton_kernels_in_the_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/triton_kernels.py"],
        cwd=PROJECT,
        env={**environ(), "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout and "skipped" not in done.stdout


def test_cards_older_than_triton_take_the_plain_form_and_say_why() -> None:
    for capability in ((5, 0), (6, 0), (6, 1)):
        assert "7.0" in str(attention.too_old_for_triton(capability))
    for capability in ((7, 0), (7, 5), (8, 9), (9, 0), (12, 0)):
        assert attention.too_old_for_triton(capability) is None


def test_without_triton_the_plain_form_computes_with_a_note(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Hides the module, also from `from package import module` after an earlier import.
    monkeypatch.delattr("vqa_repro.models.ops.triton_kernels", raising=False)
    monkeypatch.setitem(sys.modules, "vqa_repro.models.ops.triton_kernels", None)
    attention._triton_or_reference.cache_clear()
    try:
        assert attention._triton_or_reference(torch.device("cuda:0")) is reference
        assert attention._triton_or_reference(torch.device("cuda:0")) is reference
    finally:
        attention._triton_or_reference.cache_clear()
    assert capsys.readouterr().out.count("Triton kernels unavailable") == 1
