"""Memory: how much is free on the host and on a GPU, and one-line advice when it runs out."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from vqa_repro.utils.errors import UserError
from vqa_repro.utils.side_by_side import JOBS_ON_GPU

# Neither the CPU allocator nor CUDA's libraries have an exception of their own.
_OUT_OF_MEMORY = re.compile("DefaultCPUAllocator: |out of memory|_ALLOC_FAILED")
OTHER_DEVICE = "`nvidia-smi` shows who else uses a GPU, and --device cuda:N or cpu is another one"


@contextmanager
def explain_out_of_memory(fix: str = OTHER_DEVICE, where: str = "") -> Iterator[None]:
    """Turn the out-of-memory errors of torch and numpy into a UserError that ends in ``fix``."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and not _OUT_OF_MEMORY.search(str(error)):
            raise
        request = re.search(r"allocate ([\d.]+ \w+)", str(error))
        size = f" (another {request[1]} requested)" if request else ""
        raise UserError(f"out of memory{size}{where}: {fix}") from None


def processes_here() -> int:
    """Return how many processes of one command share this machine: torchrun's, or side by side."""
    return _sharers("LOCAL_WORLD_SIZE")


def _sharers(variable: str) -> int:
    text = os.environ.get(variable, "")
    return max(1, int(text)) if text.isdecimal() else 1


def free_on_device(device: torch.device) -> int:
    """Return the free memory of ``device`` in bytes, for each of the jobs that start there.

    For the CPU, that of the host.
    """
    if device.type == "cpu":
        return free_on_host()
    return int(torch.cuda.mem_get_info(device)[0]) // _sharers(JOBS_ON_GPU)


def free_on_host(root: Path = Path("/")) -> int:
    """Return the available host memory in bytes, for each of the processes that share it.

    It is what Linux reports as available, capped by the limits of containers and Slurm. If the
    system reports nothing, half of the memory counts as free. ``root`` is where proc and sys are.
    """
    try:
        available = _sum_of_matches(r"^MemAvailable:\s*(\d+) kB", root / "proc/meminfo") * 1024
    except (OSError, ValueError):
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return min([available, *_left_by_cgroups(root)]) // processes_here()


def _left_by_cgroups(root: Path) -> list[int]:
    """Return what each memory limit on this process leaves; cached file pages count as free.

    A cgroup's limit applies to its descendants, so the limits of all ancestors count too.
    """
    left = []
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            top, limit, usage, cached = (
                root / "sys/fs/cgroup",
                "memory.max",
                "memory.current",
                r"^(?:in)?active_file (\d+)",
            )
        elif "memory" in controllers.split(","):
            top, limit, usage, cached = (
                root / "sys/fs/cgroup/memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                r"^total_(?:in)?active_file (\d+)",
            )
        else:
            continue
        group = top / path.lstrip("/")
        for folder in [group, *group.parents]:  # in a container the lowest of them may be hidden
            try:
                most = _sum_of_matches(r"^(\d+)$", folder / limit)
                used = _sum_of_matches(r"^(\d+)$", folder / usage)
                left.append(most - used + _sum_of_matches(cached, folder / "memory.stat"))
            except (OSError, ValueError):  # no such folder, or "max"
                pass
            if folder == top:
                break
    return [max(0, bytes_left) for bytes_left in left]


def _sum_of_matches(pattern: str, path: Path) -> int:
    """Return the sum of all numbers that ``pattern`` matches. Raise ValueError if there is none."""
    numbers = re.findall(pattern, path.read_text(), re.MULTILINE)
    if not numbers:
        raise ValueError(f"{path}: no {pattern}")
    return sum(map(int, numbers))
