"""Pack a finished run for others: description, weights in float16, model card, checksums.

    python -m vqa_repro.export runs/san --out san-coco-qa.tar
    python -m vqa_repro.predict san-coco-qa.tar --image IMAGE --question "what is it?"
    python -m vqa_repro.export runs/san --onnx san.onnx

The first is opened by predict, serve, evaluate and vqa_repro.load, also from an address that ends
in #sha256=CHECKSUM. The second is the network alone, in float32, for programs without PyTorch.
"""

from __future__ import annotations

import argparse

from vqa_repro.utils.arguments import parse_arguments, path_argument
from vqa_repro.utils.errors import main_guard


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", type=path_argument, metavar="RUN", help="the folder of a finished run"
    )
    form = parser.add_mutually_exclusive_group(required=True)
    form.add_argument("--out", type=path_argument, help="the release: a new .tar file or folder")
    form.add_argument("--onnx", type=path_argument, metavar="FILE", help="a new ONNX model instead")


def main(arguments: list[str] | None = None) -> int:
    _, args = parse_arguments("export", __doc__, add_arguments, arguments)
    from vqa_repro.release import pack
    from vqa_repro.reporting.model_card import model_card
    from vqa_repro.run import open_run
    from vqa_repro.utils.files import read_json

    run = open_run(args.run)
    if args.onnx:
        from vqa_repro.models.onnx import write_onnx

        write_onnx(run, args.onnx)
        print(f"ONNX model: {args.onnx} ({args.onnx.stat().st_size / 1e6:.1f} MB)")
        return 0
    metrics = read_json(run.folder / "metrics.json") if run.finished else {}
    checksum = pack(run.folder, args.out, model_card(run, metrics))
    print(f"release: {args.out}")
    if checksum:
        print(f"{args.out.stat().st_size / 1e6:.1f} MB, sha256 {checksum}")
        print(f"  others: python -m vqa_repro.predict ADDRESS#sha256={checksum} --image ...")
    return 0


if __name__ == "__main__":
    main_guard(main)
