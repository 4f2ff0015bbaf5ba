"""An LSTM over questions of different lengths, without work on their padding.

On a GPU it is cuDNN's, over the padding too. On the CPU it is computed here, word by word: PyTorch
adds up the weights' gradient anew at every word, and fills an array as large as all words with
zeros for each. Here the gradients of all weights are one matrix product at the end.
"""

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class LSTM(nn.LSTM):
    """``nn.LSTM`` with ``batch_first`` over questions of their own lengths."""

    def __init__(self, inputs: int, d: int, layers: int = 1, dropout: float = 0.0) -> None:
        super().__init__(inputs, d, layers, dropout=dropout, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:  # type: ignore[override]
        """(N, T, d): the last layer's states; beyond a question's end, anything.

        x: (N, T, inputs), whatever it holds beyond a question's end. lengths: (N,) int64, 1 to T.
        """
        if x.device.type != "cpu":
            states: Tensor = super().forward(x)[0]
            return states
        N, T, _ = x.shape
        which, counts, _ = in_time(lengths, T)
        h = x.flatten(0, 1)[which]
        for layer in range(self.num_layers):
            if layer:
                h = F.dropout(h, self.dropout, self.training)
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            h, _ = states_in_time(h, counts, *(getattr(self, f"{name}_l{layer}") for name in names))
        return h.new_zeros(N * T, h.shape[1]).index_copy(0, which, h).view(N, T, -1)


def states_in_time(
    x: Tensor, counts: list[int], W_x: Tensor, W_h: Tensor, b_x: Tensor, b_h: Tensor
) -> tuple[Tensor, Tensor]:
    """Hidden and cell states (P, d) of one layer at all words (P, inputs) in the order of time.

    counts and that order: ``in_time``. The weights are those of ``nn.LSTMCell``. On the CPU only.
    """
    h, c = _States.apply(F.linear(x, W_x, b_x + b_h), W_h, counts)
    return h, c


def at_last_words(states: Tensor, lengths: Tensor) -> Tensor:
    """(N, d) out of (N, T, d), by an index: lengths (N,) stay on their device."""
    N, T, _ = states.shape
    # Not states[..., ...]: its gradient is made by sorting, a dozen kernels on a GPU.
    which = torch.arange(0, N * T, T, device=states.device) + lengths - 1
    return states.flatten(0, 1).index_select(0, which)


def in_time(lengths: Tensor, T: int) -> tuple[Tensor, list[int], Tensor]:
    """The P words of N questions in the order of time: all first words, all second ones, ...

    (P,) int64: n * T + t for word t of question n, longer questions first; how many questions have
    a first word, a second one, ...; and (N,) int64: where in that order a question's last word is.
    """
    order = lengths.argsort(descending=True, stable=True)
    t = torch.arange(T)[:, None]
    there = t < lengths[order]  # (T, N)
    counts = [n for n in there.sum(dim=1).tolist() if n]
    starts = torch.tensor([0, *accumulate(counts)])
    last = torch.empty_like(order)
    last[order] = starts[lengths[order] - 1] + torch.arange(len(order))
    return (order * T + t)[there], counts, last


class _States(torch.autograd.Function):
    """Gates in PyTorch's order: input, forget, cell, output.

    Matrix products are in the dtype of ``x`` (P, 4d), the inputs' part of the gates' arguments;
    all else is in float32 or wider.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, W_h: Tensor, counts: list[int]) -> tuple[Tensor, Tensor]:
        d, W = W_h.shape[1], W_h.to(x.dtype)
        gates = x.to(torch.promote_types(x.dtype, torch.float32), copy=True)  # (P, 4d)
        c, tanh_c, h = (gates.new_empty(len(gates), d) for _ in range(3))
        before = start = 0
        for n in counts:
            now, earlier = slice(start, start + n), slice(before, before + n)
            gate = gates[now]
            if start:
                gate += h[earlier].to(x.dtype) @ W.T
            gate[:, : 2 * d].sigmoid_()
            gate[:, 2 * d : 3 * d].tanh_()
            gate[:, 3 * d :].sigmoid_()
            i, f, g, o = gate.chunk(4, dim=1)
            torch.mul(i, g, out=c[now])
            if start:
                c[now].addcmul_(f, c[earlier])
            torch.tanh(c[now], out=tanh_c[now])
            torch.mul(o, tanh_c[now], out=h[now])
            before, start = start, start + n
        ctx.save_for_backward(W, gates, c, tanh_c, h)
        ctx.counts, ctx.dtype = counts, W_h.dtype
        ctx.set_materialize_grads(False)  # mostly nobody asks for the cell states
        return h, c

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_h: Tensor | None, d_cells: Tensor | None) -> tuple[Tensor | None, ...]:
        W, gates, c, tanh_c, h = ctx.saved_tensors
        d, counts = h.shape[1], ctx.counts
        d_x = torch.empty_like(gates, dtype=W.dtype)
        d_h_later = d_c_later = h.new_zeros(0, d)
        start = len(h)
        for t in reversed(range(len(counts))):
            n = counts[t]
            start -= n
            now = slice(start, start + n)
            i, f, g, o = gates[now].chunk(4, dim=1)
            d_now = h.new_zeros(n, d) if d_h is None else d_h[now].clone()
            d_now[: len(d_h_later)] += d_h_later
            d_o = d_now * tanh_c[now] * o * (1 - o)
            d_c = d_now.mul_(o).mul_(1 - tanh_c[now].square())
            d_c[: len(d_c_later)] += d_c_later
            if d_cells is not None:
                d_c += d_cells[now]
            d_i, d_g = d_c * g * i * (1 - i), d_c * i * (1 - g.square())
            if t:
                earlier = slice(start - counts[t - 1], start - counts[t - 1] + n)
                d_f = d_c * c[earlier] * f * (1 - f)
                torch.cat([d_i, d_f, d_g, d_o], dim=1, out=d_x[now])
                d_h_later, d_c_later = d_x[now] @ W, d_c.mul_(f)
            else:
                torch.cat([d_i, torch.zeros_like(f), d_g, d_o], dim=1, out=d_x[now])
        if len(counts) == 1:
            return d_x, torch.zeros_like(W, dtype=ctx.dtype), None
        ends = [0, *accumulate(counts)]
        earlier_h = torch.cat([h[end : end + n] for end, n in zip(ends, counts[1:], strict=False)])
        return d_x, (d_x[counts[0] :].T @ earlier_h.to(W.dtype)).to(ctx.dtype), None
