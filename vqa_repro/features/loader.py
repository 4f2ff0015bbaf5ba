"""The rows of a feature store where the computing happens, from wherever there is room for them."""

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
from vqa_repro.features.compressed import CompressedFeatures, can_compress, compressed_bytes, pack
from vqa_repro.features.store import Store
from vqa_repro.utils.errors import UserError, first_line
from vqa_repro.utils.memory import free_on_device, free_on_host

Placement = Literal["device", "compressed", "pinned", "disk"]
PLACEMENTS: tuple[Placement, ...] = get_args(Placement)

# What features may take of the memory that is free; the rest is for the training.
OF_GPU, OF_HOST_WITH_GPU, OF_HOST = 0.8, 0.6, 0.5
PREFETCH = 2  # batches
READERS = 8  # threads: a disk is at its best when asked for several rows at a time
PART = 256 * 2**20  # bytes read in one go, and pinned in one piece


def choose_placement(
    dense: int, packed: int | None, device: str, free_device: int, free_host: int
) -> Placement:
    """Where features of so many bytes should be, by the bytes that are free.

    On the device if they fit; else on a GPU without the zeros, if that halves them and they fit;
    else beside a GPU in pinned memory, if they fit; else on the disk. packed: None if they cannot
    be packed.
    """
    if device == "cpu":
        return "device" if dense <= OF_HOST * free_host else "disk"
    if dense <= OF_GPU * free_device:
        return "device"
    if packed is not None and packed <= min(dense / 2, OF_GPU * free_device):
        return "compressed"
    return "pinned" if dense <= OF_HOST_WITH_GPU * free_host else "disk"


class Fetched(NamedTuple):
    features: Tensor  # on the device, or being copied there
    copied: torch.cuda.Event | None


class FeatureLoader:
    """Rows of ``store`` by their number, on ``device``.

    where: "device": all of them are in its memory; "compressed": there too, without the zeros;
    "pinned": in the host's memory, pinned beside a GPU; "disk": read when they are asked for. By
    default what ``choose_place`` says for the memory that is free now. ``in_words`` says it aloud.

    Several processes may use one store. Raises UserError if the memory was not there after all.
    """

    def __init__(self, store: Store, device: torch.device, where: Placement | None = None) -> None:
        self.device = device
        self._rows = store.rows
        on_gpu = device.type == "cuda"
        first = torch.from_numpy(np.array(store.rows[:1]))
        self._dtype, self._shape = first.dtype, first.shape[1:]
        dense, packed = store.rows.nbytes, None
        if (on_gpu or where == "compressed") and len(store.rows) and can_compress(first[0]):
            some = np.array(store.rows[:: max(1, len(store.rows) // 64)])
            packed = compressed_bytes(torch.from_numpy(some), len(store.rows))
        free = free_on_device(device), free_on_host()
        self.where: Placement = where or choose_placement(dense, packed, device.type, *free)
        if self.where == "compressed" and packed is None:
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
            self._load(packed or 0)
        except RuntimeError as error:
            raise UserError(
                f"no memory for {dense / 1e9:.2f} GB of features ({first_line(error)}); "
                "--feature-placement disk needs none"
            ) from None
        memory = f"in the memory of the {'GPU' if on_gpu else 'host'}"
        places = {"pinned": "in the memory of the host", "disk": "on the disk"}
        place = places.get(self.where, memory)
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
        are on their way while one is being processed.
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
        # All at once: reading one batch's numbers later would wait for the GPU.
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
        """rows (I,) on the CPU. Called by one thread at a time; work goes on in ``_stream``."""
        with self._lock, torch.cuda.stream(self._stream):
            out = torch.empty(len(rows), *self._shape, dtype=self._dtype, device=self.device)
            if self.where == "pinned":
                # One copy for each row, straight out of pinned memory: the CPU moves no numbers.
                for place, row in zip(out, rows.tolist(), strict=True):
                    part, within = divmod(row, self._per_part)
                    place.copy_(self._parts[part][within], non_blocking=True)
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

    def _load(self, packed: int) -> None:
        """Bring the rows where they shall be."""
        count = len(self._rows)
        starts = range(0, count, self._per_part)
        if self.where == "device":
            if not isinstance(self._rows, np.memmap):  # it is in memory, of models that see nothing
                self._resident = torch.from_numpy(self._rows).to(self.device)
                return
            resident = torch.empty(count, *self._shape, dtype=self._dtype, device=self.device)
            for start, part in zip(starts, self._read_all(starts), strict=True):
                resident[start : start + len(part)].copy_(part)
            self._resident = resident
        elif self.where == "compressed":
            parts = (part.to(self.device) for part in self._read_all(starts))
            self._resident = pack(parts, count, packed)
        elif self.where == "pinned":
            for start in starts:
                part = self._buffer(min(self._per_part, count - start))
                self._read(range(start, start + len(part)), part)
                self._parts.append(part)

    def _read_all(self, starts: range) -> Iterator[Tensor]:
        """All rows, a part at a time, in a room that is used again."""
        buffer = self._buffer(min(self._per_part, len(self._rows)))
        for start in starts:
            part = buffer[: len(self._rows) - start]
            self._read(range(start, start + len(part)), part)
            yield part

    def _read(self, rows: Sequence[int], out: Tensor) -> None:
        """Read rows from the store into ``out`` on the CPU, several at a time."""
        to: npt.NDArray[Any] = out.numpy()

        def some(first: int) -> None:
            for place in range(first, len(rows), READERS):
                to[place] = self._rows[rows[place]]

        list(self._readers.map(some, range(min(READERS, len(rows)))))

    def _buffer(self, count: int) -> Tensor:
        pinned = self.device.type == "cuda"
        return torch.empty(count, *self._shape, dtype=self._dtype, pin_memory=pinned)
