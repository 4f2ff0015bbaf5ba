"""Triton's kernels in its interpreter, on the CPU; test_attention.py runs this file."""

import pytest
import torch
from torch import Tensor

from vqa_repro.models.common import QuestionGroups, group_by_image
from vqa_repro.models.ops import reference, triton_kernels

COUNTS = [3, 0, 1, 2]  # questions about each of four images
N, IMAGES, R, K = 6, 4, 5, 7
IMAGE_INDEX = torch.arange(IMAGES).repeat_interleave(torch.tensor(COUNTS))
IDS = ["grouped", "in any order", "one each"]
GROUPS = group_by_image(IMAGE_INDEX, torch.empty(IMAGES))
ORDERS = [
    GROUPS,
    group_by_image(IMAGE_INDEX[[5, 0, 3, 1, 4, 2]], torch.empty(IMAGES)),
    group_by_image(None, torch.empty(N)),
]


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, requires_grad=True)


def scores_input(groups: QuestionGroups) -> list[Tensor]:
    return [numbers(len(groups.starts) - 1, R, K), numbers(N, K), numbers(K)]


def same(ours: Tensor, plain: Tensor, inputs: list[Tensor], tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(ours, plain, rtol=tolerance, atol=tolerance)
    weights = torch.randn_like(plain)
    gradients = [torch.autograd.grad((x * weights).sum(), inputs) for x in (ours, plain)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("groups", ORDERS, ids=IDS)
def test_scores(groups: QuestionGroups) -> None:
    torch.manual_seed(0)
    inputs = scores_input(groups)
    plain = reference.additive_scores(*inputs, groups)
    same(triton_kernels.additive_scores(*inputs, groups), plain, inputs)


@pytest.mark.parametrize("groups", ORDERS, ids=IDS)
@pytest.mark.parametrize("transposed", [False, True])
def test_scores_with_a_term_per_question_and_region(
    groups: QuestionGroups, transposed: bool
) -> None:
    torch.manual_seed(0)
    image, _, w = scores_input(groups)
    question = numbers(R, N, K) if transposed else numbers(N, R, K)
    inputs = [image, question, w]
    given = [image, question.transpose(0, 1) if transposed else question, w]
    plain = reference.additive_scores(*given, groups)
    same(triton_kernels.additive_scores(*given, groups), plain, inputs)


@pytest.mark.parametrize("groups", ORDERS, ids=IDS)
def test_pooling(groups: QuestionGroups) -> None:
    torch.manual_seed(0)
    inputs = [numbers(N, R), numbers(len(groups.starts) - 1, R, K)]
    plain = reference.pool(*inputs, groups)
    same(triton_kernels.pool(*inputs, groups), plain, inputs)


def test_blocks_smaller_than_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    for tile in ("TILE", "POOL_TILE"):
        monkeypatch.setattr(triton_kernels, tile, 16)
    image, question, w = scores_input(GROUPS)
    for inputs in ([image, question, w], [image, numbers(N, R, K), w]):
        plain = reference.additive_scores(*inputs, GROUPS)
        same(triton_kernels.additive_scores(*inputs, GROUPS), plain, inputs)
    inputs = [numbers(N, R), numbers(IMAGES, R, K)]
    plain = reference.pool(*inputs, GROUPS)
    same(triton_kernels.pool(*inputs, GROUPS), plain, inputs)


def test_a_part_of_a_joint_projection() -> None:
    torch.manual_seed(0)
    image = numbers(IMAGES, R, 2 * K)
    for half in image.chunk(2, dim=2):
        inputs = [image, numbers(N, K), numbers(K)]
        plain = reference.additive_scores(half, *inputs[1:], GROUPS)
        same(triton_kernels.additive_scores(half, *inputs[1:], GROUPS), plain, inputs)


@pytest.mark.parametrize("of_regions", [False, True])
def test_dropout_uses_one_mask_and_drops_its_share(of_regions: bool) -> None:
    """Read the mask from the kernel, column by column, and use it in the plain form."""
    image, question, w = scores_input(GROUPS)
    if of_regions:
        question = numbers(N, R, K)
    columns = []
    for k in range(K):
        torch.manual_seed(3)  # the same numbers are left out
        one = torch.eye(K)[k]
        columns.append(triton_kernels.additive_scores(image, question, one, GROUPS, 0.5))
    H = torch.tanh(image[IMAGE_INDEX] + (question if of_regions else question[:, None, :]))
    mask = (torch.stack(columns, dim=2) / H).detach()
    assert set(mask.round(decimals=3).unique().tolist()) == {0.0, 2.0}
    assert 0.35 < (mask == 0).float().mean() < 0.65
    torch.manual_seed(3)
    ours = triton_kernels.additive_scores(image, question, w, GROUPS, 0.5)
    same(ours, (H * mask.round()) @ w, [image, question, w])
    torch.manual_seed(4)
    other = triton_kernels.additive_scores(image, question, w, GROUPS, 0.5)
    assert not torch.equal(ours, other)


def test_low_precision_is_computed_in_float32() -> None:
    torch.manual_seed(0)
    inputs = [value.detach().bfloat16() for value in scores_input(GROUPS)]
    ours = triton_kernels.additive_scores(*inputs, GROUPS)
    exact = reference.additive_scores(*(value.double() for value in inputs), GROUPS)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_they_are_checked_before_they_are_used(
    training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check runs at first use and leaves the global random state unchanged."""
    for tile in ("TILE", "POOL_TILE"):  # the interpreter is slow for each program
        monkeypatch.setattr(triton_kernels, tile, 2**18)
    before = torch.get_rng_state()
    with torch.inference_mode(not training):
        assert triton_kernels.self_test(torch.device("cpu")) is None
    assert torch.equal(torch.get_rng_state(), before)


def test_without_dropout_no_random_number_is_drawn() -> None:
    inputs, before = scores_input(GROUPS), torch.get_rng_state()
    triton_kernels.additive_scores(*inputs, GROUPS).sum().backward()
    assert torch.equal(torch.get_rng_state(), before)
