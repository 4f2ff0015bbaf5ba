"""Read and write files: atomic writes, bounded reads, checksums. Standard library only."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from vqa_repro.utils.errors import UserError

BLOCK = 1 << 20  # bytes
MAX_JSON = 1 << 24  # bytes; files may be untrusted
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
NOT_REGULAR = "not a regular file (a pipe, a socket or a device)"


class WriteError(UserError):
    """A file that could not be written; ``errno`` is the system's reason."""

    def __init__(self, text: str, error: OSError) -> None:
        super().__init__(text)
        self.errno = error.errno or 0


def write_atomic(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Let ``write`` fill a temporary file, then publish it as ``path``: all of it or nothing.

    A link is replaced, not followed: it may lie in a folder from a stranger. Raise WriteError if
    that is not possible.
    """
    try:
        name = path.parent / f".{path.name}.{os.urandom(4).hex()}"
        handle = os.open(name, NEW, 0o666)  # less the umask, which only the system reads safely
        try:
            with os.fdopen(handle, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            with suppress(FileNotFoundError):  # a signal right after it was published
                os.unlink(name)
            raise
    except OSError as error:
        why = reason(error, path.parent)
        raise WriteError(f"{path}: cannot be written: {why}", error) from None


def write_output(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write to a ``path`` that the user named: as ``write_atomic`` does, but through a link.

    A device or a pipe is written to, not replaced; so is what one of our descriptors has open, for
    example /dev/stdout redirected to a file. Raise WriteError if that is not possible.
    """
    try:
        if (number := _descriptor(path)) is not None:
            for stream in (sys.stdout, sys.stderr):
                if stream:
                    stream.flush()  # what was printed before
            with os.fdopen(os.dup(number), "wb") as file:
                write(file)
            return
        if _is_device(path):
            with path.open("wb") as file:
                write(file)
            return
    except OSError as error:
        why = error.strerror or str(error)
        raise WriteError(f"{path}: cannot be written: {why}", error) from None
    write_atomic(_target(path), write)


def check_writable(path: Path, option: str) -> None:
    """Raise UserError if ``write_output`` cannot write ``path``, before there is something to."""
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if _descriptor(path) is not None:
            return
        if _is_device(path):  # to open a pipe would wait for its reader
            if not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return
        with tempfile.TemporaryFile(dir=_target(path).parent):
            pass
    except OSError as error:
        why = reason(error, path.parent)
        raise UserError(f"{option} {path}: cannot be written: {why}; name another file") from None


def check_folder(folder: Path, option: str) -> None:
    """Raise UserError if no file can be written into ``folder``, which may not exist yet."""
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        why = reason(error, nearest)
        raise UserError(
            f"{option} {folder}: cannot be written: {nearest}: {why}; name another folder"
        ) from None


def check_distinct(one: Path, other: Path, options: str) -> None:
    """Raise UserError if writing ``other`` would replace ``one``."""
    if os.path.realpath(one) == os.path.realpath(other) and not _is_device(one):
        raise UserError(f"{options} name the same file, {one}; name two files")


def _descriptor(path: Path) -> int | None:
    """Return the descriptor, at least 1, that has open what ``path`` leads to; None if none has."""
    try:
        target = path.stat()
    except FileNotFoundError:
        return None
    for number in range(1, 256):  # a shell chooses among these
        with suppress(OSError):  # not open
            if os.path.samestat(target, os.fstat(number)):
                return number
    return None


def _is_device(path: Path) -> bool:
    """Return whether ``path`` leads to a device, a pipe or a socket."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _target(path: Path) -> Path:
    """Return the file that the link ``path`` leads to, or should; ``path`` if it is none."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as JSON, atomically; see ``write_atomic``."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    # A lone surrogate, which UTF-8 cannot encode, becomes a JSON escape.
    write_atomic(path, lambda file: file.write(text.encode(errors="backslashreplace")))


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def open_regular(path: Path, *, follow_links: bool = True) -> BinaryIO:
    """Open a file for reading; raise OSError if it is a pipe, a socket, a device or a folder.

    Reading those may never end; even opening a pipe waits until another program writes to it.
    Without ``follow_links`` a link is refused as well.
    """
    flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    flags |= getattr(os, "O_NONBLOCK", 0) | (0 if follow_links else getattr(os, "O_NOFOLLOW", 0))
    try:
        handle = os.open(path, flags)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENODEV):  # a socket, or a device without a driver
            raise OSError(errno.EINVAL, NOT_REGULAR, str(path)) from None
        if error.errno == errno.ELOOP and not follow_links:
            raise OSError(errno.ELOOP, "it is a link", str(path)) from None
        raise
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(handle, "rb")
    os.close(handle)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, NOT_REGULAR, str(path))


def read_up_to(file: BinaryIO, limit: int) -> bytes:
    """Return the content of a regular file, of a larger one the first ``limit`` + 1 bytes.

    Python allocates the requested size, even if the file is far smaller.
    """
    return file.read(min(os.fstat(file.fileno()).st_size, limit) + 1)


def read_bounded(path: Path, limit: int, *, follow_links: bool = True) -> bytes:
    """Return the content of a regular file of at most ``limit`` bytes.

    Raise UserError for a larger one, whose content is not read, or one that cannot be read.
    """
    try:
        with open_regular(path, follow_links=follow_links) as file:
            content = read_up_to(file, limit)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if len(content) > limit:
        raise UserError(f"{path}: more than {limit:,} bytes: not made by this program")
    return content


def read_json(path: Path, limit: int = MAX_JSON) -> Any:
    """Return the content of a JSON file of at most ``limit`` bytes.

    Raise UserError for a larger or damaged one, or one that cannot be read.
    """
    try:
        return json.loads(read_bounded(path, limit))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {str(error)[:100]}") from None


def reason(error: OSError, folder: Path) -> str:
    """Return why a file could not be written into ``folder``.

    The error of a disk without free inodes is "No space left", however much space it has.
    """
    why = error.strerror or str(error)
    with suppress(OSError):
        disk = os.statvfs(folder)
        if error.errno == errno.ENOSPC and disk.f_files and not disk.f_favail and disk.f_bavail:
            why += " for another file, though there is free space (`df -i`): remove some files"
    return why
