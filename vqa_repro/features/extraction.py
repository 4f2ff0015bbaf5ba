"""Images -> a complete feature store: decode, compute and write concurrently, resumable.

Threads decode images into a few buffers ahead of the computation, which processes one buffer after
the other; another thread waits for the rows and writes them. A GPU is never idle as long as
decoding keeps up.

An image's position in a batch follows from its row. So the rows are the same bit for bit, however
often the work is interrupted and over however many processes it is divided.
"""

import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vqa_repro.features.decoding import ImageReader, few
from vqa_repro.features.store import Store, StoreWriter, open_store
from vqa_repro.install import locks
from vqa_repro.utils.distributed import SINGLE_PROCESS, World
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.files import reason
from vqa_repro.utils.memory import processes_here
from vqa_repro.utils.paths import describe_missing, why_not_created
from vqa_repro.utils.plurals import plural
from vqa_repro.utils.progress import Progress
from vqa_repro.utils.side_by_side import cores

NUM_BUFFERS = 4  # batches in flight: decoding, copying, computing, writing
SAVE_EVERY = 2.0  # seconds of work that a kill can cost
LOCK_WAIT = 7 * 24 * 3600.0  # seconds
ELSEWHERE = (
    "features are stored in --root: name a folder of yours with links to the data sets in it, or "
    "use extract --out FILE, then train --features FILE"
)


class Compute(Protocol):
    """Computes rows from images."""

    def buffer(self) -> npt.NDArray[np.uint8]:
        """Return a buffer for one batch of images, (B, size, size, 3) RGB."""

    def __call__(self, buffer: npt.NDArray[np.uint8]) -> Callable[[], npt.NDArray[Any]]:
        """Start on the images in ``buffer``; return a function that waits for their rows (B, ...).

        The buffer is reused once that function has returned and the rows are written.
        """


class DamagedImagesError(UserError):
    """Counts the images that could not be read and names the first. Other rows are kept."""


@dataclass(frozen=True)
class ExtractionJob:
    """A feature store to be filled with a row for each of ``images``.

    An image is identified by its key: one whose file has been replaced is not read again.
    """

    path: Path  # of the store
    images: Mapping[str, Path]
    compute: Compute
    row_shape: tuple[int, ...]
    dtype: npt.DTypeLike
    made_by: dict[str, Any]  # provenance: a store with another one is replaced
    skip_damaged: bool = False
    world: World = SINGLE_PROCESS

    def run(self) -> Store:
        """Fill the store and return it open; keep the rows of a store with the same provenance.

        Rows of other images, and those that an interrupted run has written, are kept too. With
        several processes each computes its share of the rows, and all return the same store.

        Raise DamagedImagesError after the last image if some cannot be read; with
        ``skip_damaged`` the store is finished without them.
        """
        with ExitStack() as lock:
            started = self.world.run_on_main(lambda: self._start(lock))
            if started is None:
                return self.world.run_together(lambda: open_store(self.path))
            keys, left_out = started
            writer = self._writer(keys)
            missing = self.world.broadcast(writer.missing().tolist())
            reader = self._fill(writer, keys, missing)
            damaged = _merged(self.world.all_gather(reader.damaged))
            not_rgb = _merged(self.world.all_gather(reader.not_rgb))
            if not_rgb and self.world.is_main:
                print(
                    f"note: {len(not_rgb):,} of {len(missing):,} images read were not RGB and "
                    f"were converted: {few(not_rgb, self.images)}",
                    file=sys.stderr,
                )
            if damaged and (not self.skip_damaged or len(damaged) == len(keys)):
                raise DamagedImagesError(
                    f"{len(damaged):,} of {len(self.images):,} images "
                    f"{plural(len(damaged), 'is', 'are')} missing or damaged: "
                    f"{few(damaged, self.images)}; fix them and re-run"
                )
            self.world.run_on_main(lambda: writer.finish({**left_out, **damaged}))
            return open_store(self.path)

    def _start(self, lock: ExitStack) -> tuple[list[str], dict[str, str]] | None:
        """Return the keys of the store and the damaged images; None if it is complete."""
        if self._is_complete():
            return None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            why = why_not_created(self.path.parent, error)
            raise UserError(f"{self.path.parent}: cannot be created: {why}; {ELSEWHERE}") from None
        lock.enter_context(_store_lock(self.path))
        if self._is_complete():
            return None  # another process has completed it meanwhile
        old = self._old_store()
        old_rows = old.row_of if old else {}
        left_out = old.left_out if old else {}
        if not self.skip_damaged:  # try them again
            left_out = {key: why for key, why in left_out.items() if key not in self.images}
        new = [key for key in self.images if key not in old_rows and key not in left_out]
        if new and not any(self.images[key].exists() for key in new):  # before reserving space
            raise DamagedImagesError(
                f"all {len(new):,} images are missing, e.g. {self.images[new[0]]}; add them "
                f"({describe_missing(self.images[new[0]])})"
            )
        keys = [*old_rows, *new]
        writer = self._writer(keys)
        for row in writer.missing():
            if old and keys[row] in old_rows:
                writer.write(row, old.rows[old_rows[keys[row]]])
        writer.flush()
        return keys, left_out

    def _writer(self, keys: list[str]) -> StoreWriter:
        return StoreWriter(self.path, keys, self.row_shape, self.dtype, self.made_by)

    def _old_store(self) -> Store | None:
        """Return the finished store if it has the same provenance."""
        store = open_store(self.path) if self.path.exists() else None
        return store if store and store.made_by == self.made_by else None

    def _is_complete(self) -> bool:
        store = self._old_store()
        if store is None:
            return False
        left_out = store.left_out.keys() if self.skip_damaged else set()
        return self.images.keys() <= store.row_of.keys() | left_out

    def _fill(self, writer: StoreWriter, keys: list[str], missing: list[int]) -> ImageReader:
        """Write this process's share of the ``missing`` rows; return what was read."""
        world, compute = self.world, self.compute
        buffers = [compute.buffer() for _ in range(NUM_BUFFERS)]
        batch, size = buffers[0].shape[:2]
        free: SimpleQueue[npt.NDArray[np.uint8]] = SimpleQueue()
        for buffer in buffers:
            free.put(buffer)
        batches: dict[int, dict[int, str]] = {}  # number of the batch -> position in it -> key
        for row in missing:
            batches.setdefault(row // batch, {})[row % batch] = keys[row]
        own = dict(sorted(batches.items())[world.rank :: world.size])
        reader = ImageReader(self.images, size)
        done = len(keys) - len(missing)
        with (
            Progress("images", "images", len(keys), done, show=world.is_main) as progress,
            ThreadPoolExecutor(num_threads()) as decoding,
            BackgroundWriter(writer, free, batch) as background,
        ):
            decoded = reader.batches(list(own.values()), free, decoding)
            for number, (positions, buffer) in zip(own, decoded, strict=True):
                background.submit(number, positions, compute(buffer), buffer)
                if background.save_if_due():
                    if reader.damaged:
                        progress.note(f"{len(reader.damaged):,} damaged")
                    progress.update(len(keys) - len(writer.missing()))
            background.wait()
            progress.update(len(keys) - len(writer.missing()))
        return reader


class BackgroundWriter:
    """Writes rows in one thread and syncs them to the disk in another. A context manager.

    Leaving it saves what was written, also after an error.
    """

    def __init__(
        self, writer: StoreWriter, free: "SimpleQueue[npt.NDArray[np.uint8]]", batch: int
    ) -> None:
        self._writer, self._free, self._batch = writer, free, batch
        self._writing, self._saving = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._written: deque[Future[None]] = deque()
        self._saved: Future[None] | None = None
        self._due = time.monotonic() + SAVE_EVERY

    def __enter__(self) -> "BackgroundWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._writing.shutdown()
        self._saving.shutdown()
        self._writer.flush()

    def submit(
        self,
        number: int,
        positions: Collection[int],
        rows: Callable[[], npt.NDArray[Any]],
        buffer: npt.NDArray[np.uint8],
    ) -> None:
        """Write the rows of batch ``number`` once they are computed, then free its ``buffer``."""

        def write() -> None:
            try:
                values = rows()
                for position in positions:
                    self._writer.write(number * self._batch + position, values[position])
            finally:
                self._free.put(buffer)  # also after an error, which ``submit`` raises later

        self._written.append(self._writing.submit(write))
        while self._written and self._written[0].done():
            self._written.popleft().result()

    def save_if_due(self) -> bool:
        """Start saving what was written if it is time; return whether it was."""
        if time.monotonic() <= self._due or (self._saved and not self._saved.done()):
            return False
        if self._saved:
            self._saved.result()
        self._saved = self._saving.submit(self._writer.flush)
        self._due = time.monotonic() + SAVE_EVERY
        return True

    def wait(self) -> None:
        """Wait until everything is written and saved. Raise the first error."""
        for future in self._written:
            future.result()
        if self._saved:
            self._saved.result()
        self._writer.flush()


def _merged(parts: Iterable[Mapping[str, str]]) -> dict[str, str]:
    return {key: remark for part in parts for key, remark in part.items()}


def num_threads() -> int:
    """Return the number of decoding threads of this process: its share of the cores."""
    return max(2, cores() // processes_here())


@contextmanager
def _store_lock(path: Path) -> Iterator[None]:
    """Hold the lock of the store at ``path``; wait while another process fills it."""
    lock = path.with_name(path.name + ".lock")

    def notify(line: str) -> None:
        print(f"note: {path}: {line}", file=sys.stderr)

    try:
        text = locks.acquire(lock, LOCK_WAIT, notify)
    except locks.Busy as busy:
        raise UserError(
            f"{path}: {busy.owner} is still extracting these features; if it ran on a machine "
            f"that crashed, remove {lock}"
        ) from None
    except OSError as error:
        raise UserError(
            f"{lock}: cannot be written: {reason(error, lock.parent)}; {ELSEWHERE}"
        ) from None
    try:
        yield
    finally:
        locks.release(lock, text)


class Pixels:
    """The images themselves as rows: for networks that are trained with the model."""

    def __init__(self, size: int) -> None:
        self._shape = (64, size, size, 3)  # of a batch

    def buffer(self) -> npt.NDArray[np.uint8]:
        return np.empty(self._shape, np.uint8)

    def __call__(self, buffer: npt.NDArray[np.uint8]) -> Callable[[], npt.NDArray[np.uint8]]:
        return lambda: buffer


def store_pixels(
    images: Mapping[str, Path], path: Path, size: int, *, skip_damaged: bool = False
) -> Store:
    """Store the images themselves, squashed to (size, size, 3) uint8; return the open store.

    Otherwise as ``ExtractionJob.run``.
    """
    made_by = {"backbone": "none", "size": size}
    shape = (size, size, 3)
    return ExtractionJob(path, images, Pixels(size), shape, np.uint8, made_by, skip_damaged).run()
