"""Several processes, one piece of work: what torchrun starts, and what they tell each other.

    torchrun --nproc-per-node 4 -m vqa_repro.extract --data vqa-v2
    torchrun --nproc-per-node 4 -m vqa_repro.train --recipe san-2-lstm-vqa-v2

In training, pictures are dealt to the processes by their row, and questions go with their picture.
A process computes its share of every batch; gradients are added up before anything else is done
with them, so that all take the same step, which is the one that a single process would have taken.
The first process speaks and writes.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple, NoReturn, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vqa_repro.utils.errors import UserError

T = TypeVar("T")

# One may be done long before another; torchrun ends all of them as soon as one fails.
PATIENCE = timedelta(days=1)


class SharedError(UserError):
    """Bad input that every process met; the first one says it."""


class World(NamedTuple):
    """Which of how many processes this is. All functions cost nothing where there is only one."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def owns(self, rows: Tensor) -> Tensor:
        """Which of these rows of a feature store are this process's: bool, as many."""
        return rows % self.size == self.rank

    def all_reduce(self, values: Tensor) -> Tensor:
        """``values``, added up over all processes in place."""
        if self.size > 1:
            with _others_may_end():
                dist.all_reduce(values)
        return values

    def any(self, *wishes: bool) -> list[bool]:
        """Of each wish, whether any process has it."""
        if self.size == 1:
            return list(wishes)
        return [bool(n) for n in self.all_reduce(torch.tensor(wishes, dtype=torch.int32)).tolist()]

    def broadcast(self, value: T) -> T:
        """The first process's ``value``."""
        held = [value if self.is_main else None]
        if self.size > 1:
            with _others_may_end():
                dist.broadcast_object_list(held, src=0)
        return held[0]  # type: ignore[return-value]

    def all_gather(self, value: T) -> list[T]:
        """Every process's ``value``, in their order."""
        held: list[Any] = [value] * self.size
        if self.size > 1:
            with _others_may_end():
                dist.all_gather_object(held, value)
        return held

    def run_together(self, work: Callable[[], T]) -> T:
        """What ``work`` returns; bad input that any process meets in it ends all of them."""
        error: UserError | None = None
        try:
            result = work()
        except UserError as met:
            if self.size == 1:
                raise
            error = met
        own = None if error is None else str(error)
        said = [text for text in self.all_gather(own) if text is not None]
        if said:
            raise SharedError(said[0])
        return result

    def run_on_main(self, work: Callable[[], T]) -> T:
        """What ``work`` returns to the first process, which alone does it; the others wait."""
        return cast(T, self.broadcast(self.run_together(lambda: work() if self.is_main else None)))

    def broadcast_weights(self, network: nn.Module) -> None:
        """Give every process the first one's weights and running means."""
        if self.size > 1:
            for value in network.state_dict().values():
                with _others_may_end():
                    dist.broadcast(value, src=0)

    def all_reduce_gradients(self, parameters: Sequence[nn.Parameter], tally: Tensor) -> Tensor:
        """Add up the gradients, and ``tally`` (n,) float32, over all processes; return the tally.

        All in one message. Parameters without a gradient here count as zeros.
        """
        if self.size == 1:
            return tally
        return self.all_reduce_flat(parameters, flattened(parameters, tally))

    def all_reduce_flat(self, parameters: Sequence[nn.Parameter], flat: Tensor) -> Tensor:
        """The same, of what ``flattened`` made, in place: the gradients become parts of it."""
        counts = [parameter.numel() for parameter in parameters]
        tally, *gradients = torch.split(self.all_reduce(flat), [len(flat) - sum(counts), *counts])
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.view_as(parameter)
        return tally


def flattened(
    parameters: Sequence[nn.Parameter], tally: Tensor, out: Tensor | None = None
) -> Tensor:
    """``tally`` (n,) and all gradients, one after the other; without a gradient, zeros."""
    parts = [tally] + [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    return torch.cat([part.flatten() for part in parts], out=out)


SINGLE_PROCESS = World()


@contextmanager
def init_distributed(device_name: str) -> Iterator[tuple[World, str]]:
    """The processes that torchrun started with this one, and the device for this one.

    Without torchrun, and with one process, nothing is started. ``device_name`` is what was asked
    for with --device: of several GPUs, each process of a machine takes its own. Processes but the
    first are silent on standard output, and have to ``leave``.
    """
    size, rank, local, here = _torchrun_variables()
    if size == 1:
        yield SINGLE_PROCESS, device_name
        return
    world = World(rank, size)
    backend = "gloo"
    if device_name != "cpu" and torch.cuda.is_available():
        if device_name not in ("auto", "cuda"):
            raise UserError(f"--device {device_name}: with torchrun, use auto, cpu or cuda")
        if here > torch.cuda.device_count():
            raise UserError(
                f"--nproc-per-node {here}: torch sees {torch.cuda.device_count()} GPUs here; "
                "start one process for each, or give --device cpu"
            )
        torch.cuda.set_device(local)
        device_name, backend = f"cuda:{local}", "cpu:gloo,cuda:nccl"
    try:
        dist.init_process_group(backend, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"torchrun's processes do not find each other: {error}") from None
    if not world.is_main:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    try:
        yield world, device_name
    except SharedError:
        dist.destroy_process_group()
        raise
    # After other errors it stays: the others may be waiting for this process, and it for them.
    dist.destroy_process_group()


def _torchrun_variables() -> tuple[int, int, int, int]:
    """Return world size, rank, local rank and local world size; (1, 0, 0, 1) without torchrun.

    Batch scripts set WORLD_SIZE or RANK of their own, or leave them empty. Raise UserError where
    they ask for several processes that torchrun did not start.
    """
    size = os.environ.get("WORLD_SIZE", "").strip()
    if size in ("", "1"):
        return 1, 0, 0, 1
    names = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    values = {name: os.environ.get(name, "").strip() for name in names}
    for name, value in values.items():
        if not value.isdecimal():
            raise UserError(
                f"WORLD_SIZE={size}, but {name} is "
                + (f"{value!r}" if value else "not set")
                + ": start several processes with torchrun, or one with `unset WORLD_SIZE RANK`"
            )
    world, rank, local, here = map(int, values.values())
    if not (rank < world and local < here <= world):
        described = ", ".join(f"{name}={value}" for name, value in values.items())
        raise UserError(
            f"{described} contradict each other: start several processes with torchrun, or one "
            "with `unset WORLD_SIZE RANK`"
        )
    return world, rank, local, here


def leave(code: int) -> NoReturn:
    """End a process that is not the first, at once.

    As the interpreter ends, a thread of torch's now and then aborts a process that is done, upon
    which torchrun would end the first one too.
    """
    sys.stderr.flush()
    os._exit(code)


@contextmanager
def _others_may_end() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise UserError(
            "another process has ended or cannot be reached; what it said tells "
            f"why ({str(error).splitlines()[0][:100]})"
        ) from None
