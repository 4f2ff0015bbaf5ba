"""Download one file over HTTP: resume, follow redirects, retry, detect stalls, check the hash.

A download in progress is NAME.part; next to it, NAME.part.json says which answer of which server it
belongs to. Both survive kills. A file gets its name only once its SHA-256 is right.
"""

from __future__ import annotations

import glob
import itertools
import os
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqa_repro.install import http_client
from vqa_repro.install.errors import ExitCode, InstallError
from vqa_repro.install.http_client import Answer, SourceFailed, TryAgain
from vqa_repro.install.progress import Progress, mib, say
from vqa_repro.install.redact import shown
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.files import read_json, sha256_of, write_json

ATTEMPTS = 5  # failures in a row that transferred less than PROGRESS_BYTES each
PROGRESS_BYTES = 1 << 20
BACKOFF_S = 1.0
HEAD_BYTES = 512  # enough to tell a web page from a binary file
NOTES_LIMIT = 1 << 20  # bytes


@dataclass(frozen=True)
class RemoteFile:
    """A published file: its name, size in bytes, and the SHA-256 (or its beginning) it may have.

    ``size`` is exact when ``tolerance`` is 0.
    """

    filename: str
    size: int
    hashes: frozenset[str]
    tolerance: int = 0

    @property
    def largest(self) -> int:
        return self.size + self.tolerance

    @property
    def size_text(self) -> str:
        return f"{'about ' if self.tolerance else ''}{self.size:,} bytes"

    @property
    def hash_text(self) -> str:
        return " or ".join(sorted(self.hashes))

    def fits(self, size: int) -> bool:
        return abs(size - self.size) <= self.tolerance

    def matches(self, sha256: str) -> bool:
        return any(sha256.startswith(accepted) for accepted in self.hashes)


def part_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def notes_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def size_of(path: Path) -> int:
    """Return the size of a file in bytes; 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


def open_0644(path: str, flags: int) -> int:
    return os.open(path, flags, 0o644)


def ensure_space(file: RemoteFile, folder: Path, present: int) -> None:
    """Raise InstallError where the rest of ``file`` does not fit on the disk of ``folder``."""
    usage = shutil.disk_usage(folder)
    needed = file.largest - present
    if usage.total and usage.free < needed:
        raise InstallError(
            ExitCode.CHECKPOINT_DISK,
            f"{folder} has {mib(usage.free)} free, {file.filename} needs {mib(needed)}",
            next="free some space, or choose another folder with --dir or TORCH_HOME",
        )


def download(file: RemoteFile, url: str, target: Path, timeout_s: float) -> str:
    """Download ``url`` to ``NAME.part`` next to ``target``, then publish it; return its SHA-256.

    Wrong bytes are downloaded once more from the start. Raise SourceFailed where this source does
    not serve the file, InstallError for a full disk.
    """
    part = part_of(target)
    for retried in (False, True):
        fetch_part(file, url, part, timeout_s)
        sha256 = sha256_of(part)
        if file.matches(sha256):
            publish(part, target)
            remove_notes(part)
            return sha256
        part.unlink()
        remove_notes(part)
        if not retried:
            say(f"{file.filename}: wrong bytes ({sha256[:8]}...), deleted; downloading once more")
    raise SourceFailed(f"wrong bytes: sha256 {sha256[:8]}..., not {file.hash_text}", True)


def fetch_part(file: RemoteFile, url: str, part: Path, timeout_s: float) -> None:
    """Complete ``part``, retrying as long as some progress is made."""
    failures, furthest = 0, size_of(part)
    while True:
        ensure_space(file, part.parent, size_of(part))
        try:
            return transfer(file, url, part, timeout_s)
        except TryAgain as trouble:
            failures = 1 if size_of(part) - furthest >= PROGRESS_BYTES else failures + 1
            furthest = max(furthest, size_of(part))
            if failures == ATTEMPTS:
                raise SourceFailed(f"{trouble}; given up after {ATTEMPTS} tries") from None
            pause = trouble.wait_s
            if pause is None:
                pause = BACKOFF_S * 2 ** (failures - 1) * random.uniform(0.75, 1.25)
            say(f"{file.filename}: {trouble}; trying again in {pause:.0f} s")
            time.sleep(pause)


def publish(complete: Path, target: Path) -> None:
    """Give a verified file its name, in one step and lasting over a power cut."""
    with complete.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(complete, target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError:  # some file systems cannot sync a folder
        pass
    finally:
        os.close(folder)


# ---------------------------------------------------------------- one request


def transfer(file: RemoteFile, url: str, part: Path, timeout_s: float) -> None:
    """Make one request: continue ``part`` where it ends, until it is complete.

    Its notes say which answer it belongs to, so that If-Range makes the server start over when its
    file has changed. A part from another source is continued as it is: all sources have the same
    file, and the SHA-256 decides in the end.
    """
    present = size_of(part)
    if present > file.largest:
        part.unlink()
        present = 0
    notes = read_notes(part) if present else {}
    if (file.tolerance == 0 and present == file.size) or notes.get("length") == present:
        return
    with http_client.open_url(url, timeout_s, present, validator_in(notes, url)) as answer:
        if answer.is_complete(present):
            return
        start = answer.start(present, file.fits)
        if start is None:
            part.unlink()
            raise TryAgain("it did not send the requested part; starting from the first byte", 0.0)
        length = None if answer.length is None else start + answer.length
        chunks = check_head(file, answer, start, length)
        if start == 0:
            part.unlink(missing_ok=True)
            source = {"url": shown(url), "validator": answer.validator, "length": length}
            write_json(notes_of(part), source)
        else:
            say(f"{file.filename}: continuing at {mib(start)}")
        received = append(file, part, start, chunks)
    if received > file.largest:
        part.unlink()
        raise SourceFailed(f"it sends more than the {file.size:,} bytes of the file", True)
    if received < file.size - file.tolerance or (length is not None and received < length):
        raise TryAgain(f"the connection ended at {received:,} of {file.size:,} bytes")


def read_notes(part: Path) -> dict[str, Any]:
    """Return what the notes of ``part`` say; nothing where they are missing or damaged."""
    try:
        notes = read_json(notes_of(part), NOTES_LIMIT)
    except (OSError, UserError):
        return {}
    return notes if isinstance(notes, dict) else {}


def remove_notes(part: Path) -> None:
    """Remove the notes of ``part``, and those that a kill left half written."""
    notes = notes_of(part)
    for path in [notes, *part.parent.glob(f".{glob.escape(notes.name)}.*")]:
        path.unlink(missing_ok=True)


def validator_in(notes: dict[str, Any], url: str) -> str | None:
    """Return the ETag or date that ``url`` gave the part, fit for a header."""
    validator = notes.get("validator") if notes.get("url") == shown(url) else None
    if isinstance(validator, str) and validator.isascii() and validator.isprintable():
        return validator
    return None


def check_head(file: RemoteFile, answer: Answer, start: int, length: int | None) -> Iterator[bytes]:
    """Return the body, once its first bytes and its length are those of the file."""
    chunks = answer.chunks()
    head = b""
    while len(head) < HEAD_BYTES and (chunk := next(chunks, b"")):
        head += chunk
    if not head:
        raise TryAgain("its answer is empty")
    if start == 0 and b"\0" not in head:  # every format of checkpoints and wheels has zero bytes
        raise SourceFailed(
            f"text came instead of the file, from {shown(answer.url)}: a login page? "
            "Open it in a browser, log in, and try again"
        )
    if length is not None and not file.fits(length):
        raise SourceFailed(f"it has another file, of {length:,} bytes", wrong_bytes=True)
    return itertools.chain([head], chunks)


def append(file: RemoteFile, part: Path, start: int, chunks: Iterator[bytes]) -> int:
    """Append ``chunks`` to ``part``, stopping beyond the file's size; return the size of it."""
    received = start
    with (
        open(part, "ab", opener=open_0644) as out,
        Progress(file.filename, file.size, start) as progress,
    ):
        for chunk in chunks:
            out.write(chunk)
            out.flush()  # a kill loses nothing
            received += len(chunk)
            progress.update(received)
            if received > file.largest:
                break
    return received
