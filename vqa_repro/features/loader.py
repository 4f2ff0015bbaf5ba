"""Feature loader: serves image features from GPU memory, pinned host memory or disk."""

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from threading import Lock
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vqa_repro.data.batching import Batch, BatchIndices, collate
from vqa_repro.data.questions import Questions
from vqa_repro.features.compressed import (
    CompressedFeatures,
    can_compress,
    compress,
    compressed_bytes,
)
from vqa_repro.features.store import Store
from vqa_repro.utils.errors import UserError, first_line
from vqa_repro.utils.memory import free_on_device, free_on_host

Placement = Literal["device", "compressed", "pinned", "disk"]
PLACEMENTS: tuple[Placement, ...] = get_args(Placement)

# Shares of the free memory that features may take; the rest is for the training.
OF_GPU, OF_HOST_WITH_GPU, OF_HOST = 0.8, 0.6, 0.5
PREFETCH = 2  # batches
READERS = 8  # threads: disks are fastest with several requests in flight
PART = 256 * 2**20  # bytes read at a time, and pinned in one piece


def choose_placement(
    dense: int, compressed: int | None, device: str, free_device: int, free_host: int
) -> Placement:
    """Return the placement of features from their size and the free memory, in bytes.

    On the device if they fit; else, on a GPU, compressed if that halves them and they fit; else,
    with a GPU, in pinned host memory if they fit; else on the disk. compressed: None if they cannot
    be compressed.
    """
    if device == "cpu":
        return "device" if dense <= OF_HOST * free_host else "disk"
    if dense <= OF_GPU * free_device:
        return "device"
    if compressed is not None and compressed <= min(dense / 2, OF_GPU * free_device):
        return "compressed"
    return "pinned" if dense <= OF_HOST_WITH_GPU * free_host else "disk"


class Fetched(NamedTuple):
    features: Tensor  # on the device, or being copied there
    copied: torch.cuda.Event | None


class FeatureLoader:
    """Serves rows of ``store`` by their number, on ``device``.

    placement: "device": all rows are in its memory; "compressed": there too, without the zeros;
    "pinned": in pinned host memory; "disk": read when they are needed. By default
    ``choose_placement`` decides by the memory that is free now. ``description`` reports it.

    Several processes may use one store. Raise UserError if there is not enough memory after all.
    """

    def __init__(
        self, store: Store, device: torch.device, placement: Placement | None = None
    ) -> None:
        self.device = device
        self._rows = store.rows
        on_gpu = device.type == "cuda"
        first = torch.from_numpy(np.array(store.rows[:1]))
        self._dtype, self._shape = first.dtype, first.shape[1:]
        dense, compressed = store.rows.nbytes, None
        if (on_gpu or placement == "compressed") and len(store.rows) and can_compress(first[0]):
            some = np.array(store.rows[:: max(1, len(store.rows) // 64)])
            compressed = compressed_bytes(torch.from_numpy(some), len(store.rows))
        free = free_on_device(device), free_on_host()
        self.placement: Placement = placement or choose_placement(
            dense, compressed, device.type, *free
        )
        if self.placement == "compressed" and compressed is None:
            raise UserError(f"--feature-placement compressed: {store.path}: cannot be compressed")

        self._stream = torch.cuda.Stream(device) if on_gpu else None  # type: ignore[no-untyped-call]
        self._readers = ThreadPoolExecutor(READERS)
        self._lock = Lock()
        self._staging = deque([self._buffer(1), self._buffer(1)])
        self._copied: deque[torch.cuda.Event | None] = deque([None, None])

        self._resident: Tensor | CompressedFeatures | None = None
        self._parts: list[Tensor] = []  # of PART bytes at most: pinning rounds up to a power of two
        self._per_part = max(1, PART // max(1, first.nbytes))
        try:
            self._load(compressed or 0)
        except RuntimeError as error:
            raise UserError(
                f"not enough memory for {dense / 1e9:.2f} GB of features ({first_line(error)}); "
                "--feature-placement disk needs none"
            ) from None
        memory = f"in the memory of the {'GPU' if on_gpu else 'host'}"
        places = {"pinned": "in the memory of the host", "disk": "on the disk"}
        place = places.get(self.placement, memory)
        if isinstance(self._resident, CompressedFeatures):
            place = f"compressed to {self._resident.nbytes / 1e9:.2f} GB {place}"
        gpu = f"{free[0] / 1e9:.1f} GB on the GPU, " if on_gpu else ""
        self.description = (
            f"{dense / 1e9:.2f} GB of features {place} "
            f"(free: {gpu}{free[1] / 1e9:.1f} GB on the host)"
        )

    def __len__(self) -> int:
        return len(self._rows)

    def epoch(
        self, questions: Questions, plan: Sequence[BatchIndices]
    ) -> Generator[Batch, None, None]:
        """Yield the batches of ``plan`` with their features.

        Features that are not on the device are prefetched: those of the next ``PREFETCH`` batches
        are loaded while one is being processed.
        """
        features = self.prefetch([indices.rows for indices in plan])
        for indices, part in zip(plan, features, strict=True):
            yield collate(questions, indices, part)

    def prefetch(self, rows: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield (I, ...) features on the device for each of ``rows``, (I,) int64."""
        if self._resident is not None:
            yield from map(self.__getitem__, rows)
            return
        if not rows:
            return
        # All indices at once: copying them batch by batch would synchronise with the GPU.
        on_host = torch.split(torch.cat(list(rows)).cpu(), [len(part) for part in rows])
        waiting, pending = iter(on_host), deque[Future[Fetched]]()
        with ThreadPoolExecutor(1) as worker:
            try:
                for _ in rows:
                    for part in islice(waiting, 1 + PREFETCH - len(pending)):
                        pending.append(worker.submit(self._fetch, part))
                    yield self._synchronize(pending.popleft().result())
            finally:
                for future in pending:
                    future.cancel()

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Return the features (I, ...) of ``rows``, (I,) int64, on the device."""
        if isinstance(self._resident, Tensor):
            return self._resident.index_select(0, rows)
        if self._resident is not None:
            return self._resident[rows]
        return self._synchronize(self._fetch(rows.cpu()))

    def _synchronize(self, fetched: Fetched) -> Tensor:
        """Make the current stream wait for the copy; the CPU does not wait."""
        if fetched.copied is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(fetched.copied)
            fetched.features.record_stream(stream)
        return fetched.features

    def _fetch(self, rows: Tensor) -> Fetched:
        """Load ``rows`` (I,), on the CPU; the copies to the device are queued in ``_stream``.

        One thread at a time.
        """
        with self._lock, torch.cuda.stream(self._stream):
            out = torch.empty(len(rows), *self._shape, dtype=self._dtype, device=self.device)
            if self.placement == "pinned":
                # One copy per row, straight from pinned memory: the CPU moves no data.
                for target, row in zip(out, rows.tolist(), strict=True):
                    part, within = divmod(row, self._per_part)
                    target.copy_(self._parts[part][within], non_blocking=True)
            elif self._stream is None:
                self._read(rows.tolist(), out)
            else:
                buffer, copied = self._staging.popleft(), self._copied.popleft()
                if copied is not None:
                    copied.synchronize()
                if len(buffer) < len(rows):
                    buffer = self._buffer(len(rows))
                self._read(rows.tolist(), buffer)
                out.copy_(buffer[: len(rows)], non_blocking=True)
                self._staging.append(buffer)
                self._copied.append(self._stream.record_event())
            return Fetched(out, self._stream.record_event() if self._stream else None)

    def _load(self, compressed: int) -> None:
        """Load the rows to where they are kept. compressed: their estimated size in bytes."""
        count = len(self._rows)
        starts = range(0, count, self._per_part)
        if self.placement == "device":
            if not isinstance(self._rows, np.memmap):  # zeros, of models that see no image
                self._resident = torch.from_numpy(self._rows).to(self.device)
                return
            resident = torch.empty(count, *self._shape, dtype=self._dtype, device=self.device)
            for start, part in zip(starts, self._read_all(starts), strict=True):
                resident[start : start + len(part)].copy_(part)
            self._resident = resident
        elif self.placement == "compressed":
            parts = (part.to(self.device) for part in self._read_all(starts))
            self._resident = compress(parts, count, compressed)
        elif self.placement == "pinned":
            for start in starts:
                part = self._buffer(min(self._per_part, count - start))
                self._read(range(start, start + len(part)), part)
                self._parts.append(part)

    def _read_all(self, starts: range) -> Iterator[Tensor]:
        """Yield all rows, a part at a time, in a buffer that is reused."""
        buffer = self._buffer(min(self._per_part, len(self._rows)))
        for start in starts:
            part = buffer[: len(self._rows) - start]
            self._read(range(start, start + len(part)), part)
            yield part

    def _read(self, rows: Sequence[int], out: Tensor) -> None:
        """Read rows from the store into ``out`` on the CPU, with several threads."""
        target: npt.NDArray[Any] = out.numpy()

        def read_share(first: int) -> None:
            for position in range(first, len(rows), READERS):
                target[position] = self._rows[rows[position]]

        list(self._readers.map(read_share, range(min(READERS, len(rows)))))

    def _buffer(self, count: int) -> Tensor:
        pinned = self.device.type == "cuda"
        return torch.empty(count, *self._shape, dtype=self._dtype, pin_memory=pinned)


class MappedLoader(FeatureLoader):
    """Serves the images of another store: ``index`` (N,) has the row of ``store`` for each image.

    The rows are read from the disk when they are needed.
    """

    def __init__(self, store: Store, device: torch.device, index: npt.NDArray[np.int64]) -> None:
        super().__init__(store, device, "disk")
        self._index = torch.from_numpy(index).to(device)

    def prefetch(self, rows: Sequence[Tensor]) -> Iterator[Tensor]:
        yield from super().prefetch([self._index[part] for part in rows])

    def __getitem__(self, rows: Tensor) -> Tensor:
        return super().__getitem__(self._index[rows])
