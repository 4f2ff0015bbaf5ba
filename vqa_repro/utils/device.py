"""Device selection: the requested device or the best available one, always reported."""

from __future__ import annotations

import os
import platform
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from vqa_repro.utils.errors import UserError
from vqa_repro.utils.plurals import plural

if TYPE_CHECKING:
    import torch  # imported inside functions, so that `--help` is fast


def choose_device(name: str) -> torch.device:
    """Return the device called ``name``; a GPU becomes the current device.

    Raise UserError if the device does not exist.
    """
    import torch

    if name == "auto":
        name = "cuda:0" if torch.cuda.is_available() else "cpu"
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
    if device.type == "cuda":  # Triton and CUDA graphs use the current device
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    return device


@cache
def has_bfloat16(device: torch.device, cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether ``device`` has instructions for matrix products in bfloat16.

    NVIDIA GPUs since Ampere do; processors with AVX512_BF16, AMX or Arm's BF16 do. On others
    bfloat16 is far slower than float32 (on a Zen 3 by a factor of 100), or fails.
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    try:
        return bool(re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", cpuinfo.read_text()))
    except OSError:
        return False


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has computed all that it was given; a CPU has already."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def use_deterministic_algorithms() -> None:
    """Make results bit-for-bit reproducible on the same machine and torch version.

    Call it before anything is computed. Operations without a deterministic implementation raise
    RuntimeError.
    """
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS sums in any order
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def use_precision(precision: str) -> None:
    """Set how a GPU computes products of float32 matrices, convolutions and LSTMs.

    "tf32": in TensorFloat-32, with inputs rounded to 11 bits, on GPUs since Ampere. Otherwise in
    float32; PyTorch by itself would use TensorFloat-32 in convolutions and LSTMs.
    """
    import torch

    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def describe(device: torch.device) -> str:
    """Return a description of the device for logs: name and memory, or number of threads."""
    import torch

    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name} ({properties.total_memory / 2**30:.0f} GiB)"
    count = torch.get_num_threads()
    return f"CPU ({platform.machine()}, {count} {plural(count, 'thread', 'threads')})"
