"""Several processes, one piece of work: what torchrun starts, and what they tell each other.

    torchrun --nproc-per-node 4 -m vqa_repro.extract --data vqa-v2

The first process speaks and publishes.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple, NoReturn, TypeVar

import torch
import torch.distributed as dist

from vqa_repro.errors import UserError

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
    def first(self) -> bool:
        return self.rank == 0

    def from_first(self, value: T) -> T:
        """The first process's ``value``."""
        held = [value if self.first else None]
        if self.size > 1:
            with _others_may_end():
                dist.broadcast_object_list(held, src=0)
        return held[0]  # type: ignore[return-value]

    def from_all(self, value: T) -> list[T]:
        """Every process's ``value``, in their order."""
        held: list[Any] = [value] * self.size
        if self.size > 1:
            with _others_may_end():
                dist.all_gather_object(held, value)
        return held

    def together(self, work: Callable[[], T]) -> T:
        """What ``work`` returns; bad input that any process meets in it ends all of them."""
        error: UserError | None = None
        try:
            result = work()
        except UserError as met:
            if self.size == 1:
                raise
            error = met
        said = [text for text in self.from_all(error and str(error)) if text is not None]
        if said:
            raise SharedError(said[0])
        return result


ALONE = World()


@contextmanager
def joined(device_name: str) -> Iterator[tuple[World, str]]:
    """The processes that torchrun started with this one, and the device for this one.

    Without torchrun, and with one process, nothing is started. ``device_name`` is what was asked
    for with --device: of several GPUs, each process of a machine takes its own. Processes but the
    first are silent on standard output.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE, device_name
        return
    world = World(int(os.environ["RANK"]), size)
    local, here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
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
    spoken = sys.stdout
    if not world.first:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    try:
        yield world, device_name
    finally:
        if not world.first:
            sys.stdout.close()
            sys.stdout = spoken
        dist.destroy_process_group()


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
            "another process has ended or cannot be reached; what it said tells why "
            f"({str(error).splitlines()[0][:100]})"
        ) from None
