"""The feature store: one row of numbers per picture, in one memory-mapped file.

The file is in the safetensors format, so any tool can read it: the tensor ``rows`` (N, ...), and in
the header's metadata the N picture keys and what made the rows. While rows are being written the
file is called ``*.part`` and a bitmap beside it says which rows are there, so that a killed
extraction goes on where it stopped.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from vqa_repro.atomic import write_atomic
from vqa_repro.errors import UserError
from vqa_repro.pictures import read_picture

FORMAT = "vqa_repro-store-1"
MAX_HEADER = 64 * 1024 * 1024  # bytes; the keys of a million pictures fit

_DTYPES = {"U8": np.uint8, "F16": np.float16, "F32": np.float32}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class Store:
    """An open store. ``rows`` (N, ...) is read from disk where it is touched."""

    path: Path
    rows: npt.NDArray[Any]
    row_of: dict[str, int]  # picture key -> row
    made_by: dict[str, Any]

    def fingerprint(self) -> str:
        """sha256 of what made the rows and of which pictures: equal for equal contents."""
        text = json.dumps([self.made_by, list(self.row_of), self.rows.shape], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


class StoreWriter:
    """Fills a store row by row, in any order; ``finish`` publishes it under its name.

    Opening a path whose ``.part`` was made from the same keys by the same thing goes on with it;
    any other ``.part`` is started anew.
    """

    def __init__(
        self,
        path: Path,
        keys: Sequence[str],
        row_shape: tuple[int, ...],
        dtype: npt.DTypeLike,
        made_by: dict[str, Any],
    ) -> None:
        self.path = path
        self._part = path.with_name(path.name + ".part")
        self._done_path = path.with_name(path.name + ".done")
        header, size = _header(keys, row_shape, np.dtype(dtype), made_by)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not self._continues(header, size, len(keys)):
                self._done_path.write_bytes(bytes(len(keys)))
                with self._part.open("wb") as file:
                    file.write(header)
                    # Claim the room now: a full disk is better met before the work than after.
                    if hasattr(os, "posix_fallocate"):
                        os.posix_fallocate(file.fileno(), 0, len(header) + size)
                    else:
                        file.truncate(len(header) + size)
        except OSError as error:
            raise UserError(
                f"{self._part}: cannot write {size / 1e9:.2f} GB of features: {error.strerror}"
            ) from None
        shape = (len(keys), *row_shape)
        self._rows = np.memmap(self._part, dtype, "r+", offset=len(header), shape=shape)
        self._done = np.memmap(self._done_path, np.uint8, "r+", shape=(len(keys),))

    def _continues(self, header: bytes, size: int, count: int) -> bool:
        try:
            if self._done_path.stat().st_size != count:
                return False
            if self._part.stat().st_size != len(header) + size:
                return False
            with self._part.open("rb") as file:
                return file.read(len(header)) == header
        except FileNotFoundError:
            return False

    def missing(self) -> npt.NDArray[np.int64]:
        """Rows not yet written, ascending."""
        return np.flatnonzero(self._done == 0)

    def write(self, row: int, values: npt.NDArray[Any]) -> None:
        """Put ``values`` (one row's shape) in place."""
        self._rows[row] = values
        self._done[row] = 1

    def flush(self) -> None:
        """Rows first, then the bitmap: after a power cut no row is thought done that is not."""
        self._rows.flush()
        self._done.flush()

    def finish(self) -> None:
        """Publish the full store under its name."""
        if len(self.missing()):
            raise ValueError(f"{len(self.missing())} rows of {self.path} are not written")
        self._rows.flush()
        os.replace(self._part, self.path)
        self._done_path.unlink()


def _header(
    keys: Sequence[str], row_shape: tuple[int, ...], dtype: np.dtype[Any], made_by: dict[str, Any]
) -> tuple[bytes, int]:
    shape = [len(keys), *row_shape]
    size = int(np.prod(shape)) * dtype.itemsize
    text = json.dumps(
        {
            "__metadata__": {
                "format": FORMAT,
                "keys": json.dumps(list(keys)),
                "made_by": json.dumps(made_by, sort_keys=True),
            },
            "rows": {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [0, size]},
        }
    ).encode()
    text += b" " * (-len(text) % 64)  # rows start on a cache line
    return len(text).to_bytes(8, "little") + text, size


def open_store(path: Path) -> Store:
    """Open a store without reading its rows.

    Raises UserError if the file is missing, truncated, or not a feature store.
    """
    try:
        total = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(MAX_HEADER, total - 8):
                raise ValueError("the header's length is impossible")
            header = json.loads(file.read(length))
        metadata, rows = header["__metadata__"], header["rows"]
        if metadata["format"] != FORMAT:
            raise ValueError(f"its format is {metadata['format']!r}, not {FORMAT!r}")
        keys, made_by = json.loads(metadata["keys"]), json.loads(metadata["made_by"])
        dtype, shape = np.dtype(_DTYPES[rows["dtype"]]), tuple(int(n) for n in rows["shape"])
        if min(shape) < 0 or shape[0] != len(keys) or len(set(keys)) != len(keys):
            raise ValueError("keys and rows do not match")
        size = int(np.prod([int(n) for n in shape], dtype=object)) * dtype.itemsize
        if total != 8 + length + size:
            raise ValueError(f"it has {total:,} bytes where its header says {8 + length + size:,}")
    except FileNotFoundError:
        raise UserError(f"{path}: no such feature store; make it with `extract`") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path}: not a whole feature store ({error}); delete it and make it anew"
        ) from None
    mapped = np.memmap(path, dtype, "r", offset=8 + length, shape=shape)
    return Store(path, mapped, {key: row for row, key in enumerate(keys)}, made_by)


def store_pixels(images: dict[str, Path], path: Path, size: int) -> Store:
    """Store the pictures themselves, squashed to (size, size, 3) uint8; return the open store.

    For networks that are trained along with the model. A store that holds all ``images`` already
    is opened as it is. Raises UserError, naming the picture, for one that cannot be read.
    """
    made_by = {"backbone": "none", "size": size}
    if path.exists():
        store = open_store(path)
        if store.made_by == made_by and images.keys() <= store.row_of.keys():
            return store
    header, _ = _header(list(images), (size, size, 3), np.dtype(np.uint8), made_by)

    def write(file: BinaryIO) -> None:
        file.write(header)
        with ThreadPoolExecutor() as pool:
            for picture in pool.map(lambda picture: read_picture(picture, size), images.values()):
                file.write(picture.tobytes())

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path.parent}: cannot be made: {error.strerror}; set --root") from None
    write_atomic(path, write)
    return open_store(path)


def in_chunks(rows: Sequence[int] | npt.NDArray[np.int64], size: int) -> Iterator[list[int]]:
    """Consecutive pieces of at most ``size`` rows."""
    for start in range(0, len(rows), size):
        yield [int(row) for row in rows[start : start + size]]
