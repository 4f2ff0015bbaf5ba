"""Pictures -> feature store, through a frozen network.

    python -m vqa_repro.extract --data daquar --backbone vgg19
    python -m vqa_repro.extract --data daquar --backbone vgg19 \\
        --weights vgg19-d01eb7cb.pth --preprocess caffe

A killed extraction goes on where it stopped when the same command is given again, a finished one
adds the pictures that are new. Delete the store to have all of them read anew.
"""

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

import checkpoints_setup
from vqa_repro.backbone import BACKBONES, FrozenNetwork
from vqa_repro.datasets import find_data_set, load_all
from vqa_repro.device import add_device_option, choose_device, describe
from vqa_repro.errors import UserError, main_guard
from vqa_repro.store import DamagedPicturesError, Store, fill

BATCH = {"cpu": 4, "cuda": 64}


def extract(
    images: dict[str, Path],
    path: Path,
    network: FrozenNetwork,
    device: torch.device,
    *,
    leave_out_damaged: bool = False,
) -> Store:
    """Fill the store at ``path`` with (regions, channels) float16 rows; return it open.

    Computes in float32. What is there already is kept. Raises UserError that counts the damaged
    pictures, after the last one; with ``leave_out_damaged`` the store is finished without them.
    """
    backbone = network.backbone

    def compute(pictures: npt.NDArray[np.uint8]) -> npt.NDArray[np.float16]:
        with torch.inference_mode():
            rows: npt.NDArray[np.float16] = (
                network(torch.from_numpy(pictures).to(device)).half().cpu().numpy()
            )
        return rows

    try:
        return fill(
            path,
            images,
            backbone.size,
            compute,
            (backbone.regions, backbone.channels),
            np.float16,
            network.made_by,
            batch=BATCH[device.type],
            leave_out_damaged=leave_out_damaged,
        )
    except DamagedPicturesError as error:
        raise UserError(f"{error}, or do without them: `extract --leave-out-damaged`") from None


def seeded(backbone: str) -> Path:
    """The checkpoint called ``backbone``. Raises UserError, with the mend, if it is absent."""
    try:
        filename = checkpoints_setup.lookup(backbone).filename
    except checkpoints_setup.CheckpointError as error:
        raise UserError(f"{error}; name its file with --weights") from None
    path: Path = checkpoints_setup.checkpoint_dir() / filename
    if not path.is_file():
        raise UserError(
            f"{path}: missing; `python checkpoints_setup.py {backbone}` puts it there, or name the "
            "file with --weights"
        )
    return path


def store_path(root: Path, data: str, *what: str) -> Path:
    """Where the features of ``data`` made by ``what`` are kept."""
    return root / "features" / f"{'-'.join([find_data_set(data).pictures, *what])}.safetensors"


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
    parser.add_argument("--out", type=Path, help="the store; by default in ROOT/features")
    parser.add_argument(
        "--leave-out-damaged",
        action="store_true",
        help="finish without the pictures that cannot be read; without it, they are an error",
    )
    add_device_option(parser)
    args = parser.parse_args(arguments)
    device = choose_device(args.device)
    splits = load_all(args.data, args.root)
    images = {key: path for split in splits for key, path in split.images.items()}
    caffe = "-caffe" if args.preprocess == "caffe" else ""
    weights: Path = args.weights or seeded(args.backbone + caffe)
    path = args.out or store_path(args.root, args.data, args.backbone, args.preprocess)
    network = FrozenNetwork(args.backbone, weights, args.preprocess, device)
    print(
        f"{len(images):,} pictures through {args.backbone} ({weights.name}) on {describe(device)}"
    )
    store = extract(images, path, network, device, leave_out_damaged=args.leave_out_damaged)
    left_out = [key for key in images if key in store.left_out]
    if left_out:
        print(
            f"left out as damaged: {len(left_out):,} pictures, e.g. {images[left_out[0]]} "
            f"({store.left_out[left_out[0]]})"
        )
    print(f"features: {path}")
    return 0


if __name__ == "__main__":
    main_guard(main)
