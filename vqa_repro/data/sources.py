"""Published files: located below a folder, and read from the zips they come in.

Zips are never unpacked: a member is read into memory, whole, up to ``MAX_BYTES``.
"""

import codecs
import json
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from vqa_repro.utils.errors import UserError, first_line
from vqa_repro.utils.files import open_regular, read_up_to
from vqa_repro.utils.paths import dangling_link

# The largest published file, VQA v2's training annotations, has 0.4 GB; the limit stops zip bombs.
MAX_BYTES = 2**30

_IMAGE_FOLDERS = {"train2014", "val2014", "test2015", "images", "nyu_depth_images"}


class MissingFileError(UserError):
    """A published file is not below the folder of the data sets."""


@dataclass(frozen=True)
class Source:
    """A file, or a ``member`` of a zip; ``str`` gives its name for messages."""

    path: Path
    member: str | None = None

    def __str__(self) -> str:
        return f"{self.path}/{self.member}" if self.member else str(self.path)

    def text(self) -> str:
        """Return the content, decoded as UTF-8, or UTF-16 if its byte order mark says so."""
        content = read_member(self.path, self.member) if self.member else self._bytes()
        utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # Excel's Unicode
        try:
            return content.decode("utf-16" if utf16 else "utf-8-sig")
        except UnicodeDecodeError as error:
            if content.startswith(b"PK\x03\x04"):
                raise UserError(f"{self}: a zip or Excel file, not text; save it as CSV") from None
            raise UserError(
                f"{self}: not UTF-8 text: byte {error.start} cannot be read; save it as UTF-8"
            ) from None

    def lines(self) -> list[str]:
        """Return the lines of the content, without empty ones at its end."""
        # Not splitlines(), which also splits at rare control characters.
        text = self.text().rstrip()
        return [line.rstrip("\r") for line in text.split("\n")] if text else []

    def json(self) -> Any:
        """Return the content, parsed as JSON."""
        text = self.text()
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            if error.msg == "Extra data" and error.colno == 1:
                raise UserError(
                    f"{self}: JSON lines (one record a line), where a single JSON value is wanted: "
                    "[record, record, ...]"
                ) from None
            ends_early = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated")
            raise UserError(
                f"{self}: {'cut off' if ends_early else 'broken'} JSON: {error} of {len(text):,}; "
                "replace it with a complete copy"
            ) from None
        except RecursionError:
            raise UserError(f"{self}: not a data set: JSON nested too deep") from None
        except ValueError as error:  # a number of thousands of digits
            raise UserError(f"{self}: not a data set: {first_line(error)}") from None

    def _bytes(self) -> bytes:
        try:
            with open_regular(self.path) as file:
                data = read_up_to(file, MAX_BYTES)
        except OSError as error:
            why = dangling_link(self.path) or error.strerror
            raise UserError(f"{self.path}: cannot be read: {why}") from None
        if len(data) > MAX_BYTES:
            raise UserError(f"{self.path}: more than {MAX_BYTES:,} bytes")
        return data


def find(root: Path, name: str, zip_name: str | None = None) -> Source:
    """Return the file called ``name`` at most three folders below ``root``, or in ``zip_name``.

    ``name`` may contain a folder ("train/questions.txt"). An unpacked file is preferred to its zip.
    Raise UserError if there is none, or more than one: choosing would be a guess.
    """
    if not root.is_dir():
        raise MissingFileError(
            f"{root}: no such folder; name the folder of the data sets with --root"
        )
    unreadable: list[str] = []
    folders = list(_folders(root, unreadable))
    found = [folder / name for folder in folders if _is_there(folder / name)]
    if found:
        return Source(_only(found))
    zips = [folder / zip_name for folder in folders if zip_name and _is_there(folder / zip_name)]
    if zips:
        path = _only(zips)
        return Source(path, find_member(path, name))
    missing = f"{name} nor {zip_name}" if zip_name else name
    why = f" (no permission to read {', '.join(unreadable)})" if unreadable else ""
    raise MissingFileError(f"{root}: no {missing} in it or up to three folders below{why}; add it")


def _is_there(path: Path) -> bool:
    """Return whether there is a file, or what reading it will refuse, such as a pipe."""
    return path.exists() and not path.is_dir()


def find_folder(root: Path, name: str) -> Path | None:
    """Return the folder called ``name`` at most three levels below ``root``; None if missing."""
    found = [folder / name for folder in _folders(root) if (folder / name).is_dir()]
    if not found:
        return None
    folder = _only(found)
    # File managers unpack train2014.zip into train2014/train2014.
    return folder / name if (folder / name).is_dir() else folder


def find_member(path: Path, name: str) -> str:
    """Return the path of the member called ``name``, in any folder of the zip at ``path``."""
    with _open_zip(path) as archive:
        members = archive.namelist()
    for member in members:
        if ".." in PurePosixPath(member).parts or member.startswith("/") or "\\" in member:
            raise UserError(f"{path}: unsafe name in the zip: {member!r}; download it again")
    found = [member for member in members if f"/{member}".endswith(f"/{name}")]
    if len(found) != 1:
        raise UserError(f"{path}: {len(found)} files called {name} in the zip, not one")
    return found[0]


def read_member(path: Path, member: str) -> bytes:
    """Return the bytes of ``member`` of the zip at ``path``, after verifying its checksum."""
    with _open_zip(path) as archive:
        size = archive.getinfo(member).file_size
        if size > MAX_BYTES:
            raise UserError(f"{path}/{member}: {size:,} bytes unpacked, more than {MAX_BYTES:,}")
        try:
            return archive.read(member)
        except (RuntimeError, NotImplementedError) as error:  # encrypted, unknown compression
            raise UserError(f"{path}/{member}: cannot be unpacked: {error}") from None
        except Exception as error:  # decompressors raise many kinds for damaged data
            why = first_line(error)
            raise UserError(f"{path}/{member}: damaged: {why}; download it again") from None


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        open_regular(path).close()
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile:
        with path.open("rb") as file:
            is_zip = file.read(4) == b"PK\x03\x04"
        what = "the zip is cut off" if is_zip else "not a zip"
        size = path.stat().st_size
        raise UserError(f"{path}: {what} (after {size:,} bytes); download it again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, NotImplementedError) as error:  # invalid names or versions
        raise UserError(f"{path}: damaged: {first_line(error)}; download it again") from None


def _folders(root: Path, unreadable: list[str] | None = None) -> Iterator[Path]:
    """Yield ``root`` and three levels of folders below it, except those with images.

    The names of folders that cannot be read are added to ``unreadable``.
    """
    denied = [] if unreadable is None else unreadable
    for name, subfolders, _ in os.walk(
        root, onerror=lambda error: denied.append(error.filename), followlinks=True
    ):
        folder = Path(name)
        yield folder
        deeper = len(folder.relative_to(root).parts) < 3
        subfolders[:] = [
            sub
            for sub in sorted(subfolders)
            if deeper and sub not in _IMAGE_FOLDERS and sub[0] != "."
        ]


def _only(found: list[Path]) -> Path:
    if len(found) > 1:
        names = ", ".join(map(str, found))
        raise UserError(f"{found[0].name} exists {len(found)} times: {names}; keep one")
    return found[0]
