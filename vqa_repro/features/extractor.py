"""Images -> a feature store of a frozen backbone's region vectors."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from vqa_repro.data.registry import find_data_set
from vqa_repro.features.backbones import FrozenBackbone
from vqa_repro.features.extraction import DamagedImagesError, ExtractionJob
from vqa_repro.features.store import Store
from vqa_repro.install import checkpoints
from vqa_repro.install.errors import InstallError
from vqa_repro.utils.distributed import SINGLE_PROCESS, SharedError, World
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.shortage import ELSEWHERE, explain_out_of_memory_in

BATCH = {"cpu": 4, "cuda": 32}  # images; VGG's two widest maps then take 3.3 GB in float32


class Extractor:
    """What an ``ExtractionJob`` calls: images (B, S, S, 3) -> float16 rows (B, regions, C).

    On a GPU nothing waits: while one batch is computed, the next is copied there, and the rows of
    the one before it are copied back.
    """

    def __init__(self, network: FrozenBackbone) -> None:
        self._network = network
        self._on_gpu = network.device.type == "cuda"
        if self._on_gpu:
            device = network.device
            self._to_gpu, self._back = torch.cuda.Stream(device), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def buffer(self) -> npt.NDArray[np.uint8]:
        size = self._network.backbone.size
        shape = (BATCH[self._network.device.type], size, size, 3)
        buffer: npt.NDArray[np.uint8] = torch.empty(
            shape, dtype=torch.uint8, pin_memory=self._on_gpu
        ).numpy()
        return buffer

    @torch.inference_mode()
    def __call__(self, buffer: npt.NDArray[np.uint8]) -> Callable[[], npt.NDArray[np.float16]]:
        pictures = torch.from_numpy(buffer)
        if not self._on_gpu:
            rows = self._network(pictures).half()
            return rows.numpy
        computing = torch.cuda.current_stream(self._network.device)
        with torch.cuda.stream(self._to_gpu):
            pictures = pictures.to(self._network.device, non_blocking=True)
        computing.wait_stream(self._to_gpu)
        pictures.record_stream(computing)
        made = self._network(pictures).half()
        rows = torch.empty(made.shape, dtype=made.dtype, pin_memory=True)
        self._back.wait_stream(computing)
        with torch.cuda.stream(self._back):
            rows.copy_(made, non_blocking=True)
            made.record_stream(self._back)
            there = self._back.record_event()

        def wait() -> npt.NDArray[np.float16]:
            there.synchronize()
            return rows.numpy()

        return wait


@explain_out_of_memory_in(f"`extract --precision bfloat16` takes less; {ELSEWHERE}")
def extract(
    images: dict[str, Path],
    path: Path,
    network: FrozenBackbone,
    *,
    skip_damaged: bool = False,
    world: World = SINGLE_PROCESS,
) -> Store:
    """Fill the store at ``path`` with (regions, channels) float16 rows; return it open.

    What is there already is kept. Raises UserError that counts the damaged pictures, after the
    last one; with ``skip_damaged`` the store is finished without them.
    """
    backbone = network.backbone
    job = ExtractionJob(
        path,
        images,
        Extractor(network),
        (backbone.regions, backbone.channels),
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
    """The checkpoint called ``backbone``. Raises UserError, with the mend, if it is absent."""
    try:
        filename = checkpoints.lookup(backbone).filename
    except InstallError as error:
        raise UserError(f"{error}; name its file with --weights") from None
    path: Path = checkpoints.checkpoint_dir() / filename
    if not path.is_file():
        raise UserError(
            f"{path}: missing; `python checkpoints_setup.py {backbone}` puts it there, or name the "
            "file with --weights"
        )
    return path


def store_path(root: Path, data: str, *what: str) -> Path:
    """Where the features of ``data`` made by ``what`` are kept."""
    return root / "features" / f"{'-'.join([find_data_set(data).pictures, *what])}.safetensors"
