"""Time work on a CPU or a GPU.

Times are medians of several repetitions after a warm-up. With one thread on the CPU
(OMP_NUM_THREADS=1) they are CPU time, which other processes on the machine hardly affect; else
wall-clock time.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable

import torch

from vqa_repro.utils.device import synchronize


@dataclasses.dataclass(frozen=True)
class Figure:
    name: str
    value: float
    unit: str
    note: str = ""

    def __str__(self) -> str:
        return f"  {self.name:<44} {self.value:>12,.4g} {self.unit:<14} {self.note}".rstrip()


def clock() -> float:
    """Return the CPU time in seconds with one thread and no GPU; else the wall-clock time."""
    single_thread = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    return time.process_time() if single_thread else time.perf_counter()


def seconds(work: Callable[[], object], device: torch.device, repetitions: int) -> float:
    """Return the median seconds of ``work``, after a warm-up."""
    work()
    times = []
    for _ in range(repetitions):
        synchronize(device)
        start = clock()
        work()
        synchronize(device)
        times.append(clock() - start)
    return statistics.median(times)


def peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return the multiply-adds per second of one large matrix product, the "limit" below."""
    n = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return float(n**3 / seconds(lambda: a @ b, device, 5))
