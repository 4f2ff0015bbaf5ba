"""Files that are there whole or not at all, whenever the process or the machine stops."""

import errno
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from vqa_repro.utils.errors import UserError


def write_atomic(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Let ``write`` fill a temporary file, then publish it as ``path``: all of it or nothing."""
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
        raise UserError(f"{path}: cannot be written: {reason(error, path.parent)}") from None


def reason(error: OSError, folder: Path) -> str:
    """Why a file could not be written into ``folder``, in words.

    A disk that is out of inodes calls itself full, whatever room it has.
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
