"""The steps of the attentions that cost most, without their (N, R, k) values in memory.

Written plainly (``*_reference``), N questions about I pictures of R regions make and keep N * R * k
numbers per layer: 40 MB for a hundred questions, 196 regions, k = 512. On the CPU the functions
here go through them picture by picture, in a block that stays in the cache, and compute them again
for the gradient. On a GPU additive scores, which are a part of co-attention too, and pooling do the
same in Triton (triton_kernels.py), where that works; all else is the plain form.

``asked`` says which of I pictures each of N questions is about. Fastest where questions about one
picture are next to each other.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from tqdm import tqdm

from vqa_repro.models.common import QuestionGroups, per_question


def additive_scores(
    image: Tensor, question: Tensor, w: Tensor, asked: QuestionGroups, dropout: float = 0.0
) -> Tensor:
    """(N, R): w . dropout(tanh(image + question)) of every region of every question's picture.

    SAN's equations 15 and 16, and the second step of HieCoAtt's equation 6.
    image: (I, R, k). question: (N, k). w: (k,). dropout: its probability, 0 when not training.
    """
    if image.device.type != "cpu":
        return _scores_on_gpu(image)(image, question, w, asked, dropout)
    scores: Tensor = _AdditiveScores.apply(
        at_least_float32(image),
        ordered(at_least_float32(question), asked),
        at_least_float32(w),
        counts(asked),
        dropout,
    )
    return restored(scores, asked)


def additive_scores_reference(
    image: Tensor, question: Tensor, w: Tensor, asked: QuestionGroups, dropout: float = 0.0
) -> Tensor:
    """question: (N, k), or (N, R, k) to add something else to each region."""
    if question.ndim == 2:
        question = question[:, None, :]
    H = torch.tanh(per_question(image, asked.image_of) + question)
    return F.dropout(H, dropout) @ w


def _scores_on_gpu(image: Tensor) -> Callable[..., Tensor]:
    triton = fused(image)
    return additive_scores_reference if triton is None else triton.additive_scores


def coattention(
    Q_b: Tensor,
    b: Tensor,
    W_q_Q: Tensor,
    V: Tensor,
    W_v_V: Tensor,
    w_hv: Tensor,
    asked: QuestionGroups,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The part of parallel co-attention that joins words and regions (HieCoAtt, equations 3 to 5).

    With C = tanh(Q_b V^T + b): the regions' scores w_hv . dropout(tanh(W_v_V + C^T W_q_Q)) (N, R),
    and C W_v_V (N, T, d), what each word sees.
    Q_b, W_q_Q: (N, T, d). b: (N, T). V, W_v_V: (I, R, d). w_hv: (d,). Q_b and b must be 0 beyond
    a question's end, so that C is.
    """
    if V.device.type != "cpu":
        scores_of = _scores_on_gpu(V)
        return coattention_reference(Q_b, b, W_q_Q, V, W_v_V, w_hv, asked, dropout, scores_of)
    scores, seen = _CoAttention.apply(
        *(ordered(at_least_float32(words), asked) for words in (Q_b, b, W_q_Q)),
        *map(at_least_float32, (V, W_v_V, w_hv)),
        counts(asked),
        dropout,
    )
    return restored(scores, asked), restored(seen, asked)


def coattention_reference(
    Q_b: Tensor,
    b: Tensor,
    W_q_Q: Tensor,
    V: Tensor,
    W_v_V: Tensor,
    w_hv: Tensor,
    asked: QuestionGroups,
    dropout: float = 0.0,
    scores_of: Callable[..., Tensor] = additive_scores_reference,
) -> tuple[Tensor, Tensor]:
    C = torch.tanh(torch.bmm(Q_b, per_question(V, asked.image_of).transpose(1, 2)) + b[:, :, None])
    of_words = torch.bmm(C.transpose(1, 2), W_q_Q)  # (N, R, d)
    scores = scores_of(W_v_V, of_words, w_hv, asked, dropout)
    return scores, torch.bmm(C, per_question(W_v_V, asked.image_of))


def pooled(p: Tensor, v: Tensor, asked: QuestionGroups) -> Tensor:
    """(N, d): the mean of a picture's regions v (I, R, d), weighted by p (N, R) per question."""
    if v.device.type != "cpu":
        if (triton := fused(v)) is not None:
            by_triton: Tensor = triton.pooled(p, v, asked)
            return by_triton
        return pooled_reference(p, v, asked)
    means: Tensor = _Pooled.apply(
        ordered(at_least_float32(p), asked), at_least_float32(v), counts(asked)
    )
    return restored(means, asked)


def pooled_reference(p: Tensor, v: Tensor, asked: QuestionGroups) -> Tensor:
    return torch.bmm(p[:, None, :].to(v.dtype), per_question(v, asked.image_of)).squeeze(1)


def fused(x: Tensor) -> Any:
    """The module of Triton's kernels, where they serve ``x``; None where the plain form has to."""
    if not x.is_cuda or x.dtype is torch.float64:
        return None
    return _fused(x.device)


@cache
def _fused(device: torch.device) -> Any:
    try:
        from vqa_repro.models.ops import triton_kernels
    except ImportError as error:
        failure: str | None = str(error)
    else:
        if (failure := triton_kernels.fails_on(device)) is None:
            return triton_kernels
    tqdm.write(f"  done without Triton's attention kernels, which are faster: {failure}")
    return None


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in float32 or wider: on the CPU, arithmetic on bfloat16 is the slower one."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def counts(asked: QuestionGroups) -> list[int]:
    """How many questions each picture has."""
    numbers: list[int] = asked.starts.diff().tolist()
    return numbers


def ordered(values: Tensor, asked: QuestionGroups) -> Tensor:
    """``values`` of the questions, by picture."""
    return values if asked.in_order else values[asked.order]


def restored(values: Tensor, asked: QuestionGroups) -> Tensor:
    """``values``, which are by picture, in the questions' own order."""
    return values if asked.in_order else values[asked.order.argsort()]


class DropoutMask:
    """Which numbers of an array of ``shape`` dropout leaves, by a random byte for each.

    bernoulli_ takes twenty times as long, longer than the rest of the attention. The probability is
    rounded to 1/256. ``scale`` is what the numbers that are left are multiplied by.
    """

    def __init__(self, shape: tuple[int, ...], dropout: float) -> None:
        size, self._least = torch.Size(shape).numel(), round(256 * dropout)
        numbers = torch.randint(-(2**63), 2**63 - 1, (-(-size // 8),))
        self._bytes = numbers.view(torch.uint8)[:size].view(shape)
        self.scale = 256 / (256 - self._least)

    def of(self, rows: slice, out: Tensor) -> Tensor:
        """``out`` with 1 where a number of ``rows`` is left, and 0 where it is dropped.

        Numbers rather than truth values: multiplying by those takes five times as long.
        """
        return torch.ge(self._bytes[rows], self._least, out=out)


class Dropout(nn.Dropout):
    """``nn.Dropout`` with the CPU's quicker random numbers."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or x.device.type != "cpu":
            return F.dropout(x, self.p, self.training)
        if not self.p:
            return x
        keep = DropoutMask(tuple(x.shape), self.p)
        return x * keep.of(slice(None), torch.empty_like(x)).mul_(keep.scale)


class _AdditiveScores(torch.autograd.Function):
    """tanh(x) = 2 sigmoid(2x) - 1, because sigmoid is several times faster than tanh here."""

    @staticmethod
    def forward(
        ctx: Any, image: Tensor, question: Tensor, w: Tensor, counts: list[int], dropout: float
    ) -> Tensor:
        _, R, k = image.shape
        keep = DropoutMask((len(question), R, k), dropout) if dropout else None
        scores = image.new_empty(len(question), R)
        question_2 = 2 * question
        if keep:
            w = keep.scale * w
        block, mask = (image.new_empty(max(counts), R, k) for _ in range(2))
        start = 0
        for image_i, n in zip(image, counts, strict=True):
            H, rows = block[:n], slice(start, start + n)
            torch.add(question_2[rows, None, :], image_i, alpha=2, out=H)
            H.sigmoid_().mul_(2).sub_(1)
            if keep:
                H.mul_(keep.of(rows, mask[:n]))
            torch.mv(H.view(n * R, k), w, out=scores[rows].view(n * R))
            start += n
        ctx.save_for_backward(image, question, w)
        ctx.counts, ctx.keep = counts, keep
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_scores: Tensor) -> tuple[Tensor | None, ...]:
        image, question, w = ctx.saved_tensors
        keep: DropoutMask | None = ctx.keep
        _, R, k = image.shape
        d_image, d_question = torch.empty_like(image), torch.empty_like(question)
        d_w = torch.zeros_like(w)
        question_2 = 2 * question
        d_scores = d_scores.contiguous()
        block, block_2, mask = (image.new_empty(max(ctx.counts), R, k) for _ in range(3))
        start = 0
        for i, n in enumerate(ctx.counts):
            H, d_x, rows = block[:n], block_2[:n], slice(start, start + n)
            torch.add(question_2[rows, None, :], image[i], alpha=2, out=H)
            H.sigmoid_().mul_(2).sub_(1)
            # d tanh(x) = 1 - tanh(x)^2; the factor w is multiplied at the end.
            torch.mul(H, H, out=d_x).neg_().add_(1).mul_(d_scores[rows, :, None])
            if keep:
                left = keep.of(rows, mask[:n])
                H.mul_(left)
                d_x.mul_(left)
            d_w.addmv_(H.view(n * R, k).T, d_scores[rows].view(n * R))
            torch.sum(d_x, 0, out=d_image[i])
            torch.sum(d_x, 1, out=d_question[rows])
            start += n
        if keep:
            d_w.mul_(keep.scale)
        return d_image.mul_(w), d_question.mul_(w), d_w, None, None


class _CoAttention(torch.autograd.Function):
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
        keep = DropoutMask((N, R, d), dropout) if dropout else None
        if keep:
            w_hv = keep.scale * w_hv
        scores, seen = V.new_empty(N, R), torch.empty_like(Q_b)
        most = max(counts)
        C_block = V.new_empty(most, T, R)
        H_block, mask = (V.new_empty(most, R, d) for _ in range(2))
        start = 0
        for i, n in enumerate(counts):
            C, H_v, rows = C_block[:n], H_block[:n], slice(start, start + n)
            _affinity(Q_b[rows], b[rows], V[i], C)
            torch.mm(C.view(n * T, R), W_v_V[i], out=seen[rows].view(n * T, d))
            _region_states(C, W_q_Q[rows], W_v_V[i], H_v)
            if keep:
                H_v.mul_(keep.of(rows, mask[:n]))
            torch.mv(H_v.view(n * R, d), w_hv, out=scores[rows].view(n * R))
            start += n
        ctx.save_for_backward(Q_b, b, W_q_Q, V, W_v_V, w_hv)
        ctx.counts, ctx.keep = counts, keep
        return scores, seen

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_scores: Tensor, d_seen: Tensor) -> tuple[Tensor | None, ...]:
        Q_b, b, W_q_Q, V, W_v_V, w_hv = ctx.saved_tensors
        keep: DropoutMask | None = ctx.keep
        (_, T, d), R, most = Q_b.shape, V.shape[1], max(ctx.counts)
        d_Q_b, d_b, d_W_q_Q = map(torch.empty_like, (Q_b, b, W_q_Q))
        d_V, d_W_v_V, d_w = torch.empty_like(V), torch.empty_like(W_v_V), torch.zeros_like(w_hv)
        d_scores, d_seen = d_scores.contiguous(), d_seen.contiguous()
        C_block, dC_block = V.new_empty(most, T, R), V.new_empty(most, T, R)
        H_block, dH_block, mask = (V.new_empty(most, R, d) for _ in range(3))
        start = 0
        for i, n in enumerate(ctx.counts):
            C, H_v, d_H, d_C = C_block[:n], H_block[:n], dH_block[:n], dC_block[:n]
            rows = slice(start, start + n)
            _affinity(Q_b[rows], b[rows], V[i], C)
            _region_states(C, W_q_Q[rows], W_v_V[i], H_v)
            # d_H: of the tanh's argument.
            torch.mul(H_v, H_v, out=d_H).neg_().add_(1).mul_(w_hv).mul_(d_scores[rows, :, None])
            if keep:
                left = keep.of(rows, mask[:n])
                H_v.mul_(left)
                d_H.mul_(left)
            d_w.addmv_(H_v.view(n * R, d).T, d_scores[rows].view(n * R))
            seen_i = d_seen[rows].view(n * T, d)
            torch.sum(d_H, 0, out=d_W_v_V[i])
            d_W_v_V[i].addmm_(C.view(n * T, R).T, seen_i)
            torch.bmm(C, d_H, out=d_W_q_Q[rows])
            torch.bmm(W_q_Q[rows], d_H.transpose(1, 2), out=d_C)
            d_C.view(n * T, R).addmm_(seen_i, W_v_V[i].T)
            d_C.mul_(C.square_().neg_().add_(1))
            torch.sum(d_C, 2, out=d_b[rows])
            torch.mm(d_C.view(n * T, R), V[i], out=d_Q_b[rows].view(n * T, d))
            torch.mm(d_C.view(n * T, R).T, Q_b[rows].view(n * T, d), out=d_V[i])
            start += n
        if keep:
            d_w.mul_(keep.scale)
        return d_Q_b, d_b, d_W_q_Q, d_V, d_W_v_V, d_w, None, None


def _affinity(Q_b: Tensor, b: Tensor, V_i: Tensor, C: Tensor) -> None:
    """C (n, T, R) = tanh(Q_b V_i^T + b), of n questions about one picture."""
    n, T, R = C.shape
    torch.addmm(b.reshape(n * T, 1), Q_b.view(n * T, V_i.shape[1]), V_i.T, out=C.view(n * T, R))
    C.mul_(2).sigmoid_().mul_(2).sub_(1)


def _region_states(C: Tensor, W_q_Q: Tensor, W_v_V_i: Tensor, H_v: Tensor) -> None:
    """H_v (n, R, d) = tanh(W_v V_i + C^T W_q Q)."""
    torch.bmm(C.transpose(1, 2), W_q_Q, out=H_v)
    H_v.add_(W_v_V_i).mul_(2).sigmoid_().mul_(2).sub_(1)


class _Pooled(torch.autograd.Function):
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
