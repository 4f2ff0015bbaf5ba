"""Networks without memory for their weights: to look at shapes, or to be given weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _WithoutRandomNumbers(TorchFunctionMode):
    """Drawing numbers for a tensor without memory would load sympy and more: seconds of work."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in ("uniform_", "normal_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextmanager
def empty_weights() -> Iterator[None]:
    """What is built in here is on the meta device, with no initial values."""
    with torch.device("meta"), _WithoutRandomNumbers():
        yield
