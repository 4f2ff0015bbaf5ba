"""Read and write files: atomic writes, bounded reads, checksums. Standard library only."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from vqa_repro.utils.errors import UserError

BLOCK = 1 << 20  # bytes


class WriteError(UserError):
    """A file that could not be written; ``errno`` is the system's reason."""

    def __init__(self, text: str, error: OSError) -> None:
        super().__init__(text)
        self.errno = error.errno or 0


def write_atomic(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Let ``write`` fill a temporary file, then publish it as ``path``: all of it or nothing.

    Raise WriteError where that is not possible.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        why = reason(error, path.parent)
        raise WriteError(f"{path}: cannot be written: {why}", error) from None


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def read_bounded(path: Path, limit: int) -> bytes:
    """Return the content of a file of at most ``limit`` bytes.

    Raise UserError for a larger one, whose content is not read, and OSError as ``open`` does.
    """
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise UserError(f"{path}: larger than {limit:,} bytes, so it is not what it should be")
    return content


def read_json(path: Path, limit: int) -> Any:
    """Return what a JSON file of at most ``limit`` bytes holds.

    Raise UserError for a larger or damaged one, and OSError as ``open`` does.
    """
    try:
        return json.loads(read_bounded(path, limit))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({str(error)[:100]})") from None


def reason(error: OSError, folder: Path) -> str:
    """Return why a file could not be written into ``folder``, in words.

    A disk without free inodes calls itself full, however much space it has.
    """
    why = error.strerror or str(error)
    with suppress(OSError):
        disk = os.statvfs(folder)
        if error.errno == errno.ENOSPC and disk.f_files and not disk.f_favail and disk.f_bavail:
            why += " for another file, though there is room (`df -i`): remove some files"
    return why


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
