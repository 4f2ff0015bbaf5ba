"""Memory or disk that gives out while training: one line that says what to change."""

import errno
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from vqa_repro.errors import UserError
from vqa_repro.recipe import Training

CPU_FULL = "DefaultCPUAllocator: "
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def explained(training: Training, folder: Path) -> Iterator[None]:
    """Turn what torch and the file system raise for want of room into a UserError."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one; on the CPU it has no name
        if not isinstance(error, torch.OutOfMemoryError) and CPU_FULL not in str(error):
            raise
        asked = re.search(r"allocate ([\d.]+ \w+)", str(error))
        more = f" (another {asked[1]} asked for)" if asked else ""
        smaller = f"--set training.batch_size={max(1, training.batch_size // 2)}"
        if training.precision == "float32":
            smaller += " or --set training.precision=bfloat16"
        raise UserError(
            f"out of memory{more} at batch_size {training.batch_size}: {smaller} takes less; on a "
            "GPU, --rows host leaves its memory to the training, `nvidia-smi` shows who else uses "
            "it, and --device cuda:N is another one"
        ) from None
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise UserError(
            f"{error.filename or folder}: cannot be written: {error.strerror}; make room, then the "
            f"same command with --resume --out {shlex.quote(str(folder))} goes on from what was "
            "saved last"
        ) from None
