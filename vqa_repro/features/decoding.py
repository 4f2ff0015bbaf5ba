"""Decode many images with a pool of threads, and record which are damaged or not RGB."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import numpy.typing as npt

from vqa_repro.data.images import DamagedImageError, ImageSource, read_image_and_mode

FEW = 5  # images named in a message about many


class ImageReader:
    """Decodes batches of images into buffers, ahead of their use."""

    def __init__(self, images: Mapping[str, Path], size: int) -> None:
        self._images = images
        self._size = size
        self.damaged: dict[str, str] = {}  # key -> what is wrong
        self.not_rgb: dict[str, str] = {}  # key -> its mode: "grey", "palette", "CMYK", ...

    def batches(
        self,
        batches: Sequence[Mapping[int, str]],
        free: "SimpleQueue[npt.NDArray[np.uint8]]",
        pool: ThreadPoolExecutor,
    ) -> Iterator[tuple[list[int], npt.NDArray[np.uint8]]]:
        """Yield for each of ``batches`` (position -> key) the positions read and their buffer.

        Buffers (B, size, size, 3) come from ``free``, to which the caller returns them; as many
        batches are decoded ahead as there are free buffers. Positions without an image are zeros.
        """
        ahead: deque[tuple[dict[int, Future[str]], npt.NDArray[np.uint8]]] = deque()
        started = 0
        for batch in batches:
            while started < len(batches) and (not ahead or not free.empty()):
                buffer = free.get()
                ahead.append((self._start(batches[started], buffer, pool), buffer))
                started += 1
            futures, buffer = ahead.popleft()
            yield self._collect(batch, futures, buffer), buffer

    def _start(
        self, batch: Mapping[int, str], buffer: npt.NDArray[np.uint8], pool: ThreadPoolExecutor
    ) -> dict[int, Future[str]]:
        """Start decoding ``batch`` into ``buffer``; return position -> the future image mode."""
        futures = {}
        for position in range(len(buffer)):
            if position in batch:
                path = self._images[batch[position]]
                futures[position] = pool.submit(_read_into, buffer[position], path, self._size)
            else:
                buffer[position] = 0
        return futures

    def _collect(
        self,
        batch: Mapping[int, str],
        futures: Mapping[int, Future[str]],
        buffer: npt.NDArray[np.uint8],
    ) -> list[int]:
        """Wait for ``futures``; record damaged images and return the positions of the others."""
        positions = []
        for position, future in futures.items():
            try:
                mode = future.result()
            except DamagedImageError as error:
                self.damaged[batch[position]] = error.reason
                buffer[position] = 0
                continue
            positions.append(position)
            if mode != "RGB":
                self.not_rgb[batch[position]] = mode
        return positions


def few(remarks: Mapping[str, str], images: Mapping[str, Path]) -> str:
    """Return the first files of ``remarks`` (key -> remark), each with its remark."""
    named = [f"{images[key]} ({remark})" for key, remark in remarks.items()]
    return ", ".join(named[:FEW]) + (", ..." if len(named) > FEW else "")


def _read_into(buffer: npt.NDArray[np.uint8], source: ImageSource, size: int) -> str:
    buffer[...], mode = read_image_and_mode(source, size)
    return mode
