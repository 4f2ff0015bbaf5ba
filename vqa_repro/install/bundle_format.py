"""The files of a bundle: whole, or in parts that are small enough; and the errors of a bundle."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, NoReturn

from vqa_repro.install.errors import ExitCode, InstallError
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.files import open_regular

MANIFEST, DESCRIPTION = "MANIFEST.sha256", "bundle.json"
FORMAT = 1
BLOCK = 1 << 20
AGAIN = "the same command continues; finished downloads are kept"
MAKE_AGAIN = "copy or make it again"


def refuse(text: str) -> NoReturn:
    raise InstallError(ExitCode.BUNDLE, text)


def say(text: str) -> None:
    print(f"  {text}", flush=True)


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


class Piece(NamedTuple):
    """A file in the bundle: a whole one, or a part."""

    path: str  # in the bundle, with /
    size: int  # bytes
    sha256: str


class Whole(NamedTuple):
    """A file as it is used."""

    size: int
    sha256: str
    pieces: list[Piece]


def blocks(file: BinaryIO, limit: int | None = None) -> Iterator[bytes]:
    """What is left of ``file``, at most ``limit`` bytes of it."""
    while limit is None or limit > 0:
        block = file.read(BLOCK if limit is None else min(BLOCK, limit))
        if not block:
            return
        limit = None if limit is None else limit - len(block)
        yield block


def is_plain(path: Path) -> bool:
    """Whether there is a regular file, and no link to one."""
    return path.is_file() and not path.is_symlink()


def part_name(name: str, number: int) -> str:
    return f"{name}.{number:03d}"


def parts_of(path: Path) -> list[Path]:
    """Return the parts next to ``path``, in order."""
    parts: list[Path] = []
    while (part := path.with_name(part_name(path.name, len(parts) + 1))).exists():
        parts.append(part)
    return parts


def open_piece(path: Path) -> BinaryIO:
    """Open a file of a bundle: no link, pipe or device."""
    try:
        return open_regular(path, follow_links=False)
    except OSError as error:
        refuse(f"{path}: cannot be read: {error.strerror}; {MAKE_AGAIN}")


def cut(path: Path, name: str, limit: int) -> Whole:
    """Hash a file of the bundle, called ``name`` there, and cut it where it is over ``limit``."""
    size = path.stat().st_size
    if size > 999 * limit:
        raise UserError(f"--split {limit}: {name} would be more than 999 parts")
    whole, pieces = hashlib.sha256(), []
    with path.open("rb") as file:
        for number in range(1, -(-size // limit) + 1):
            digest, length = hashlib.sha256(), 0
            with contextlib.ExitStack() as stack:
                part = None
                if size > limit:
                    part = stack.enter_context(Path(part_name(str(path), number)).open("wb"))
                for block in blocks(file, limit):
                    whole.update(block)
                    digest.update(block)
                    length += len(block)
                    if part:
                        part.write(block)
            piece = part_name(name, number) if size > limit else name
            pieces.append(Piece(piece, length, digest.hexdigest()))
    if size > limit:  # all parts are written: only now may the whole go
        path.unlink()
    return Whole(size, whole.hexdigest(), pieces or [Piece(name, 0, whole.hexdigest())])


def join(parts: list[Path], path: Path) -> str:
    """Write the parts one after the other; returns the sha256. ``path`` appears when all is in."""
    digest = hashlib.sha256()
    fresh = path.with_name(path.name + ".new")
    with fresh.open("wb") as out:
        for part in parts:
            with part.open("rb") as file:
                for block in blocks(file):
                    digest.update(block)
                    out.write(block)
    os.replace(fresh, path)
    return digest.hexdigest()


def uncut(folder: Path) -> None:
    """Undo ``cut`` in a bundle that is to be completed, also one that was killed half way."""
    for first in list(folder.rglob("*.001")):
        path = first.with_name(first.name.removesuffix(".001"))
        parts = parts_of(path)
        if not path.exists():
            join(parts, path)  # if one is missing: wrong bytes, which are noticed like any others
        for part in parts:
            part.unlink()
