"""The exponential moving average of a network's weights (Polyak & Juditsky 1992)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """The average of all weights and running means of ``network`` since the first step.

    decay: of the average at every step. During the first 1 / (1 - decay) steps it is the plain mean
    of the weights so far, so the initial values have no part in it.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        values = network.state_dict().items()
        self._weights = {name: value for name, value in values if value.is_floating_point()}
        self._average = {name: value.clone() for name, value in self._weights.items()}
        self._decay = decay
        self._steps = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights after another step into the average."""
        self._steps += 1
        share = max(1 - self._decay, 1 / self._steps)
        average, weights = list(self._average.values()), list(self._weights.values())
        torch._foreach_lerp_(average, weights, share)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the network the averaged weights meanwhile."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def apply(self) -> None:
        """Give the network the averaged weights."""
        for name, weight in self._weights.items():
            weight.copy_(self._average[name])

    def state_dict(self) -> dict[str, Tensor | int]:
        return {"steps": self._steps, **self._average}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        """Continue from what ``state_dict`` returned. Raise KeyError for another network's."""
        self._steps = int(state["steps"])
        for name, average in self._average.items():
            value = state[name]
            assert isinstance(value, Tensor)
            average.copy_(value)

    @torch.no_grad()
    def _swap(self) -> None:
        for name, weight in self._weights.items():
            held = weight.clone()
            weight.copy_(self._average[name])
            self._average[name].copy_(held)
