"""Memory that runs out: one line that says what to change."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from vqa_repro.utils.errors import UserError

# The allocator of the CPU has no exception of its own, and neither have CUDA's libraries.
FULL = re.compile("DefaultCPUAllocator: |out of memory|_ALLOC_FAILED")
ELSEWHERE = "`nvidia-smi` shows who else uses a GPU, and --device cuda:N or cpu is another one"


@contextmanager
def explain_out_of_memory_in(fix: str = ELSEWHERE, where: str = "") -> Iterator[None]:
    """Turn what torch and numpy raise for want of memory into a UserError that ends in ``fix``."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and not FULL.search(str(error)):
            raise
        asked = re.search(r"allocate ([\d.]+ \w+)", str(error))
        more = f" (another {asked[1]} asked for)" if asked else ""
        raise UserError(f"out of memory{more}{where}: {fix}") from None
