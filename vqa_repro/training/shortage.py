"""One-line advice when a training runs out of memory or disk space."""

import errno
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from vqa_repro.recipe import Training
from vqa_repro.utils.device import has_bfloat16
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.memory import explain_out_of_memory

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def explain_shortage(training: Training, folder: Path, device: torch.device) -> Iterator[None]:
    """Turn out-of-memory and disk-full errors into a UserError with the fix."""
    smaller = f"--set training.batch_size={max(1, training.batch_size // 2)}"
    if training.precision != "bfloat16" and has_bfloat16(device):
        smaller += " or --set training.precision=bfloat16"
    fix = (
        f"{smaller} takes less; on a GPU, --feature-placement pinned leaves its memory to the "
        "training, `nvidia-smi` shows who else uses it, and --device cuda:N is another one"
    )
    try:
        with explain_out_of_memory(fix, f" at batch_size {training.batch_size}"):
            yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise UserError(
            f"{error.filename or folder}: cannot be written: {error.strerror}; free some space, "
            f"then re-run with --resume --out {shlex.quote(str(folder))}: it resumes from the last "
            "checkpoint"
        ) from None
