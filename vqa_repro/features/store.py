"""The feature store: one row of numbers per image, in one memory-mapped file.

The file is in the safetensors format, so any tool can read it: the tensor ``rows`` (N, ...), and in
the header's metadata the N image keys, the provenance of the rows, and the images that were skipped
as damaged. While rows are being written the file is called ``*.part``, and the bytes of ``*.done``
tell which rows are written, so that an interrupted extraction can be resumed.
"""

import hashlib
import json
import os
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from vqa_repro.utils.errors import UserError
from vqa_repro.utils.files import open_regular, reason, write_atomic

FORMAT = "vqa_repro-store-1"
MAX_HEADER = 64 * 1024 * 1024  # bytes; enough for the keys of a million images

_DTYPES = {"U8": np.uint8, "F16": np.float16, "F32": np.float32}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class Store:
    """An open store. ``rows`` (N, ...) is memory-mapped."""

    path: Path
    rows: npt.NDArray[Any]
    row_of: dict[str, int]  # image key -> row
    made_by: dict[str, Any]  # provenance: backbone, weights, preprocessing, ...
    left_out: dict[str, str] = field(
        default_factory=dict
    )  # key of a skipped, damaged image -> what is wrong

    def fingerprint(self) -> str:
        """Return the SHA-256 of the provenance and the image keys: equal for equal contents."""
        text = json.dumps([self.made_by, list(self.row_of), self.rows.shape], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def rows_in(self, other: "Store") -> npt.NDArray[np.int64]:
        """Return (N,), for each row of this store that of the same image in ``other``, or -1."""
        rows = np.full(len(self.rows), -1, np.int64)
        for key, row in self.row_of.items():
            rows[row] = other.row_of.get(key, -1)
        return rows


class StoreWriter:
    """Fills a store row by row, in any order; ``finish`` publishes it under its name.

    A ``.part`` with the same keys and provenance is resumed; any other one is replaced. Several
    processes may fill one store, if one of them has opened it before the others do.
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
        self._keys, self._made_by = list(keys), made_by
        self._part = path.with_name(path.name + ".part")
        self._done_path = path.with_name(path.name + ".done")
        header, size = _header(keys, row_shape, np.dtype(dtype), made_by)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not self._can_resume(header, size, len(keys)):
                self._done_path.write_bytes(bytes(len(keys)))
                with self._part.open("wb") as file:
                    file.write(header)
                    # Reserve the space now: better to find a full disk before the work than after.
                    if hasattr(os, "posix_fallocate"):
                        os.posix_fallocate(file.fileno(), 0, len(header) + size)
                    else:
                        file.truncate(len(header) + size)
        except OSError as error:
            raise UserError(
                f"{self._part}: cannot write {size / 1e9:.2f} GB of features: "
                f"{reason(error, path.parent)}"
            ) from None
        shape = (len(keys), *row_shape)
        self._rows = np.memmap(self._part, dtype, "r+", offset=len(header), shape=shape)
        self._done = np.memmap(self._done_path, np.uint8, "r+", shape=(len(keys),))
        self._written: deque[int] = deque()  # rows that may not be on the disk yet

    def _can_resume(self, header: bytes, size: int, count: int) -> bool:
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
        """Return the rows that no process has written and flushed, ascending."""
        return np.flatnonzero(self._done == 0)

    def write(self, row: int, values: npt.NDArray[Any]) -> None:
        """Write ``values``, of one row's shape."""
        self._rows[row] = values
        self._written.append(row)

    def flush(self) -> None:
        """Sync the rows written so far to the disk, then mark them as done.

        In this order a power cut cannot lose a row that is marked. Other threads may keep writing.
        """
        written = [self._written.popleft() for _ in range(len(self._written))]
        try:
            with self._part.open("r+b") as file:
                os.fsync(file.fileno())  # flushing the map would block all threads
        except OSError as error:
            raise UserError(f"{self._part}: cannot be written: {error.strerror}") from None
        self._done[written] = 1

    def finish(self, left_out: Mapping[str, str] | None = None) -> None:
        """Publish the store under its name.

        left_out: key -> what is wrong with the image. These keys get no row; if they have one, all
        other rows are copied.
        """
        left_out = dict(left_out or {})
        self.flush()
        unwritten = [row for row in self.missing() if self._keys[row] not in left_out]
        if unwritten:
            raise ValueError(f"{len(unwritten)} rows of {self.path} are not written")
        if left_out:
            kept = [row for row, key in enumerate(self._keys) if key not in left_out]
            keys = [self._keys[row] for row in kept]
            shape, dtype = self._rows.shape[1:], self._rows.dtype
            header, _ = _header(keys, shape, dtype, self._made_by, left_out)

            def write(file: BinaryIO) -> None:
                file.write(header)
                for row in kept:
                    file.write(self._rows[row].tobytes())

            write_atomic(self.path, write)
            self._part.unlink()
        else:
            os.replace(self._part, self.path)
        self._done_path.unlink()


def _header(
    keys: Sequence[str],
    row_shape: tuple[int, ...],
    dtype: np.dtype[Any],
    made_by: dict[str, Any],
    left_out: dict[str, str] | None = None,
) -> tuple[bytes, int]:
    shape = [len(keys), *row_shape]
    size = int(np.prod(shape)) * dtype.itemsize
    metadata = {
        "format": FORMAT,
        "keys": json.dumps(list(keys)),
        "made_by": json.dumps(made_by, sort_keys=True),
    }
    if left_out:
        metadata["left_out"] = json.dumps(left_out)
    rows = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [0, size]}
    text = json.dumps({"__metadata__": metadata, "rows": rows}).encode()
    text += b" " * (-len(text) % 64)  # rows start on a cache line
    return len(text).to_bytes(8, "little") + text, size


def open_store(path: Path) -> Store:
    """Open a store without reading its rows.

    Raise UserError if the file is missing, truncated, or not a feature store.
    """
    try:
        total = path.stat().st_size
        with open_regular(path) as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(MAX_HEADER, total - 8):
                raise ValueError("the header's length is impossible")
            header = json.loads(file.read(length))
        metadata, rows = header["__metadata__"], header["rows"]
        if metadata["format"] != FORMAT:
            raise ValueError(f"its format is {metadata['format']!r}, not {FORMAT!r}")
        keys, made_by = json.loads(metadata["keys"]), json.loads(metadata["made_by"])
        left_out = dict(json.loads(metadata.get("left_out", "{}")))
        dtype, shape = np.dtype(_DTYPES[rows["dtype"]]), tuple(rows["shape"])
        if any(type(n) is not int for n in shape):
            raise ValueError(f"its shape is {shape}")
        if min(shape) < 0 or shape[0] != len(keys) or len(set(keys)) != len(keys):
            raise ValueError("keys and rows do not match")
        if not left_out.keys().isdisjoint(keys):
            raise ValueError("images that were skipped have rows")
        size = int(np.prod(shape, dtype=object)) * dtype.itemsize
        if total != 8 + length + size:
            raise ValueError(f"it has {total:,} bytes where its header says {8 + length + size:,}")
    except FileNotFoundError:
        raise UserError(f"{path}: no such feature store; create it with `extract`") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path}: not a complete feature store ({error}); delete it and extract again"
        ) from None
    mapped = np.memmap(path, dtype, "r", offset=8 + length, shape=shape)
    return Store(path, mapped, {key: row for row, key in enumerate(keys)}, made_by, left_out)
