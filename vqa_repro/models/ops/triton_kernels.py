"""Attention operations for a GPU, in Triton.

A program holds a part of one image's regions and iterates over the questions about it: the
(N, R, k) values of tanh exist in registers only, and every gradient is accumulated in one place in
a fixed order. Arithmetic is float32 for every input type. ``order`` (N,) lists the questions by
image, ``starts`` (I + 1,) are the offsets of each image's questions in it.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from vqa_repro.models.common import QuestionGroups, group_by_image
from vqa_repro.models.ops import reference
from vqa_repro.utils.errors import first_line

# Elements and warps per program: tanh and its gradient need many registers per element.
# tests/models/test_attention.py compiles the kernels for GPUs and checks that hardly any spill.
TILE, OPTIONS = 2048, {"num_warps": 4, "enable_fp_fusion": True}
POOL_TILE, POOL_OPTIONS = 8192, {"num_warps": 8, "enable_fp_fusion": True}
PHILOX_ROUNDS = tl.constexpr(7)  # the fewest that pass all tests (Salmon et al., SC 2011)


@triton.jit
def _tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def _dropout_factor(seed, n, r, k, R, K, dropout):
    """Return 1 / (1 - dropout) where an element of question n remains, 0 where it is dropped.

    Element offsets are 32 bits wide and wrap around; 64 bits would need too many registers.
    """
    number = (n.to(tl.int32) * R + r[:, None]) * K + k[None, :]
    random = tl.rand(tl.load(seed), number, PHILOX_ROUNDS)
    return tl.where(random >= dropout, 1 / (1 - dropout), 0.0)


@triton.jit
def _question_part(question, r, k, R, K, question_r, OF_REGIONS: tl.constexpr):
    """Return what a question adds to regions r: a vector per region, or the same for all."""
    if OF_REGIONS:
        inside = (r[:, None] < R) & (k[None, :] < K)
        return tl.load(question + r[:, None] * question_r + k[None, :], inside, 0.0).to(tl.float32)
    else:
        return tl.load(question + k, k < K, 0.0).to(tl.float32)[None, :]


@triton.jit
def _scores_forward(
    image, question, w, order, starts, seed, scores,
    R, K, image_i, image_r, question_n, question_r, dropout,
    BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, DROPS: tl.constexpr, OF_REGIONS: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    k = tl.arange(0, BLOCK_K)
    inside = (r[:, None] < R) & (k[None, :] < K)
    regions = tl.load(image + i * image_i + r[:, None] * image_r + k[None, :], inside, 0.0)
    regions = regions.to(tl.float32)
    weights = tl.load(w + k, k < K, 0.0).to(tl.float32)
    for at in range(tl.load(starts + i), tl.load(starts + i + 1)):
        n = tl.load(order + at)
        H = _tanh(
            regions + _question_part(question + n * question_n, r, k, R, K, question_r, OF_REGIONS)
        )
        if DROPS:
            H = H * _dropout_factor(seed, n, r, k, R, K, dropout)
        tl.store(scores + n * R + r, tl.sum(H * weights[None, :], 1), r < R)


@triton.jit
def _scores_backward(
    image, question, w, order, starts, seed, d_scores, d_image, d_question, d_w,
    R, K, image_i, image_r, question_n, question_r, dropout,
    BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, DROPS: tl.constexpr, OF_REGIONS: tl.constexpr,
):  # fmt: skip
    """All regions of an image, BLOCK_K of the K columns. d_w (I, K) holds a row per image."""
    i = tl.program_id(0).to(tl.int64)
    r = tl.arange(0, BLOCK_R)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    inside = (r[:, None] < R) & (k[None, :] < K)
    regions = tl.load(image + i * image_i + r[:, None] * image_r + k[None, :], inside, 0.0)
    regions = regions.to(tl.float32)
    weights = tl.load(w + k, k < K, 0.0).to(tl.float32)
    d_regions = tl.zeros((BLOCK_R, BLOCK_K), tl.float32)
    d_weights = tl.zeros((BLOCK_K,), tl.float32)
    for at in range(tl.load(starts + i), tl.load(starts + i + 1)):
        n = tl.load(order + at)
        g = tl.load(d_scores + n * R + r, r < R, 0.0)
        H = _tanh(
            regions + _question_part(question + n * question_n, r, k, R, K, question_r, OF_REGIONS)
        )
        d_H = g[:, None] * weights[None, :]
        remaining = H
        if DROPS:
            factor = _dropout_factor(seed, n, r, k, R, K, dropout)
            d_H = d_H * factor
            remaining = H * factor
        d_x = d_H * (1 - H * H)
        d_regions += d_x
        d_weights += tl.sum(g[:, None] * remaining, 0)
        if OF_REGIONS:
            tl.store(d_question + (n * R + r[:, None]) * K + k[None, :], d_x, inside)
        else:
            tl.store(d_question + n * K + k, tl.sum(d_x, 0), k < K)
    tl.store(d_image + (i * R + r[:, None]) * K + k[None, :], d_regions, inside)
    tl.store(d_w + i * K + k, d_weights, k < K)


@triton.jit
def _pool_forward(
    p, v, order, starts, means, R, D, v_i, v_r,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64)
    r = tl.arange(0, BLOCK_R)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = (r[:, None] < R) & (d[None, :] < D)
    regions = tl.load(v + i * v_i + r[:, None] * v_r + d[None, :], inside, 0.0).to(tl.float32)
    for at in range(tl.load(starts + i), tl.load(starts + i + 1)):
        n = tl.load(order + at)
        weights = tl.load(p + n * R + r, r < R, 0.0)
        tl.store(means + n * D + d, tl.sum(weights[:, None] * regions, 0), d < D)


@triton.jit
def _pool_backward_v(
    p, d_means, order, starts, d_v, R, D,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64)
    r = tl.arange(0, BLOCK_R)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    d_regions = tl.zeros((BLOCK_R, BLOCK_D), tl.float32)
    for at in range(tl.load(starts + i), tl.load(starts + i + 1)):
        n = tl.load(order + at)
        weights = tl.load(p + n * R + r, r < R, 0.0)
        g = tl.load(d_means + n * D + d, d < D, 0.0).to(tl.float32)
        d_regions += weights[:, None] * g[None, :]
    inside = (r[:, None] < R) & (d[None, :] < D)
    tl.store(d_v + (i * R + r[:, None]) * D + d[None, :], d_regions, inside)


@triton.jit
def _pool_backward_p(
    v, d_means, order, starts, d_p, R, D, v_i, v_r,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    d = tl.arange(0, BLOCK_D)
    inside = (r[:, None] < R) & (d[None, :] < D)
    regions = tl.load(v + i * v_i + r[:, None] * v_r + d[None, :], inside, 0.0).to(tl.float32)
    for at in range(tl.load(starts + i), tl.load(starts + i + 1)):
        n = tl.load(order + at)
        g = tl.load(d_means + n * D + d, d < D, 0.0).to(tl.float32)
        tl.store(d_p + n * R + r, tl.sum(regions * g[None, :], 1), r < R)


def additive_scores(
    image: Tensor, question: Tensor, w: Tensor, groups: QuestionGroups, dropout: float = 0.0
) -> Tensor:
    """As ``attention.additive_scores``; the scores are float32."""
    inputs = (image, question, w, groups.order, groups.starts, dropout)
    with torch.cuda.device_of(image):  # where Triton launches; the backward pass sees to it itself
        scores: Tensor = _AdditiveScores.apply(*inputs)
    return scores


def pool(p: Tensor, v: Tensor, groups: QuestionGroups) -> Tensor:
    """As ``attention.pool``; the means have the dtype of ``v``."""
    with torch.cuda.device_of(v):
        means: Tensor = _Pool.apply(p, v, groups.order, groups.starts)
    return means


class _AdditiveScores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        question: Tensor,
        w: Tensor,
        order: Tensor,
        starts: Tensor,
        dropout: float,
    ) -> Tensor:
        image, question, w = contiguous_rows(image), contiguous_rows(question), w.contiguous()
        images, R, K = image.shape
        # Drawn on the device, so that every replay of a captured step draws a new seed; not drawn
        # without dropout, so that all other random numbers are the same as without this kernel.
        seed = starts
        if dropout:
            seed = torch.randint(2**31 - 1, (1,), dtype=torch.int32, device=image.device)
        scores = torch.empty(len(question), R, device=image.device)
        all_k = triton.next_power_of_2(K)
        block = max(1, min(triton.next_power_of_2(R), TILE // all_k))
        _scores_forward[(images, triton.cdiv(R, block))](
            *(image, question, w, order, starts, seed, scores),
            *(R, K, *image.stride()[:2], *_strides(question), dropout),
            BLOCK_R=block, BLOCK_K=all_k, DROPS=dropout > 0, OF_REGIONS=question.ndim > 2,
            **OPTIONS,
        )  # fmt: skip
        ctx.save_for_backward(image, question, w, order, starts, seed)
        ctx.dropout = dropout
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_scores: Tensor) -> tuple[Tensor | None, ...]:
        image, question, w, order, starts, seed = ctx.saved_tensors
        images, R, K = image.shape
        d_image = torch.empty(images, R, K, dtype=image.dtype, device=image.device)
        d_question = torch.empty(question.shape, dtype=question.dtype, device=image.device)
        d_w = torch.empty(images, K, device=image.device)
        all_r = triton.next_power_of_2(R)
        block = max(1, min(triton.next_power_of_2(K), TILE // all_r))
        _scores_backward[(images, triton.cdiv(K, block))](
            *(image, question, w, order, starts, seed),
            *(d_scores.float().contiguous(), d_image, d_question, d_w),
            *(R, K, *image.stride()[:2], *_strides(question), ctx.dropout),
            BLOCK_R=all_r, BLOCK_K=block, DROPS=ctx.dropout > 0, OF_REGIONS=question.ndim > 2,
            **OPTIONS,
        )  # fmt: skip
        return d_image, d_question, d_w.sum(0).to(w.dtype), None, None, None


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, p: Tensor, v: Tensor, order: Tensor, starts: Tensor) -> Tensor:
        p, v = p.float().contiguous(), contiguous_rows(v)
        images, R, D = v.shape
        means = torch.empty(len(p), D, dtype=v.dtype, device=v.device)
        all_r = triton.next_power_of_2(R)
        block = max(1, min(triton.next_power_of_2(D), POOL_TILE // all_r))
        _pool_forward[(images, triton.cdiv(D, block))](
            *(p, v, order, starts, means, R, D, v.stride(0), v.stride(1)),
            BLOCK_R=all_r, BLOCK_D=block, **POOL_OPTIONS,
        )  # fmt: skip
        ctx.save_for_backward(p, v, order, starts)
        return means

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_means: Tensor) -> tuple[Tensor | None, ...]:
        p, v, order, starts = ctx.saved_tensors
        images, R, D = v.shape
        d_means = d_means.contiguous()
        d_p = torch.empty_like(p)
        d_v = torch.empty(images, R, D, dtype=v.dtype, device=v.device)
        all_r, all_d = triton.next_power_of_2(R), triton.next_power_of_2(D)
        block = max(1, min(all_d, POOL_TILE // all_r))
        _pool_backward_v[(images, triton.cdiv(D, block))](
            *(p, d_means, order, starts, d_v, R, D),
            BLOCK_R=all_r, BLOCK_D=block, **POOL_OPTIONS,
        )  # fmt: skip
        block = max(1, min(all_r, POOL_TILE // all_d))
        _pool_backward_p[(images, triton.cdiv(R, block))](
            *(v, d_means, order, starts, d_p, R, D, v.stride(0), v.stride(1)),
            BLOCK_R=block, BLOCK_D=all_d, **POOL_OPTIONS,
        )  # fmt: skip
        return d_p, d_v, None, None


def _strides(question: Tensor) -> tuple[int, int]:
    """Return the strides between questions and between regions."""
    return question.stride(0), question.stride(1) if question.ndim > 2 else 0


def contiguous_rows(x: Tensor) -> Tensor:
    """Return ``x`` with a contiguous last dimension."""
    return x if x.stride(-1) == 1 else x.contiguous()


def triton_version() -> str:
    return str(triton.__version__)


def self_test(device: torch.device) -> str | None:
    """Return why these kernels cannot be used on ``device``; None if they match the reference.

    Triton compiles its kernels on first use and needs a C compiler for that.
    """
    generator = torch.Generator().manual_seed(0)
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(device.type, enabled=False),
            torch.random.fork_rng([device.index] if device.index is not None else []),
        ):
            image, question, per_region, w, v = (
                torch.randn(shape, generator=generator).to(device).requires_grad_()
                for shape in ((2, 196, 512), (3, 512), (3, 196, 512), (512,), (2, 196, 640))
            )
            groups = group_by_image(torch.tensor([1, 0, 1], device=device), image)
            ours: list[Tensor] = []
            expected: list[Tensor] = []
            for query in (question, per_region):
                for values, scores_with, pool_with in (
                    (ours, additive_scores, pool),
                    (expected, reference.additive_scores, reference.pool),
                ):
                    scores = scores_with(image, query, w, groups)
                    means = pool_with(scores.softmax(1), v, groups)
                    gradients = torch.autograd.grad(means.square().sum(), (image, query, w, v))
                    values += [scores, means, *gradients]
                # The kernel draws its own mask, so only the mean can be compared.
                dropping = additive_scores(image, query, w, groups, 0.5)
                torch.autograd.grad(dropping.sum(), (image, query, w))
                off = (dropping - ours[-6]).mean().abs() / ours[-6].std()
                if not off < 0.3:  # 0.04 is expected
                    return "wrong mean with dropout"
        for a, b in zip(ours, expected, strict=True):
            if not (a - b).abs().max() <= 1e-2 * b.abs().max():
                return "wrong values or gradients"
        return None
    except Exception as error:  # no compiler, an unsupported GPU, a full disk, ...
        return f"{type(error).__name__}: {first_line(error)}"
