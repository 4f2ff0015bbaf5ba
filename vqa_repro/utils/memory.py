"""How much memory is free for a process to use, on the host and on a GPU."""

import os
import re
from pathlib import Path

import torch


def processes_here() -> int:
    """Return how many processes torchrun has started on this machine; 1 without torchrun."""
    text = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, int(text)) if text.isdecimal() else 1


def free_on_device(device: torch.device) -> int:
    """Bytes; of the host where the device is the CPU."""
    if device.type == "cpu":
        return free_on_host()
    return int(torch.cuda.mem_get_info(device)[0])


def free_on_host(root: Path = Path("/")) -> int:
    """Bytes: what Linux calls available, but no more than the limits of containers and Slurm leave.

    Divided by the number of processes that torchrun started on this machine. Where the system does
    not say, half of the memory counts as free. ``root`` is where proc and sys are.
    """
    try:
        available = _number(r"^MemAvailable:\s*(\d+) kB", root / "proc/meminfo") * 1024
    except (OSError, ValueError):
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return min([available, *_left_by_cgroups(root)]) // processes_here()


def _left_by_cgroups(root: Path) -> list[int]:
    """What each limit on this process's memory leaves; files that are merely cached count as free.

    A group's limit holds for the groups in it, so all above this process's own count.
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
                most = _number(r"^(\d+)$", folder / limit)
                used = _number(r"^(\d+)$", folder / usage)
                left.append(most - used + _number(cached, folder / "memory.stat"))
            except (OSError, ValueError):  # no such folder, or "max"
                pass
            if folder == top:
                break
    return [max(0, bytes_left) for bytes_left in left]


def _number(pattern: str, path: Path) -> int:
    """The sum of all numbers that ``pattern`` finds. Raises ValueError if it finds none."""
    found = re.findall(pattern, path.read_text(), re.MULTILINE)
    if not found:
        raise ValueError(f"{path}: no {pattern}")
    return sum(map(int, found))
