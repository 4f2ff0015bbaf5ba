"""Pack a finished run for others: description, weights in float16, model card, checksums.

    python -m vqa_repro.export runs/san --out san-coco-qa.tar
    python -m vqa_repro.predict san-coco-qa.tar --image IMAGE --question "what is it?"

Opened again by predict, serve, evaluate and vqa_repro.load, also from an address that ends in
#sha256=CHECKSUM.
"""

from __future__ import annotations

import argparse

from vqa_repro.utils.errors import main_guard
from vqa_repro.utils.paths import path_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", type=path_argument, metavar="RUN", help="the folder of a finished run"
    )
    parser.add_argument(
        "--out",
        type=path_argument,
        required=True,
        help="the release: a new .tar file, or a new folder",
    )


def main(arguments: list[str] | None = None) -> int:
    description = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m vqa_repro.export", description=description)
    add_arguments(parser)
    args = parser.parse_args(arguments)
    from vqa_repro.release import pack
    from vqa_repro.reporting.model_card import model_card
    from vqa_repro.run import open_run, read_json

    out = args.out
    run = open_run(args.run)
    metrics = read_json(run.folder / "metrics.json") if run.finished else {}
    checksum = pack(run.folder, out, model_card(run, metrics))
    print(f"release: {out}")
    if checksum:
        print(f"{out.stat().st_size / 1e6:.1f} MB, sha256 {checksum}")
        print(f"  others: python -m vqa_repro.predict ADDRESS#sha256={checksum} --image ...")
    return 0


if __name__ == "__main__":
    main_guard(main)
