"""Device selection: the requested device or the best available one, always reported."""

from __future__ import annotations

import os
import platform
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from vqa_repro.utils.errors import UserError

if TYPE_CHECKING:
    import torch  # at run time inside functions: `--help` need not wait for it


def choose_device(name: str) -> torch.device:
    """The device called ``name``, which becomes the current one if it is a GPU.

    Raises UserError for a GPU asked for by name and not there.
    """
    import torch

    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: no such device; use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: only cpu and cuda are supported")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name}: torch {torch.__version__} sees {torch.cuda.device_count()} GPUs; "
            "`python -m vqa_repro.doctor` says why"
        )
    if device.type == "cuda":  # Triton and CUDA graphs go by it
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    return device


@cache
def has_bfloat16(device: torch.device, cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether ``device`` has instructions for matrix products in bfloat16.

    GPUs of Nvidia's since Ampere; processors with AVX512_BF16 or AMX, or Arm's BF16. On others they
    are far slower than in float32 (on a Zen 3 less than a hundredth of its rate), or fail.
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    try:
        return bool(re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", cpuinfo.read_text()))
    except OSError:
        return False


def use_deterministic_algorithms() -> None:
    """Compute the same numbers bit for bit each time, on this machine and of this torch.

    To be called before anything is computed. An operation that cannot be had that way raises
    RuntimeError.
    """
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or cuBLAS sums in any order
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def describe(device: torch.device) -> str:
    """The device in words, for the log: name, memory, number of threads."""
    import torch

    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name} ({properties.total_memory / 2**30:.0f} GiB)"
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
