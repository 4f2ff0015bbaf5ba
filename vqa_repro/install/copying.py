"""Copy a checkpoint from a file or folder, whatever its name; also out of a zip or gzip.

The SHA-256 decides. What is no checkpoint (a Git LFS pointer, a web page) is named.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO

from vqa_repro.install.download import RemoteFile, ensure_space, open_0644, publish
from vqa_repro.install.http_client import SourceFailed
from vqa_repro.install.progress import Progress, say

SCAN_DEPTH = 3  # folder levels looked through
BLOCK = 1 << 20  # bytes
MAX_MEMBERS = 1000  # files looked at in a zip

Opener = Callable[[], IO[bytes] | gzip.GzipFile]


def copy_file(
    file: RemoteFile, source: Path, target: Path, others: Iterable[RemoteFile] = ()
) -> str:
    """Copy ``file`` from a file or from anywhere in a folder to ``target``; return its SHA-256.

    ``others`` are files that it may be confused with. Raise SourceFailed where it is not there.
    """
    if source.is_dir():
        candidates = list(candidates_in(file, source))
        if not candidates:
            raise SourceFailed(f"no file of {file.size_text} in {SCAN_DEPTH} levels of folders")
    else:
        candidates = [source]
        explain_misfit(file, source, others)
    ensure_space(file, target.parent, 0)
    all_read = True
    for path in candidates:
        for opener in openers(file, path):
            try:
                sha256 = copy_verified(file, opener, path, target)
            except SourceFailed as failure:  # another one may be whole
                all_read = all_read and failure.wrong_bytes
                say(str(failure))
                continue
            if file.matches(sha256):
                return sha256
            wrong = f"wrong bytes (sha256 {sha256[:8]}..., not {file.hash_text})"
            say(f"{path}: right size, {wrong}")
    why = "its bytes are wrong" if all_read else "it is damaged or cannot be read"
    raise SourceFailed(why, wrong_bytes=all_read)


def candidates_in(file: RemoteFile, folder: Path) -> Iterator[Path]:
    """Yield the files in ``folder`` that have the right size, or hold one that has."""
    for root, folders, names in os.walk(folder):  # does not follow links to folders
        if len(Path(root).relative_to(folder).parts) >= SCAN_DEPTH - 1:
            folders.clear()
        folders.sort()
        for path in (Path(root, name) for name in sorted(names)):
            with suppress(OSError):  # a dangling or circular link
                info = path.stat()
                if stat.S_ISREG(info.st_mode) and (
                    file.fits(info.st_size) or could_hold(file, path)
                ):
                    yield path


def could_hold(file: RemoteFile, path: Path) -> bool:
    """Return whether ``path`` is a gzip, or a zip with a file of the right size."""
    kind = kind_of(path)
    return (kind == "gzip" and gzip_fits(file, path)) or (
        kind == "zip" and bool(members(file, path))
    )


def kind_of(path: Path) -> str:
    """Return "zip", "gzip", "lfs", "page" or "" by the first bytes of a file."""
    with path.open("rb") as opened:
        head = opened.read(200)
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head.startswith(b"\x1f\x8b"):
        return "gzip"
    if head.startswith(b"version https://git-lfs"):
        return "lfs"
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "page"
    return ""


def members(file: RemoteFile, path: Path) -> list[zipfile.ZipInfo]:
    """Return the files of the right size in a zip; none where it cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [each for each in archive.infolist()[:MAX_MEMBERS] if file.fits(each.file_size)]
    except Exception:  # many kinds, for a damaged file
        return []


def gzip_fits(file: RemoteFile, path: Path) -> bool:
    """Return whether the size at the end of a gzip file (modulo 4 GiB) is that of ``file``."""
    with path.open("rb") as opened:
        opened.seek(-min(4, path.stat().st_size), os.SEEK_END)
        return file.fits(int.from_bytes(opened.read(4), "little"))


def explain_misfit(file: RemoteFile, path: Path, others: Iterable[RemoteFile]) -> None:
    """Raise SourceFailed, with what it is, for a file that is not the checkpoint, nor holds it."""
    size = path.stat().st_size
    if file.fits(size) or could_hold(file, path):
        return
    twin = "".join(f" (it could be {each.filename})" for each in others if each.fits(size))
    what = {
        "lfs": "it is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository",
        "page": f"it is a web page of {size:,} bytes, not the file: download it again, logged in",
        "zip": f"it has {size:,} bytes{twin}, and is not a zip file that holds the checkpoint",
        "gzip": f"it is a gzip file of {size:,} bytes that does not hold the checkpoint",
    }.get(kind_of(path), f"it has {size:,} bytes{twin}")
    raise SourceFailed(f"{what}; {file.filename} has {file.size_text}", wrong_bytes=True)


def openers(file: RemoteFile, path: Path) -> list[Opener]:
    """Return what opens ``path`` itself, where it has the right size, or else what it holds."""
    if file.fits(path.stat().st_size):
        return [lambda: path.open("rb")]
    if kind_of(path) == "gzip":
        return [partial(gzip.GzipFile, path)]
    return [partial(open_member, path, member) for member in members(file, path)]


def open_member(path: Path, member: zipfile.ZipInfo) -> IO[bytes]:
    with zipfile.ZipFile(path) as archive:
        return archive.open(member)  # which can be read when the archive is closed


def copy_verified(file: RemoteFile, opener: Opener, path: Path, target: Path) -> str:
    """Copy and hash in one pass; ``target`` appears only if the returned SHA-256 is right."""
    unproven = target.with_name(f".{target.name}.copy")
    digest = hashlib.sha256()
    written = 0
    try:
        with (
            open(unproven, "wb", opener=open_0644) as out,
            Progress(file.filename, file.size, 0) as progress,
        ):
            for block in blocks_of(opener, path):
                written += len(block)
                if written > file.largest:  # a gzip may be larger than it says
                    raise SourceFailed(f"{path} holds more than {file.size_text}", True)
                digest.update(block)
                out.write(block)
                progress.update(written)
        if file.matches(digest.hexdigest()):
            publish(unproven, target)
    finally:
        unproven.unlink(missing_ok=True)
    return digest.hexdigest()


def blocks_of(opener: Opener, path: Path) -> Iterator[bytes]:
    try:
        with opener() as source:
            while block := source.read(BLOCK):
                yield block
    except Exception as error:  # many kinds, for a damaged file
        reason = getattr(error, "strerror", None) or error
        raise SourceFailed(f"reading {path} failed: {reason}") from None
