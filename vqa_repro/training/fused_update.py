"""Weight decay, clipping and the update of SGD or RMSprop in two passes over memory, in Triton.

PyTorch's own take eleven passes for SGD with decay and clipping (decay 3, norms 1, scaling 2,
update 5: reads and writes of a number for each weight), and more for RMSprop. Here the norms read
gradient and weight, and the update reads gradient, weight and state and writes the latter two:
seven. Each block of a pass belongs to one tensor; all tensors are one launch. Sums are added in a
fixed order. Arithmetic is float32.
"""

from collections.abc import Set
from itertools import accumulate
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from vqa_repro.utils.errors import first_line

BLOCK = 4096  # numbers of one program
OPTIONS = {"num_warps": 8, "enable_fp_fusion": True}
RMS_ALPHA, RMS_EPS = tl.constexpr(0.99), tl.constexpr(1e-8)


@triton.jit
def _gradient(gradients, weights, i: tl.constexpr, at, inside, decay):
    """Return (gradient with weight decay, weight) of tensor i."""
    weight = tl.load(weights[i] + at, inside, 0.0)
    return tl.load(gradients[i] + at, inside, 0.0).to(tl.float32) + decay * weight, weight


@triton.jit
def _squared_norms(gradients, weights, sizes, starts, decays, partial, BLOCK: tl.constexpr):
    """Write the sum of squares of each block to ``partial`` (blocks,)."""
    block = tl.program_id(0)
    for i in tl.static_range(len(gradients)):
        if (block >= starts[i]) & (block < starts[i + 1]):
            at = (block - starts[i]) * BLOCK + tl.arange(0, BLOCK)
            g, _ = _gradient(gradients, weights, i, at, at < sizes[i], decays[i])
            tl.store(partial + block, tl.sum(g * g, 0))


@triton.jit
def _update(
    gradients, weights, states, rates, sizes, starts, decays, partial, momentum, clip,
    CLIP: tl.constexpr, RMSPROP: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """CLIP: 0 no clipping, 1 each tensor on its own, 2 all together. PARTS: blocks of the largest.

    With CLIP 2, PARTS is that of all tensors.
    """
    block = tl.program_id(0)
    for i in tl.static_range(len(gradients)):
        if (block >= starts[i]) & (block < starts[i + 1]):
            at = (block - starts[i]) * BLOCK + tl.arange(0, BLOCK)
            inside = at < sizes[i]
            g, weight = _gradient(gradients, weights, i, at, inside, decays[i])
            if CLIP > 0:
                first = starts[i] if CLIP == 1 else 0
                end = starts[i + 1] if CLIP == 1 else starts[len(gradients)]
                part = first + tl.arange(0, PARTS)
                norm = tl.sqrt(tl.sum(tl.load(partial + part, part < end, 0.0), 0))
                # torch.nn.utils.clip_grad_norm_ adds 1e-6 to the norm of all tensors together.
                scale = clip / (norm if CLIP == 1 else norm + 1e-6)
                g = g * tl.minimum(scale, 1.0)
            rate = tl.load(rates[i])
            state = tl.load(states[i] + at, inside, 0.0)
            if RMSPROP:
                state = RMS_ALPHA * state + (1 - RMS_ALPHA) * g * g
                step = g / (tl.sqrt(state) + RMS_EPS)
            else:
                state = momentum * state + g
                step = state
            tl.store(states[i] + at, state, inside)
            tl.store(weights[i] + at, weight - rate * step, inside)


class FusedUpdate:
    """Takes the steps of ``optimizer``, whose state it keeps where the optimiser would.

    optimizer: SGD with momentum, or RMSprop; float32 weights and a learning rate tensor for each
    group. decaying: the parameters that weight decay applies to.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        decaying: Set[Tensor],
        *,
        weight_decay: float,
        clip: float,
        clip_per: str,
    ) -> None:
        self._optimizer = optimizer
        self._rmsprop = isinstance(optimizer, torch.optim.RMSprop)
        self._state = "square_avg" if self._rmsprop else "momentum_buffer"
        self._momentum = 0.0 if self._rmsprop else optimizer.param_groups[0]["momentum"]
        self._decaying, self._weight_decay = decaying, weight_decay
        self._clip, self._mode = clip, (2 if clip_per == "all" else 1) if clip else 0

    def step(self) -> None:
        """Update all weights that have a gradient. Gradients may be float32 or lower."""
        used = [
            (parameter, group["lr"])
            for group in self._optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        weights = [parameter.detach() for parameter, _ in used]
        states = [self._state_of(parameter) for parameter, _ in used]
        decays = [self._weight_decay if p in self._decaying else 0.0 for p, _ in used]
        sizes = [weight.numel() for weight in weights]
        counts = [-(-size // BLOCK) for size in sizes]
        starts = [0, *accumulate(counts)]
        partial = weights[0].new_empty(starts[-1])
        gradients = tuple(parameter.grad.contiguous() for parameter, _ in used)
        common: tuple[Any, ...] = (tuple(sizes), tuple(starts), tuple(decays), partial)
        if self._mode:
            _squared_norms[(starts[-1],)](
                gradients, tuple(weights), *common, BLOCK=BLOCK, **OPTIONS
            )
        _update[(starts[-1],)](
            *(gradients, tuple(weights), tuple(states), tuple(rate for _, rate in used), *common),
            *(self._momentum, self._clip),
            CLIP=self._mode, RMSPROP=self._rmsprop,
            PARTS=triton.next_power_of_2(starts[-1] if self._mode == 2 else max(counts)),
            BLOCK=BLOCK, **OPTIONS,
        )  # fmt: skip

    def _state_of(self, parameter: Tensor) -> Tensor:
        """Return the optimiser's state, zeros before the first step, in its own format."""
        state = self._optimizer.state[parameter]
        if state.get(self._state) is None:
            state[self._state] = torch.zeros_like(parameter)
            if self._rmsprop:
                state["step"] = torch.zeros((), device=parameter.device)
        values: Tensor = state[self._state]
        return values


def self_test(device: torch.device) -> str | None:
    """Return why the update cannot be used on ``device``; None if it takes PyTorch's steps."""
    generator = torch.Generator().manual_seed(0)
    try:
        for kind, decay, clip in ((torch.optim.SGD, 0.1, 0.5), (torch.optim.RMSprop, 0.0, 0.0)):
            values = [torch.randn(shape, generator=generator) for shape in ((70, 90), (5,))]
            ours = [nn.Parameter(value.to(device, copy=True)) for value in values]
            plain = [nn.Parameter(value.clone()) for value in values]
            options = {"momentum": 0.9} if kind is torch.optim.SGD else {"alpha": 0.99, "eps": 1e-8}
            rate = torch.tensor(0.1, device=device)
            optimizer = kind([{"params": ours, "lr": rate}], lr=0.1, **options)  # type: ignore[arg-type]
            expected = kind(plain, lr=0.1, **options)  # type: ignore[arg-type]
            fused = FusedUpdate(
                optimizer, set(ours), weight_decay=decay, clip=clip, clip_per="tensor"
            )
            for _ in range(2):
                for a, b in zip(ours, plain, strict=True):
                    b.grad = torch.randn(b.shape, generator=generator)
                    a.grad = b.grad.to(device, copy=True)
                    b.grad += decay * b.detach()
                    if clip:
                        b.grad *= (clip / b.grad.norm()).clamp(max=1.0)
                fused.step()
                expected.step()
            for a, b in zip(ours, plain, strict=True):
                if not (a.detach().cpu() - b.detach()).abs().max() <= 1e-4:
                    return "wrong weights"
        return None
    except Exception as error:  # no compiler, an unsupported GPU, a full disk, ...
        return f"{type(error).__name__}: {first_line(error)}"
