"""Check a data set: counts, answer coverage, shared, missing and damaged images.

    python -m vqa_repro.check FOLDER
    python -m vqa_repro.check daquar --root resources --json

Exit code 1: images are missing or damaged; 2: bad input.
"""

from __future__ import annotations

import argparse
import json

from vqa_repro.utils.arguments import add_root_option, name_or_path_argument, parse_arguments
from vqa_repro.utils.errors import main_guard


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data",
        type=name_or_path_argument,
        metavar="FOLDER|DATASET",
        help="a folder, or a data set's name",
    )
    add_root_option(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")


def main(arguments: list[str] | None = None) -> int:
    _, args = parse_arguments("check", __doc__, add_arguments, arguments, needs_torch=False)
    from vqa_repro.data.check import report_lines, survey
    from vqa_repro.data.registry import DATASETS, load_scored, load_split
    from vqa_repro.data.sources import MissingFileError

    splits = [load_split(args.data, args.root, "train")]
    try:
        splits.append(load_scored(args.data, args.root))
    except MissingFileError:
        if args.data in DATASETS:  # a file of the published data set is missing
            raise
    facts = survey(*splits)
    if len(splits) == 1:
        facts["notes"].append("no split test or val: `train --folds` can score a part of train")
    print(json.dumps(facts) if args.json else "\n".join(report_lines(facts)))
    return int(any(split["missing"] or split["damaged"] for split in facts["splits"]))


if __name__ == "__main__":
    main_guard(main)
