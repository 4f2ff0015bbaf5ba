"""CPU attention operations, blockwise over images, with recomputation in the backward pass.

The plain forms (reference.py) create and keep N * R * k values per layer: 40 MB for a hundred
questions, 196 regions and k = 512. These functions process one image at a time in a block that
stays in the cache. Questions come sorted by image; ``counts`` are the questions per image.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vqa_repro.models.common import DropoutMask, QuestionGroups


def additive_scores(
    image: Tensor, question: Tensor, w: Tensor, groups: QuestionGroups, dropout: float = 0.0
) -> Tensor:
    """As ``attention.additive_scores``."""
    scores: Tensor = AdditiveScores.apply(
        at_least_float32(image),
        sort_by_image(at_least_float32(question), groups),
        at_least_float32(w),
        questions_per_image(groups),
        dropout,
    )
    return unsort(scores, groups)


def coattention(
    Q_b: Tensor,
    b: Tensor,
    W_q_Q: Tensor,
    V: Tensor,
    W_v_V: Tensor,
    w_hv: Tensor,
    groups: QuestionGroups,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """As ``attention.coattention``."""
    scores, context = CoAttention.apply(
        *(sort_by_image(at_least_float32(words), groups) for words in (Q_b, b, W_q_Q)),
        *map(at_least_float32, (V, W_v_V, w_hv)),
        questions_per_image(groups),
        dropout,
    )
    return unsort(scores, groups), unsort(context, groups)


def pool(p: Tensor, v: Tensor, groups: QuestionGroups) -> Tensor:
    """As ``attention.pool``."""
    weights = sort_by_image(at_least_float32(p), groups)
    means: Tensor = Pool.apply(weights, at_least_float32(v), questions_per_image(groups))
    return unsort(means, groups)


def at_least_float32(x: Tensor) -> Tensor:
    """Return ``x`` in float32 or wider: bfloat16 arithmetic is slower on the CPU."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def questions_per_image(groups: QuestionGroups) -> list[int]:
    """Return the number of questions about each image."""
    numbers: list[int] = groups.starts.diff().tolist()
    return numbers


def sort_by_image(values: Tensor, groups: QuestionGroups) -> Tensor:
    """Reorder per-question ``values`` (N, ...) so that questions about one image are adjacent."""
    return values if groups.sorted else values[groups.order]


def unsort(values: Tensor, groups: QuestionGroups) -> Tensor:
    """Undo ``sort_by_image``."""
    return values if groups.sorted else values[groups.order.argsort()]


class AdditiveScores(torch.autograd.Function):
    """tanh(x) is computed as 2 sigmoid(2x) - 1: sigmoid is several times faster here."""

    @staticmethod
    def forward(
        ctx: Any, image: Tensor, question: Tensor, w: Tensor, counts: list[int], dropout: float
    ) -> Tensor:
        _, R, k = image.shape
        mask = DropoutMask((len(question), R, k), dropout) if dropout else None
        scores = image.new_empty(len(question), R)
        question_2 = 2 * question
        if mask:
            w = mask.scale * w
        block, mask_block = (image.new_empty(max(counts), R, k) for _ in range(2))
        start = 0
        for image_i, n in zip(image, counts, strict=True):
            H, rows = block[:n], slice(start, start + n)
            torch.add(question_2[rows, None, :], image_i, alpha=2, out=H)
            H.sigmoid_().mul_(2).sub_(1)
            if mask:
                H.mul_(mask.write(rows, mask_block[:n]))
            torch.mv(H.view(n * R, k), w, out=scores[rows].view(n * R))
            start += n
        ctx.save_for_backward(image, question, w)
        ctx.counts, ctx.mask = counts, mask
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_scores: Tensor) -> tuple[Tensor | None, ...]:
        image, question, w = ctx.saved_tensors
        mask: DropoutMask | None = ctx.mask
        _, R, k = image.shape
        d_image, d_question = torch.empty_like(image), torch.empty_like(question)
        d_w = torch.zeros_like(w)
        question_2 = 2 * question
        d_scores = d_scores.contiguous()
        block, block_2, mask_block = (image.new_empty(max(ctx.counts), R, k) for _ in range(3))
        start = 0
        for i, n in enumerate(ctx.counts):
            H, d_x, rows = block[:n], block_2[:n], slice(start, start + n)
            torch.add(question_2[rows, None, :], image[i], alpha=2, out=H)
            H.sigmoid_().mul_(2).sub_(1)
            # d tanh(x) = 1 - tanh(x)^2; the factor w is multiplied at the end.
            torch.mul(H, H, out=d_x).neg_().add_(1).mul_(d_scores[rows, :, None])
            if mask:
                remaining = mask.write(rows, mask_block[:n])
                H.mul_(remaining)
                d_x.mul_(remaining)
            d_w.addmv_(H.view(n * R, k).T, d_scores[rows].view(n * R))
            torch.sum(d_x, 0, out=d_image[i])
            torch.sum(d_x, 1, out=d_question[rows])
            start += n
        if mask:
            d_w.mul_(mask.scale)
        return d_image.mul_(w), d_question.mul_(w), d_w, None, None


class CoAttention(torch.autograd.Function):
    """Recomputes the affinities C and the region states H_v in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        Q_b: Tensor,
        b: Tensor,
        W_q_Q: Tensor,
        V: Tensor,
        W_v_V: Tensor,
        w_hv: Tensor,
        counts: list[int],
        dropout: float,
    ) -> tuple[Tensor, Tensor]:
        (N, T, d), R = Q_b.shape, V.shape[1]
        mask = DropoutMask((N, R, d), dropout) if dropout else None
        if mask:
            w_hv = mask.scale * w_hv
        scores, context = V.new_empty(N, R), torch.empty_like(Q_b)
        most = max(counts)
        C_block = V.new_empty(most, T, R)
        H_block, mask_block = (V.new_empty(most, R, d) for _ in range(2))
        start = 0
        for i, n in enumerate(counts):
            C, H_v, rows = C_block[:n], H_block[:n], slice(start, start + n)
            _affinity(Q_b[rows], b[rows], V[i], C)
            torch.mm(C.view(n * T, R), W_v_V[i], out=context[rows].view(n * T, d))
            _region_states(C, W_q_Q[rows], W_v_V[i], H_v)
            if mask:
                H_v.mul_(mask.write(rows, mask_block[:n]))
            torch.mv(H_v.view(n * R, d), w_hv, out=scores[rows].view(n * R))
            start += n
        ctx.save_for_backward(Q_b, b, W_q_Q, V, W_v_V, w_hv)
        ctx.counts, ctx.mask = counts, mask
        return scores, context

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_scores: Tensor, d_context: Tensor) -> tuple[Tensor | None, ...]:
        Q_b, b, W_q_Q, V, W_v_V, w_hv = ctx.saved_tensors
        mask: DropoutMask | None = ctx.mask
        (_, T, d), R, most = Q_b.shape, V.shape[1], max(ctx.counts)
        d_Q_b, d_b, d_W_q_Q = map(torch.empty_like, (Q_b, b, W_q_Q))
        d_V, d_W_v_V, d_w = torch.empty_like(V), torch.empty_like(W_v_V), torch.zeros_like(w_hv)
        d_scores, d_context = d_scores.contiguous(), d_context.contiguous()
        C_block, dC_block = V.new_empty(most, T, R), V.new_empty(most, T, R)
        H_block, dH_block, mask_block = (V.new_empty(most, R, d) for _ in range(3))
        start = 0
        for i, n in enumerate(ctx.counts):
            C, H_v, d_H, d_C = C_block[:n], H_block[:n], dH_block[:n], dC_block[:n]
            rows = slice(start, start + n)
            _affinity(Q_b[rows], b[rows], V[i], C)
            _region_states(C, W_q_Q[rows], W_v_V[i], H_v)
            # d_H is the gradient with respect to the argument of tanh.
            torch.mul(H_v, H_v, out=d_H).neg_().add_(1).mul_(w_hv).mul_(d_scores[rows, :, None])
            if mask:
                remaining = mask.write(rows, mask_block[:n])
                H_v.mul_(remaining)
                d_H.mul_(remaining)
            d_w.addmv_(H_v.view(n * R, d).T, d_scores[rows].view(n * R))
            context_i = d_context[rows].view(n * T, d)
            torch.sum(d_H, 0, out=d_W_v_V[i])
            d_W_v_V[i].addmm_(C.view(n * T, R).T, context_i)
            torch.bmm(C, d_H, out=d_W_q_Q[rows])
            torch.bmm(W_q_Q[rows], d_H.transpose(1, 2), out=d_C)
            d_C.view(n * T, R).addmm_(context_i, W_v_V[i].T)
            d_C.mul_(C.square_().neg_().add_(1))
            torch.sum(d_C, 2, out=d_b[rows])
            torch.mm(d_C.view(n * T, R), V[i], out=d_Q_b[rows].view(n * T, d))
            torch.mm(d_C.view(n * T, R).T, Q_b[rows].view(n * T, d), out=d_V[i])
            start += n
        if mask:
            d_w.mul_(mask.scale)
        return d_Q_b, d_b, d_W_q_Q, d_V, d_W_v_V, d_w, None, None


def _affinity(Q_b: Tensor, b: Tensor, V_i: Tensor, C: Tensor) -> None:
    """C (n, T, R) = tanh(Q_b V_i^T + b), for n questions about one image."""
    n, T, R = C.shape
    torch.addmm(b.reshape(n * T, 1), Q_b.view(n * T, V_i.shape[1]), V_i.T, out=C.view(n * T, R))
    C.mul_(2).sigmoid_().mul_(2).sub_(1)


def _region_states(C: Tensor, W_q_Q: Tensor, W_v_V_i: Tensor, H_v: Tensor) -> None:
    """H_v (n, R, d) = tanh(W_v V_i + C^T W_q Q)."""
    torch.bmm(C.transpose(1, 2), W_q_Q, out=H_v)
    H_v.add_(W_v_V_i).mul_(2).sigmoid_().mul_(2).sub_(1)


class Pool(torch.autograd.Function):
    """One matrix product per image."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, v: Tensor, counts: list[int]) -> Tensor:
        means = v.new_empty(len(p), v.shape[2])
        start = 0
        for v_i, n in zip(v, counts, strict=True):
            rows = slice(start, start + n)
            torch.mm(p[rows], v_i, out=means[rows])
            start += n
        ctx.save_for_backward(p, v)
        ctx.counts = counts
        return means

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_means: Tensor) -> tuple[Tensor | None, ...]:
        p, v = ctx.saved_tensors
        d_p, d_v = torch.empty_like(p), torch.empty_like(v)
        start = 0
        for i, n in enumerate(ctx.counts):
            rows = slice(start, start + n)
            torch.mm(d_means[rows], v[i].T, out=d_p[rows])
            torch.mm(p[rows].T, d_means[rows], out=d_v[i])
            start += n
        return d_p, d_v, None
