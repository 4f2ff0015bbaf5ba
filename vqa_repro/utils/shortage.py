"""Memory or disk that gives out: one line that says what to change."""

import errno
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from vqa_repro.recipe import Training
from vqa_repro.utils.device import has_bfloat16
from vqa_repro.utils.errors import UserError

# The allocator of the CPU has no exception of its own, and neither have CUDA's libraries.
FULL = re.compile("DefaultCPUAllocator: |out of memory|_ALLOC_FAILED")
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ELSEWHERE = "`nvidia-smi` shows who else uses a GPU, and --device cuda:N or cpu is another one"


@contextmanager
def explain_out_of_memory_in(fix: str = ELSEWHERE, where: str = "") -> Iterator[None]:
    """Turn what torch and numpy raise for want of memory into a UserError that ends in ``mend``."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and not FULL.search(str(error)):
            raise
        asked = re.search(r"allocate ([\d.]+ \w+)", str(error))
        more = f" (another {asked[1]} asked for)" if asked else ""
        raise UserError(f"out of memory{more}{where}: {fix}") from None


@contextmanager
def explained(training: Training, folder: Path, device: torch.device) -> Iterator[None]:
    """Likewise in training, and also what the file system raises for want of room."""
    smaller = f"--set training.batch_size={max(1, training.batch_size // 2)}"
    if training.precision == "float32" and has_bfloat16(device):
        smaller += " or --set training.precision=bfloat16"
    fix = (
        f"{smaller} takes less; on a GPU, --rows host leaves its memory to the training, "
        "`nvidia-smi` shows who else uses it, and --device cuda:N is another one"
    )
    try:
        with explain_out_of_memory_in(fix, f" at batch_size {training.batch_size}"):
            yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise UserError(
            f"{error.filename or folder}: cannot be written: {error.strerror}; make room, then the "
            f"same command with --resume --out {shlex.quote(str(folder))} goes on from what was "
            "saved last"
        ) from None
