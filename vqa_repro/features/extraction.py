"""Pictures -> a whole feature store: decode, compute and write at the same time, resumable.

Pictures are decoded by threads into rooms, a few batches ahead; what computes the rows gets one
room after the other; another thread waits for the rows and writes them. So a GPU has always
something to do, as long as decoding keeps up.

A picture has its place in a batch by its row. The rows are therefore the same, bit by bit, however
often the work was interrupted and over how many processes it is dealt.
"""

import fcntl
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from vqa_repro.data.images import ImageReader, few
from vqa_repro.features.store import Store, StoreWriter, open_store
from vqa_repro.utils.distributed import SINGLE_PROCESS, World
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.files import reason

ROOMS = 4  # batches on their way: being decoded, copied, computed, written
SAVE_EVERY = 2.0  # seconds of work that a kill can cost
SAY_EVERY = 30.0  # seconds, where there is no terminal to draw a bar on


class Compute(Protocol):
    """What makes rows of pictures."""

    def room(self) -> npt.NDArray[np.uint8]:
        """Room for one batch of pictures, (B, size, size, 3) RGB."""

    def __call__(self, room: npt.NDArray[np.uint8]) -> Callable[[], npt.NDArray[Any]]:
        """Begin with the pictures in ``room``; what is returned waits for their rows (B, ...).

        The room is used again once that has returned, and the rows are written.
        """


class DamagedImagesError(UserError):
    """Counts the pictures that could not be read and names the first. The others' rows are kept."""


def fill(
    path: Path,
    images: Mapping[str, Path],
    compute: Compute,
    row_shape: tuple[int, ...],
    dtype: npt.DTypeLike,
    made_by: dict[str, Any],
    *,
    leave_out_damaged: bool = False,
    world: World = SINGLE_PROCESS,
) -> Store:
    """Give the store at ``path`` a row for each of ``images`` and return it open.

    What is there is kept: the rows of a store that the same thing made, those of other pictures
    too, and what a run that was stopped had written. A picture is known by its key: one whose file
    was replaced since is not read again.

    With several processes each makes its share of the rows and all return the same store.

    Raises DamagedPicturesError after the last picture if some cannot be read; with
    ``leave_out_damaged`` the store is finished without them. How many were not RGB is said.
    """
    with ExitStack() as lock:

        def begin() -> tuple[list[str], dict[str, str]] | None:
            """The keys of the store to be filled and what it leaves out; None if it is whole."""
            if _holding(path, images, made_by, leave_out_damaged):
                return None
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(
                    f"{path.parent}: cannot be made: {error.strerror}; set --root"
                ) from None
            lock.enter_context(_alone(path))
            if _holding(path, images, made_by, leave_out_damaged):
                return None  # another process made it meanwhile
            return _begin(path, images, row_shape, dtype, made_by, leave_out_damaged)

        begun = world.run_on_main(begin)
        if begun is None:
            return world.run_together(lambda: open_store(path))
        keys, left_out = begun
        writer = StoreWriter(path, keys, row_shape, dtype, made_by)
        missing = world.broadcast(writer.missing().tolist())
        reader = _make(writer, keys, missing, images, compute, world)
        damaged = {k: why for part in world.all_gather(reader.damaged) for k, why in part.items()}
        not_rgb = {k: kind for part in world.all_gather(reader.not_rgb) for k, kind in part.items()}
        if not_rgb and world.is_main:
            print(
                f"note: {len(not_rgb):,} of {len(missing):,} pictures read were not RGB and "
                f"were converted: {few(not_rgb, images)}",
                file=sys.stderr,
            )
        if damaged and (not leave_out_damaged or len(damaged) == len(keys)):
            raise DamagedImagesError(
                f"{len(damaged):,} of {len(images):,} pictures are damaged: "
                f"{few(damaged, images)}; mend them and give the same command again"
            )

        world.run_on_main(lambda: writer.finish({**left_out, **damaged}))
        return open_store(path)


def _begin(
    path: Path,
    images: Mapping[str, Path],
    row_shape: tuple[int, ...],
    dtype: npt.DTypeLike,
    made_by: dict[str, Any],
    leave_out_damaged: bool,
) -> tuple[list[str], dict[str, str]]:
    """Begin a store or go on with one: its keys, and the pictures it leaves out already."""
    old = _made(path, made_by)
    there = old.row_of if old else {}
    left_out = old.left_out if old else {}
    if not leave_out_damaged:  # they are tried again
        left_out = {key: reason for key, reason in left_out.items() if key not in images}
    new = [key for key in images if key not in there and key not in left_out]
    if new and not any(images[key].exists() for key in new):  # before any room is claimed
        raise DamagedImagesError(
            f"all {len(new):,} pictures are missing, e.g. {images[new[0]]}; put them there"
        )
    keys = [*there, *new]
    writer = StoreWriter(path, keys, row_shape, dtype, made_by)
    for row in writer.missing():
        if old and keys[row] in there:
            writer.write(row, old.rows[there[keys[row]]])
    writer.flush()
    return keys, left_out


def _make(
    writer: StoreWriter,
    keys: list[str],
    missing: list[int],
    images: Mapping[str, Path],
    compute: Compute,
    world: World,
) -> ImageReader:
    """Write this process's share of the ``missing`` rows; the account of what was read."""
    rooms = [compute.room() for _ in range(ROOMS)]
    batch, size = rooms[0].shape[:2]
    free: SimpleQueue[npt.NDArray[np.uint8]] = SimpleQueue()
    for room in rooms:
        free.put(room)
    batches: dict[int, dict[int, str]] = {}  # number of the batch -> place in it -> key
    for row in missing:
        batches.setdefault(row // batch, {})[row % batch] = keys[row]
    own = dict(sorted(batches.items())[world.rank :: world.size])
    reader = ImageReader(images, size)
    written: deque[Future[None]] = deque()
    saved: Future[None] | None = None
    due = time.monotonic() + SAVE_EVERY

    def write(
        number: int,
        places: Collection[int],
        rows: Callable[[], npt.NDArray[Any]],
        room: npt.NDArray[np.uint8],
    ) -> None:
        try:
            made = rows()
            for place in places:
                writer.write(number * batch + place, made[place])
        finally:
            free.put(room)  # also after an error, which the main thread has yet to meet

    with (
        Progress(len(keys), len(keys) - len(missing), drawn=world.is_main) as progress,
        ThreadPoolExecutor(threads()) as decoding,
        ThreadPoolExecutor(1) as writing,
        ThreadPoolExecutor(1) as saving,
    ):
        try:
            decoded = reader.batches(list(own.values()), free, decoding)
            for number, (places, room) in zip(own, decoded, strict=True):
                written.append(writing.submit(write, number, places, compute(room), room))
                while written and written[0].done():
                    written.popleft().result()
                if time.monotonic() > due and (saved is None or saved.done()):
                    if saved:
                        saved.result()
                    progress.show(len(keys) - len(writer.missing()), len(reader.damaged))
                    saved = saving.submit(writer.flush)
                    due = time.monotonic() + SAVE_EVERY
            for future in [*written, *([saved] if saved else [])]:
                future.result()
        finally:
            writer.flush()
        progress.show(len(keys) - len(writer.missing()), len(reader.damaged))
    return reader


def threads() -> int:
    """Of each process that torchrun started on this machine, for its share of the cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(2, (cores or 2) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


class Progress:
    """How far it is: a bar on a terminal, a plain line now and then in a log."""

    def __init__(self, total: int, done: int, *, drawn: bool) -> None:
        self._total, self._before, self._done = total, done, done
        self._began = self._said = time.monotonic()
        self._drawn = drawn
        self._bar = tqdm(
            total=total,
            initial=done,
            desc="pictures",
            unit=" images",
            disable=None if drawn else True,  # None: on a terminal only
            dynamic_ncols=True,
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, done: int, damaged: int) -> None:
        """done: rows that are safe, of all processes. damaged: pictures, of this one."""
        self._bar.update(done - self._done)
        self._done = done
        if damaged:
            self._bar.set_postfix_str(f"{damaged:,} damaged")
        now = time.monotonic()
        if self._drawn and self._bar.disable and now - self._said > SAY_EVERY:
            rate = (done - self._before) / (now - self._began)
            left = f", {in_words((self._total - done) / rate)} left" if rate else ""
            print(f"  {done:,} of {self._total:,} pictures, {rate:,.1f} images/s{left}", flush=True)
            self._said = now


def in_words(seconds: float) -> str:
    """ "45 s", "12 min", "3.4 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _made(path: Path, made_by: dict[str, Any]) -> Store | None:
    """The finished store at ``path`` if there is one and ``made_by`` made it."""
    store = open_store(path) if path.exists() else None
    return store if store and store.made_by == made_by else None


def _holding(
    path: Path, images: Mapping[str, Path], made_by: dict[str, Any], leave_out_damaged: bool
) -> Store | None:
    """The finished store at ``path`` if it holds all that is wanted."""
    store = _made(path, made_by)
    if store is None:
        return None
    left_out = store.left_out.keys() if leave_out_damaged else set()
    return store if images.keys() <= store.row_of.keys() | left_out else None


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process fills the store at ``path``, and keep others waiting."""
    lock = path.with_name(path.name + ".lock")
    while True:
        try:
            file = lock.open("w")
        except OSError as error:
            raise UserError(
                f"{lock}: cannot be written: {reason(error, lock.parent)}; features are made "
                "there once: let it be written, or copy what --root names to another disk"
            ) from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"note: waiting for another process that makes {path}", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            print(
                f"note: {lock}: cannot be locked ({error.strerror}); make these features with "
                "one process at a time",
                file=sys.stderr,
            )
        # The other process removed its lock when it was done: then this is a lock on nothing.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                break
        file.close()
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        file.close()


class Pixels:
    """The pictures themselves as rows: for networks that are trained along with the model."""

    def __init__(self, size: int, batch: int = 64) -> None:
        self._shape = (batch, size, size, 3)

    def room(self) -> npt.NDArray[np.uint8]:
        return np.empty(self._shape, np.uint8)

    def __call__(self, room: npt.NDArray[np.uint8]) -> Callable[[], npt.NDArray[np.uint8]]:
        return lambda: room


def store_pixels(
    images: dict[str, Path],
    path: Path,
    size: int,
    *,
    leave_out_damaged: bool = False,
    world: World = SINGLE_PROCESS,
) -> Store:
    """Store the pictures themselves, squashed to (size, size, 3) uint8; return the open store.

    Otherwise as ``fill``.
    """
    return fill(
        path,
        images,
        Pixels(size),
        (size, size, 3),
        np.uint8,
        {"backbone": "none", "size": size},
        leave_out_damaged=leave_out_damaged,
        world=world,
    )
