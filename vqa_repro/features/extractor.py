"""Images -> a feature store of a frozen backbone's region vectors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vqa_repro.data.registry import find_data_set
from vqa_repro.features.backbones import SIZE
from vqa_repro.features.extraction import DamagedImagesError, ExtractionJob
from vqa_repro.features.store import Store
from vqa_repro.install import checkpoints
from vqa_repro.install.errors import InstallError
from vqa_repro.utils.distributed import SINGLE_PROCESS, SharedError, World
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.memory import OTHER_DEVICE, explain_out_of_memory

# Images of up to SIZE; VGG's two widest maps then take 3.3 GB in float32 on a GPU.
BATCH = {"cpu": 4, "cuda": 32}


class FeatureNetwork(Protocol):
    """A network to extract features with: ``FrozenBackbone``, or your own (docs/extending.md).

    size: of the images, in pixels a side. row_shape: regions and channels. made_by: the provenance
    of the features.
    """

    device: torch.device
    size: int
    row_shape: tuple[int, int]
    made_by: dict[str, Any]

    def __call__(self, images: Tensor) -> Tensor:
        """Return region vectors (B, regions, channels) of ``images`` (B, S, S, 3) uint8."""


class Extractor:
    """What an ``ExtractionJob`` calls: images (B, S, S, 3) -> float16 rows (B, regions, C).

    On a GPU copies overlap with computation: while one batch is computed, the next is copied to the
    GPU and the rows of the previous one are copied back.
    """

    def __init__(self, network: FeatureNetwork) -> None:
        self._network = network
        self._on_gpu = network.device.type == "cuda"
        if self._on_gpu:
            device = network.device
            self._to_gpu, self._to_host = torch.cuda.Stream(device), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def buffer(self) -> npt.NDArray[np.uint8]:
        size = self._network.size
        most = BATCH[self._network.device.type]
        batch = min(most, max(1, most * SIZE**2 // size**2))
        shape = (batch, size, size, 3)
        buffer: npt.NDArray[np.uint8] = torch.empty(
            shape, dtype=torch.uint8, pin_memory=self._on_gpu
        ).numpy()
        return buffer

    @torch.inference_mode()
    def __call__(self, buffer: npt.NDArray[np.uint8]) -> Callable[[], npt.NDArray[np.float16]]:
        images = torch.from_numpy(buffer)
        if not self._on_gpu:
            rows = self._network(images).half()
            return rows.numpy
        computing = torch.cuda.current_stream(self._network.device)
        with torch.cuda.stream(self._to_gpu):
            images = images.to(self._network.device, non_blocking=True)
        computing.wait_stream(self._to_gpu)
        images.record_stream(computing)
        result = self._network(images).half()
        rows = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
        self._to_host.wait_stream(computing)
        with torch.cuda.stream(self._to_host):
            rows.copy_(result, non_blocking=True)
            result.record_stream(self._to_host)
            copied = self._to_host.record_event()

        def wait() -> npt.NDArray[np.float16]:
            copied.synchronize()
            return rows.numpy()

        return wait


@explain_out_of_memory(f"`extract --precision bfloat16` takes less; {OTHER_DEVICE}")
def extract(
    images: dict[str, Path],
    path: Path,
    network: FeatureNetwork,
    *,
    skip_damaged: bool = False,
    world: World = SINGLE_PROCESS,
) -> Store:
    """Fill the store at ``path`` with (regions, channels) float16 rows; return it open.

    Existing rows are kept. Raise UserError with the number of damaged images after the last image;
    with ``skip_damaged`` the store is finished without them.
    """
    job = ExtractionJob(
        path,
        images,
        Extractor(network),
        network.row_shape,
        np.float16,
        network.made_by,
        skip_damaged,
        world,
    )
    try:
        return job.run()
    except DamagedImagesError as error:
        text = f"{error}, or skip them with `extract --skip-damaged`"
        raise (UserError(text) if world.size == 1 else SharedError(text)) from None


def cached_checkpoint(backbone: str) -> Path:
    """Return the checkpoint file of ``backbone``. Raise UserError if it is missing."""
    try:
        filename = checkpoints.lookup(backbone).filename
    except InstallError as error:
        raise UserError(f"{error}; name its file with --weights") from None
    path: Path = checkpoints.checkpoint_dir() / filename
    if not path.is_file():
        raise UserError(
            f"{path}: missing; `python checkpoints_setup.py {backbone}` downloads it, or name the "
            "file with --weights"
        )
    return path


def store_path(root: Path, data: str, *what: str) -> Path:
    """Return the path of the store with the features of ``data`` made by ``what``."""
    return root / "features" / f"{'-'.join([find_data_set(data).images, *what])}.safetensors"
