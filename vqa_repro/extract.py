"""Pictures -> feature store, through a frozen network.

    python -m vqa_repro.extract --data daquar --backbone vgg19
    python -m vqa_repro.extract --data daquar --backbone vgg19 \\
        --weights vgg19-d01eb7cb.pth --preprocess caffe
    torchrun --nproc-per-node 4 -m vqa_repro.extract --data vqa-v2    # on four GPUs

A killed extraction goes on where it stopped when the same command is given again, a finished one
adds the pictures that are new. Delete the store to have all of them read anew.
"""

import argparse
import os
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from vqa_repro.data.registry import find_data_set, load_all
from vqa_repro.features.backbones import BACKBONES, FrozenBackbone
from vqa_repro.features.extraction import DamagedImagesError, fill
from vqa_repro.features.store import Store
from vqa_repro.install import checkpoints
from vqa_repro.install.errors import InstallError
from vqa_repro.utils.device import add_device_option, choose_device, describe, has_bfloat16
from vqa_repro.utils.distributed import SINGLE_PROCESS, SharedError, World, init_distributed, leave
from vqa_repro.utils.errors import UserError, main_guard
from vqa_repro.utils.shortage import ELSEWHERE, explain_out_of_memory_in

BATCH = {"cpu": 4, "cuda": 32}  # two of VGG's widest maps then have 3.3 GB in float32


class Extractor:
    """A frozen network as ``fill`` wants it: pictures (B, S, S, 3) -> float16 (B, regions, C).

    On a GPU nothing waits: while one batch is computed, the next is copied there, and the rows of
    the one before it are copied back.
    """

    def __init__(self, network: FrozenBackbone) -> None:
        self._network = network
        self._on_gpu = network.device.type == "cuda"
        if self._on_gpu:
            device = network.device
            self._to_gpu, self._back = torch.cuda.Stream(device), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def room(self) -> npt.NDArray[np.uint8]:
        size = self._network.backbone.size
        shape = (BATCH[self._network.device.type], size, size, 3)
        room: npt.NDArray[np.uint8] = torch.empty(
            shape, dtype=torch.uint8, pin_memory=self._on_gpu
        ).numpy()
        return room

    @torch.inference_mode()
    def __call__(self, room: npt.NDArray[np.uint8]) -> Callable[[], npt.NDArray[np.float16]]:
        pictures = torch.from_numpy(room)
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
    leave_out_damaged: bool = False,
    world: World = SINGLE_PROCESS,
) -> Store:
    """Fill the store at ``path`` with (regions, channels) float16 rows; return it open.

    What is there already is kept. Raises UserError that counts the damaged pictures, after the
    last one; with ``leave_out_damaged`` the store is finished without them.
    """
    backbone = network.backbone
    try:
        return fill(
            path,
            images,
            Extractor(network),
            (backbone.regions, backbone.channels),
            np.float16,
            network.made_by,
            leave_out_damaged=leave_out_damaged,
            world=world,
        )
    except DamagedImagesError as error:
        text = f"{error}, or do without them: `extract --leave-out-damaged`"
        raise (UserError(text) if world.size == 1 else SharedError(text)) from None


def seeded(backbone: str) -> Path:
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


@explain_out_of_memory_in()
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m vqa_repro.extract", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--data", required=True, help="a data set, or a folder of your own")
    parser.add_argument("--root", type=Path, default=Path("resources"), help="where data sets lie")
    parser.add_argument("--backbone", choices=list(BACKBONES), default="vgg19")
    parser.add_argument("--weights", type=Path, help="its checkpoint; by default the seeded one")
    parser.add_argument(
        "--preprocess",
        choices=["torchvision", "caffe"],
        default="torchvision",
        help="how the weights were fed in their training; caffe for conversions of the original",
    )
    parser.add_argument(
        "--precision",
        choices=["float32", "bfloat16"],
        default="float32",
        help="of the convolutions; bfloat16 is faster where the processor has it, and differs from "
        "the papers' float32 by about 1%%",
    )
    parser.add_argument("--out", type=Path, help="the store; by default in ROOT/features")
    parser.add_argument(
        "--leave-out-damaged",
        action="store_true",
        help="finish without the pictures that cannot be read; without it, they are an error",
    )
    add_device_option(parser)
    args = parser.parse_args(arguments)
    with init_distributed(args.device) as (world, args.device):
        try:
            _extract(args, world)
        except SharedError:
            if world.is_main:
                raise
    if not world.is_main:
        leave(0)  # also after an error: torchrun would end the first process before it has said it
    return 0


def _extract(args: argparse.Namespace, world: World) -> None:
    if world.size > int(os.environ.get("LOCAL_WORLD_SIZE", "1")):
        raise SharedError("extract fills one file: use the GPUs of one machine (--nnodes 1)")

    def prepare() -> tuple[dict[str, Path], FrozenBackbone, Path]:
        device = choose_device(args.device)
        splits = load_all(args.data, args.root)
        images = {key: path for split in splits for key, path in split.images.items()}
        caffe = "-caffe" if args.preprocess == "caffe" else ""
        weights: Path = args.weights or seeded(args.backbone + caffe)
        what = [args.backbone, args.preprocess]
        if args.precision != "float32":
            what.append(args.precision)
        path = args.out or store_path(args.root, args.data, *what)
        network = FrozenBackbone(args.backbone, weights, args.preprocess, device, args.precision)
        if args.precision == "bfloat16" and not has_bfloat16(device):
            print("note: no known instructions for bfloat16 here; float32 is faster")
        print(
            f"{len(images):,} pictures through {args.backbone} ({weights.name}) in "
            f"{args.precision} on {describe(device)}"
            + (f" and {world.size - 1} more" if world.size > 1 else ""),
            flush=True,
        )
        return images, network, path

    images, network, path = world.run_together(prepare)
    store = extract(images, path, network, leave_out_damaged=args.leave_out_damaged, world=world)
    left_out = [key for key in images if key in store.left_out]
    if left_out:
        print(
            f"left out as damaged: {len(left_out):,} pictures, e.g. {images[left_out[0]]} "
            f"({store.left_out[left_out[0]]})"
        )
    print(f"features: {path}")
    if args.precision != "float32":
        print(f"  train on them with --features {shlex.quote(str(path))}")


if __name__ == "__main__":
    main_guard(main)
