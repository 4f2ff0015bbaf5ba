"""Measure throughput, and compare it with the limits of the machine.

    python benchmarks/run.py                   # on a GPU at the full size of VQA v2 train + val
    python benchmarks/run.py --share 0.005     # a share of its images; the default on a CPU
    python benchmarks/run.py --only step --json
    python benchmarks/run.py --only targets    # the goals, with measurements

Features are synthetic but not zero: as many values are non-zero as in VGG-19's pool5 (8%). Times
are medians of several repetitions after a warm-up; decoding and extraction of photos are one pass,
in wall-clock time. Figures to be compared are measured alternately in one run, because the speed of
a machine varies. With one thread on the CPU (OMP_NUM_THREADS=1) other times are CPU time, which
other processes on the machine hardly affect. Nothing is learnt here.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.extraction_speed import extraction_figures, store_figures
from benchmarks.measuring import Figure
from benchmarks.models import MODELS
from benchmarks.targets import growth_figures, target_rows
from benchmarks.training_speed import epoch_figures, place_features, step_figures
from vqa_repro.features.loader import PLACEMENTS
from vqa_repro.training.synthetic import VQA_IMAGES, synthetic_data
from vqa_repro.utils.arguments import add_device_option
from vqa_repro.utils.device import choose_device, describe, has_bfloat16
from vqa_repro.utils.distributed import World, init_distributed
from vqa_repro.utils.errors import UserError, main_guard


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--share", type=float, help="share of VQA v2's images")
    parser.add_argument("--steps", type=int, help="training steps per repetition")
    parser.add_argument(
        "--only",
        choices=("extraction", "store", "step", "epoch", "growth", "targets"),
        help="measure only this",
    )
    parser.add_argument(
        "--batch", type=int, default=100, help="questions per batch, for --only epoch"
    )
    parser.add_argument(
        "--feature-placement", choices=PLACEMENTS, default="device", help="for --only epoch"
    )
    parser.add_argument("--model", choices=tuple(MODELS), help="measure only this model")
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        help="of the package's models; default: bfloat16 if the device supports it",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_device_option(parser)
    args = parser.parse_args()
    with init_distributed(args.device) as (world, device_name):
        measure(args, world, choose_device(device_name))
    return 0


def measure(args: argparse.Namespace, world: World, device: torch.device) -> None:
    if args.precision == "bfloat16" and not has_bfloat16(device):
        raise UserError("--precision bfloat16: not supported by this device")
    args.precision = args.precision or ("bfloat16" if has_bfloat16(device) else "float32")
    args.share = args.share or (1.0 if device.type == "cuda" else 0.004)
    machine = (
        f"{describe(device)}, {world.size} process{'es' if world.size > 1 else ''}, "
        f"torch {torch.__version__}, Python {sys.version.split()[0]}"
    )
    if not args.json:
        print(machine, flush=True)
    if args.only == "targets":
        for what, goal, measured in target_rows(device, args.precision):
            print(f"| {what} | {goal} | {measured} |", flush=True)
    elif args.only == "growth":
        for figure in growth_figures(args.share, device.type, args.precision):
            print(figure, flush=True)
    else:
        measure_here(args, world, device, machine)


def measure_here(
    args: argparse.Namespace, world: World, device: torch.device, machine: str
) -> None:
    """Measure extraction, stores, steps and epochs in this process, and print the figures."""
    # Synthetic features and questions: a share of VQA v2.
    rows, questions = synthetic_data(max(40, round(VQA_IMAGES * args.share)), device)
    data = (
        f"synthetic features of {len(rows):,} images ({args.share:.2%} of VQA v2 train + val), "
        f"{len(questions):,} questions of {float(questions.lengths.float().mean()):.1f} words"
    )
    precision = getattr(torch, args.precision)
    steps = args.steps or (200 if device.type == "cuda" else 2)
    parts: dict[str, Callable[[], Iterator[Figure]]] = {
        "extraction": lambda: extraction_figures(device),
        "store": lambda: store_figures(rows),
        "step": lambda: step_figures(rows, questions, args.model, steps, precision),
        "epoch": lambda: epoch_figures(
            place_features(rows[world.rank :: world.size], args.feature_placement),
            questions,
            precision,
            world,
            args.batch,
            MODELS[args.model or "san"],
        ),
    }
    if not args.json:
        print(data, flush=True)
    figures = []
    for name in parts if args.only is None else [args.only]:
        # With --json standard output is for the JSON only.
        with redirect_stdout(sys.stderr if args.json else sys.stdout):
            for figure in parts[name]():
                figures.append(figure)
                if not args.json:
                    print(figure, flush=True)
    if args.json:
        records = [dataclasses.asdict(figure) for figure in figures]
        print(json.dumps({"machine": machine, "data": data, "figures": records}, indent=2))


if __name__ == "__main__":
    main_guard(main)
