"""Extract image features with a frozen backbone into a feature store.

    python -m vqa_repro.extract --data daquar --preprocess caffe    # the papers' features
    python -m vqa_repro.extract --data daquar --preprocess caffe --weights FILE
    torchrun --nproc-per-node 4 -m vqa_repro.extract --data vqa-v2 --preprocess caffe

Re-run the same command to resume an interrupted extraction, or to add new images to a finished
store. Delete the store to extract all images again.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from vqa_repro.utils.arguments import (
    add_device_option,
    add_root_option,
    add_skip_damaged_option,
    add_weights_option,
    name_or_path_argument,
    parse_arguments,
    path_argument,
)
from vqa_repro.utils.errors import main_guard

if TYPE_CHECKING:
    from vqa_repro.utils.distributed import World

BACKBONES = ("vgg16", "vgg19", "resnet50", "resnet101", "resnet152")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        type=name_or_path_argument,
        required=True,
        help="a data set, or a folder with your own",
    )
    add_root_option(parser)
    parser.add_argument(
        "--backbone", choices=BACKBONES, default="vgg19", help="the frozen network (default: vgg19)"
    )
    add_weights_option(parser)
    parser.add_argument(
        "--preprocess",
        choices=["torchvision", "caffe"],
        default="torchvision",
        help="must match the weights: torchvision (default), or caffe for VGG weights converted "
        "from the original release (the papers')",
    )
    parser.add_argument(
        "--size",
        type=int,
        default=448,
        metavar="PIXELS",
        help="scale images to PIXELS a side, a multiple of 32 (default: 448, as in the papers); "
        "224 is four times as fast, with a quarter of the regions",
    )
    parser.add_argument(
        "--precision",
        choices=["float32", "bfloat16"],
        default="float32",
        help="precision of the convolutions; bfloat16 is faster on processors that support it, and "
        "differs from the papers' float32 by about 1%%",
    )
    parser.add_argument(
        "--out", type=path_argument, help="the feature store (default: in ROOT/features)"
    )
    add_skip_damaged_option(parser)
    add_device_option(parser)


def main(arguments: list[str] | None = None) -> int:
    _, args = parse_arguments("extract", __doc__, add_arguments, arguments)

    from vqa_repro.utils.distributed import SharedError, init_distributed, leave
    from vqa_repro.utils.memory import explain_out_of_memory

    with explain_out_of_memory(), init_distributed(args.device) as (world, args.device):
        try:
            _extract(args, world)
        except SharedError:
            if world.is_main:
                raise
    if not world.is_main:
        leave(0)  # also after an error: torchrun would end the main process before its message
    return 0


def _extract(args: argparse.Namespace, world: World) -> None:
    from vqa_repro.data.registry import load_all
    from vqa_repro.features.backbones import SIZE, FrozenBackbone
    from vqa_repro.features.extractor import cached_checkpoint, extract, store_path
    from vqa_repro.utils.device import choose_device, describe, has_bfloat16
    from vqa_repro.utils.distributed import SharedError
    from vqa_repro.utils.memory import processes_here

    if world.size > processes_here():
        raise SharedError("extract writes one file: use the GPUs of one machine (--nnodes 1)")

    def prepare() -> tuple[dict[str, Path], FrozenBackbone, Path]:
        device = choose_device(args.device)
        splits = load_all(args.data, args.root)
        images = {key: path for split in splits for key, path in split.images.items()}
        caffe = "-caffe" if args.preprocess == "caffe" else ""
        weights: Path = args.weights or cached_checkpoint(args.backbone + caffe)
        names = [args.backbone, args.preprocess]
        if args.precision != "float32":
            names.append(args.precision)
        if args.size != SIZE:
            names.append(str(args.size))
        path = args.out or store_path(args.root, args.data, *names)
        network = FrozenBackbone(
            args.backbone, weights, args.preprocess, device, args.precision, args.size
        )
        if args.precision == "bfloat16" and not has_bfloat16(device):
            print("note: this processor is not known to support bfloat16; float32 is faster")
        print(
            f"{len(images):,} images through {args.backbone} ({weights.name}) in "
            f"{args.precision} on {describe(device)}"
            + (f" and {world.size - 1} more" if world.size > 1 else ""),
            flush=True,
        )
        return images, network, path

    images, network, path = world.run_together(prepare)
    store = extract(images, path, network, skip_damaged=args.skip_damaged, world=world)
    skipped = [key for key in images if key in store.left_out]
    if skipped:
        print(
            f"skipped as damaged: {len(skipped):,} images, e.g. {images[skipped[0]]} "
            f"({store.left_out[skipped[0]]})"
        )
    print(f"features: {path}")
    if args.precision != "float32" or args.size != SIZE:
        print(f"  train on them with --features {shlex.quote(str(path))}")


if __name__ == "__main__":
    main_guard(main)
