"""Distributed extraction and training, with the processes that torchrun starts.

    torchrun --nproc-per-node 4 -m vqa_repro.extract --data vqa-v2
    torchrun --nproc-per-node 4 -m vqa_repro.train --recipe san-2-lstm-vqa-v2

In training, images are distributed over the processes by their row, and questions follow their
image. Each process computes its share of every batch; gradients are summed before anything else is
done with them, so that all processes take the same step, which is the one that a single process
would have taken. Only the main process prints and writes.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, NamedTuple, NoReturn, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vqa_repro.utils.errors import UserError

T = TypeVar("T")

# Some processes may finish long before others; torchrun ends all of them if one fails.
TIMEOUT = timedelta(days=1)


class SharedError(UserError):
    """Bad input that ended all processes; only the main one reports it."""


class World(NamedTuple):
    """Rank and world size. With a single process, all methods are free."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def owns(self, rows: Tensor) -> Tensor:
        """Return a bool mask of the ``rows`` of a feature store that belong to this process."""
        return rows % self.size == self.rank

    def all_reduce(self, values: Tensor) -> Tensor:
        """Sum ``values`` over all processes, in place, and return them."""
        if self.size > 1:
            with _explain_lost_process():
                dist.all_reduce(values)
        return values

    def any(self, *flags: bool) -> list[bool]:
        """Return for each flag whether it is set in any process."""
        if self.size == 1:
            return list(flags)
        return [bool(n) for n in self.all_reduce(torch.tensor(flags, dtype=torch.int32)).tolist()]

    def broadcast(self, value: T) -> T:
        """Return the ``value`` of the main process."""
        values = [value if self.is_main else None]
        if self.size > 1:
            with _explain_lost_process():
                dist.broadcast_object_list(values, src=0)
        return values[0]  # type: ignore[return-value]

    def all_gather(self, value: T) -> list[T]:
        """Return the ``value`` of every process, by rank."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            with _explain_lost_process():
                dist.all_gather_object(values, value)
        return values

    def run_together(self, work: Callable[[], T]) -> T:
        """Return the result of ``work``; a UserError in any process is raised in all of them."""
        error: UserError | None = None
        try:
            result = work()
        except UserError as caught:
            if self.size == 1:
                raise
            error = caught
        own = None if error is None else str(error)
        errors = [text for text in self.all_gather(own) if text is not None]
        if errors:
            raise SharedError(errors[0])
        return result

    def run_on_main(self, work: Callable[[], T]) -> T:
        """Run ``work`` in the main process only; return its result in all processes."""
        return cast(T, self.broadcast(self.run_together(lambda: work() if self.is_main else None)))

    def broadcast_weights(self, network: nn.Module) -> None:
        """Copy the weights and running means of the main process to all others."""
        if self.size > 1:
            for value in network.state_dict().values():
                with _explain_lost_process():
                    dist.broadcast(value, src=0)

    def all_reduce_gradients(self, parameters: Sequence[nn.Parameter], totals: Tensor) -> Tensor:
        """Sum the gradients, and ``totals`` (n,) float32, over all processes; return the totals.

        In one message. Parameters without a gradient here count as zeros.
        """
        if self.size == 1:
            return totals
        return self.all_reduce_flat(parameters, flattened(parameters, totals))

    def all_reduce_flat(self, parameters: Sequence[nn.Parameter], flat: Tensor) -> Tensor:
        """As ``all_reduce_gradients``, of the tensor that ``flattened`` returned, in place.

        Gradients become views of it.
        """
        counts = [parameter.numel() for parameter in parameters]
        totals, *gradients = torch.split(self.all_reduce(flat), [len(flat) - sum(counts), *counts])
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.view_as(parameter)
        return totals


def flattened(
    parameters: Sequence[nn.Parameter], totals: Tensor, out: Tensor | None = None
) -> Tensor:
    """Return ``totals`` (n,) and all gradients concatenated; missing gradients are zeros."""
    parts = [totals] + [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    return torch.cat([part.flatten() for part in parts], out=out)


SINGLE_PROCESS = World()


@contextmanager
def init_distributed(device_name: str) -> Iterator[tuple[World, str]]:
    """Join the processes that torchrun started; yield the world and the device of this process.

    Without torchrun, and for a single process, nothing is initialised. ``device_name`` is the value
    of --device: with several GPUs each process of a machine gets its own. Processes other than the
    main one print nothing on standard output, and must end with ``leave``.
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
        dist.init_process_group(backend, timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the processes of torchrun cannot connect: {error}") from None
    if not world.is_main:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    try:
        yield world, device_name
    except SharedError:
        dist.destroy_process_group()
        raise
    # Not after other errors: other processes may be waiting for this one, and would wait forever.
    dist.destroy_process_group()


def _torchrun_variables() -> tuple[int, int, int, int]:
    """Return world size, rank, local rank and local world size; (1, 0, 0, 1) without torchrun.

    Batch scripts may set WORLD_SIZE or RANK themselves, or leave them empty. Raise UserError if
    they request several processes that torchrun did not start.
    """
    size = os.environ.get("WORLD_SIZE", "").strip()
    if size in ("", "1"):
        return 1, 0, 0, 1
    names = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    values = {name: os.environ.get(name, "").strip() for name in names}
    for name, value in values.items():
        if not value.isdecimal():
            raise UserError(
                f"{name} is "
                + (f"{value!r}, not a number" if value else f"not set, but WORLD_SIZE={size}")
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
    """Exit a process that is not the main one, at once.

    At interpreter exit a thread of torch sometimes aborts a finished process, upon which torchrun
    would end the main one too.
    """
    sys.stderr.flush()
    os._exit(code)


@contextmanager
def _explain_lost_process() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        # Of torchrun, which ends the others after one, before they have reported why.
        with suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise UserError(
            "another process has ended or cannot be reached; its own message tells "
            f"why ({str(error).splitlines()[0][:100]})"
        ) from None
