"""Pictures -> feature store, through a frozen network.

    python -m vqa_repro.extract --data daquar --backbone vgg19
    python -m vqa_repro.extract --data daquar --backbone vgg19 \\
        --weights vgg19-d01eb7cb.pth --preprocess caffe

A killed extraction goes on where it stopped when the same command is given again.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm.auto import tqdm

import checkpoints_setup
from vqa_repro.backbone import BACKBONES, FrozenNetwork
from vqa_repro.datasets import load_all
from vqa_repro.device import add_device_option, choose_device, describe
from vqa_repro.errors import UserError, main_guard
from vqa_repro.features import store_path
from vqa_repro.pictures import read_picture
from vqa_repro.store import Store, StoreWriter, in_chunks, open_store

BATCH = {"cpu": 4, "cuda": 64}
SAVE_EVERY = 30.0  # seconds that a kill can cost


def extract(
    images: dict[str, Path], path: Path, network: FrozenNetwork, device: torch.device
) -> Store:
    """Fill the store at ``path`` with (regions, channels) float16 rows; return it open.

    Computes in float32. Raises UserError for a picture that cannot be read, naming it; what was
    done until then is kept.
    """
    backbone = network.backbone
    row_shape = (backbone.regions, backbone.channels)
    writer = StoreWriter(path, list(images), row_shape, np.float16, network.made_by)
    files = list(images.values())
    todo = writer.missing()
    saved = time.monotonic()
    bar = tqdm(
        total=len(files),
        initial=len(files) - len(todo),
        desc="features",
        unit=" images",
        disable=None,
        dynamic_ncols=True,
    )
    try:
        with bar, torch.inference_mode():
            for rows, pictures in decoded(files, todo, BATCH[device.type], backbone.size):
                grid = network(torch.from_numpy(pictures).to(device))
                for row, values in zip(rows, grid.half().cpu().numpy(), strict=True):
                    writer.write(row, values)
                bar.update(len(rows))
                if time.monotonic() - saved > SAVE_EVERY:
                    writer.flush()
                    saved = time.monotonic()
    finally:
        writer.flush()
    writer.finish()
    return open_store(path)


def decoded(
    files: Sequence[Path], todo: npt.NDArray[np.int64], batch: int, size: int
) -> Iterator[tuple[list[int], npt.NDArray[np.uint8]]]:
    """Batches of rows and pictures (B, size, size, 3); the next one decodes meanwhile."""
    with ThreadPoolExecutor() as pool:

        def read(rows: list[int]) -> list[Future[npt.NDArray[np.uint8]]]:
            return [pool.submit(read_picture, files[row], size) for row in rows]

        chunks = list(in_chunks(todo, batch))
        ahead = read(chunks[0]) if chunks else []
        for rows, following in zip(chunks, [*chunks[1:], []], strict=True):
            current, ahead = ahead, read(following)
            yield rows, np.stack([picture.result() for picture in current])


def seeded(backbone: str) -> Path:
    """The verified checkpoint of ``backbone``. Raises UserError, with the mend, if it is absent."""
    path: Path = checkpoints_setup.checkpoint_dir() / checkpoints_setup.lookup(backbone).filename
    if not path.is_file():
        raise UserError(f"{path}: missing; python checkpoints_setup.py {backbone}")
    return path


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
    add_device_option(parser)
    args = parser.parse_args(arguments)
    device = choose_device(args.device)
    weights: Any = args.weights or seeded(args.backbone)
    splits = load_all(args.data, args.root)
    images = {key: path for split in splits for key, path in split.images.items()}
    path = args.out or store_path(args.root, args.data, args.backbone, args.preprocess)
    network = FrozenNetwork(args.backbone, weights, args.preprocess, device)
    print(
        f"{len(images):,} pictures through {args.backbone} ({weights.name}) on {describe(device)}"
    )
    extract(images, path, network, device)
    print(f"features: {path}")
    return 0


if __name__ == "__main__":
    main_guard(main)
