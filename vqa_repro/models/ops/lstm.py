"""An LSTM over questions of different lengths that skips their padding on the CPU.

On a GPU this is cuDNN's LSTM, padding included. On the CPU it is computed here, word by word:
PyTorch accumulates the weight gradient at every word, and fills an array as large as all words
with zeros for each. Here the gradient of each weight is one matrix product at the end.
"""

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class LSTM(nn.LSTM):
    """``nn.LSTM`` with ``batch_first`` over questions of different lengths."""

    def __init__(self, inputs: int, d: int, layers: int = 1, dropout: float = 0.0) -> None:
        super().__init__(inputs, d, layers, dropout=dropout, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:  # type: ignore[override]
        """Return the last layer's states (N, T, d), undefined beyond a question's end.

        x: (N, T, inputs), ignored beyond a question's end. lengths: (N,) int64, 1 to T.
        """
        if x.device.type != "cpu" or torch.compiler.is_exporting():
            states: Tensor = super().forward(x)[0]
            return states
        N, T, _ = x.shape
        which, counts, _ = time_order(lengths, T)
        h = x.flatten(0, 1)[which]
        for layer in range(self.num_layers):
            if layer:
                h = F.dropout(h, self.dropout, self.training)
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            h, _ = states_in_time_order(
                h, counts, *(getattr(self, f"{name}_l{layer}") for name in names)
            )
        return h.new_zeros(N * T, h.shape[1]).index_copy(0, which, h).view(N, T, -1)


def states_in_time_order(
    x: Tensor, counts: list[int], W_x: Tensor, W_h: Tensor, b_x: Tensor, b_h: Tensor
) -> tuple[Tensor, Tensor]:
    """Return hidden and cell states (P, d) of one layer for all words (P, inputs) in time order.

    counts and time order: see ``time_order``. The weights are those of ``nn.LSTMCell``. CPU only.
    """
    h, c = _LSTMStates.apply(F.linear(x, W_x, b_x + b_h), W_h, counts)
    return h, c


def last_states(states: Tensor, lengths: Tensor) -> Tensor:
    """Return each question's last state, (N, d) of (N, T, d), without synchronising a GPU."""
    N, T, _ = states.shape
    # Not states[..., ...]: its backward pass sorts, which takes a dozen kernels on a GPU.
    which = torch.arange(0, N * T, T, device=states.device) + lengths - 1
    return states.flatten(0, 1).index_select(0, which)


def time_order(lengths: Tensor, T: int) -> tuple[Tensor, list[int], Tensor]:
    """Order the P words of N questions by time: all first words, all second words, ...

    Return (P,) int64: n * T + t for word t of question n, longer questions first; the number of
    questions that have a first word, a second word, ...; and (N,) int64: the position of each
    question's last word in that order.
    """
    order = lengths.argsort(descending=True, stable=True)
    t = torch.arange(T)[:, None]
    is_word = t < lengths[order]  # (T, N)
    counts = [n for n in is_word.sum(dim=1).tolist() if n]
    starts = torch.tensor([0, *accumulate(counts)])
    last = torch.empty_like(order)
    last[order] = starts[lengths[order] - 1] + torch.arange(len(order))
    return (order * T + t)[is_word], counts, last


class _LSTMStates(torch.autograd.Function):
    """Gates in PyTorch's order: input, forget, cell, output.

    Matrix products are in the dtype of ``x`` (P, 4d), the input projection of the gates;
    everything else is in float32 or wider.
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
        ctx.set_materialize_grads(False)  # the cell states are rarely used
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
