"""Several trainings side by side: one for each seed, each in a run folder of its own."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vqa_repro.recipe import HIGHEST_SEED, Recipe
from vqa_repro.utils.arguments import whole_number
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.side_by_side import Outcome, cores, make_slots, run_side_by_side

MAX_RUNS = 999


class Trained(NamedTuple):
    """How several trainings ended. Their folders are ``base`` with "-" and their names."""

    base: Path
    folders: dict[str, Path]
    outcomes: dict[str, Outcome]
    signal_code: int  # 128 plus the signal that stopped them, or 0

    @property
    def finished(self) -> list[Path]:
        """The finished runs; a folder whose training failed may hold one of other options."""
        return [
            path
            for name, path in self.folders.items()
            if not self.outcomes[name].code and (path / "metrics.json").exists()
        ]

    def exit_code(self) -> int:
        """Return 0, or the code of the signal. Raise UserError, naming those that failed."""
        if self.signal_code:
            print(
                f"stopped; {len(self.finished)} of {len(self.folders)} are finished, the same "
                "command continues"
            )
            return self.signal_code
        failed: dict[str, list[str]] = {}  # by error
        for name, outcome in self.outcomes.items():
            if outcome.code:
                line = outcome.last_line.removeprefix("error: ") or f"exit code {outcome.code}"
                failed.setdefault(line, []).append(name)
        if failed:
            count = sum(map(len, failed.values()))
            each = "; ".join(f"{', '.join(names)} ({line})" for line, names in failed.items())
            raise UserError(f"{count} of {len(self.outcomes)} trainings failed: {each}")
        return 0


def train_side_by_side(
    args: argparse.Namespace, words: Sequence[str], recipe: Recipe, base: Path
) -> Trained:
    """Run ``train`` with its command line ``words`` once for each seed or fold of ``args``.

    recipe: of the first of them. The run folders are BASE-seed-3, BASE-fold-1; those that exist are
    resumed. Unless --jobs says how many run at a time, there is one for each GPU, or CPU core.
    Raise UserError under torchrun, which divides a single training, for several seeds of several
    folds, and for data that cannot be read or has fewer groups of images than there are folds.
    """
    from vqa_repro.training.prepare import load_splits

    if os.environ.get("WORLD_SIZE", "").strip() not in ("", "1"):
        raise UserError("torchrun divides a single training; start several with python -m")
    options = options_of_each(args)
    if recipe.data.fold:
        load_splits(recipe, args.root)  # one error now, instead of one from every training
    folders = {name: Path(f"{base}-{name}") for name in options}
    commands = {
        name: [
            *(sys.executable, "-m", "vqa_repro.train", *words, *options[name]),
            *("--out", str(folder), "--resume"),
        ]
        for name, folder in folders.items()
    }
    gpus = visible_gpus(args.device)
    together = len(gpus) or (1 if args.device.startswith("cuda:") else cores())
    slots = make_slots(min(args.jobs or together, len(commands)), gpus)
    return Trained(base, folders, *run_side_by_side(commands, slots))


def visible_gpus(device: str) -> list[str]:
    """Return the GPUs that --device ``device`` leaves to choose from, by their names for CUDA."""
    import torch

    if device not in ("auto", "cuda") or not torch.cuda.is_available():
        return []
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    found = torch.cuda.device_count()
    # CUDA ignores the names from the first invalid one on.
    return names[:found] if names[0] else [str(n) for n in range(found)]


def add_several_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that decide how many trainings there are."""
    seed = parser.add_mutually_exclusive_group()
    seed.add_argument(
        "--seed",
        type=whole_number(0, HIGHEST_SEED),
        metavar="N",
        help="of all random numbers (default: 0)",
    )
    seed.add_argument(
        "--seeds",
        type=seeds,
        metavar="0-4|0,2,5",
        help="one run for each of these seeds, side by side, in OUT-seed-0, OUT-seed-1, ...; "
        "re-running skips finished runs and resumes the others",
    )
    parser.add_argument(
        "--folds",
        type=folds,
        metavar="N|K/N",
        help="cross-validation: hold out each of N folds of the training images, side by side, in "
        "OUT-fold-1, ...; compare settings with report --folds OUT OUT",
    )
    parser.add_argument(
        "--jobs",
        type=whole_number(1, MAX_RUNS),
        metavar="N",
        help="runs side by side (default: one for each GPU, or CPU core)",
    )


def options_of_each(args: argparse.Namespace) -> dict[str, list[str]]:
    """Return the options of every training, by its name: "seed-3", "fold-1".

    Raise UserError for several seeds of several folds.
    """
    if type(args.folds) is not int:
        return {f"seed-{seed}": ["--seeds", str(seed)] for seed in args.seeds}
    if len(args.seeds or []) > 1:
        raise UserError("--folds: takes one seed, not several")
    total = args.folds
    return {f"fold-{k}": ["--folds", f"{k}/{total}"] for k in range(1, total + 1)}


def seeds(text: str) -> list[int]:
    """ "0-2,7" -> [0, 1, 2, 7]."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise argparse.ArgumentTypeError(f"{text!r}: write seeds as 0-4 or 0,2,5")
        numbers += range(int(first), min(int(last or first), int(first) + MAX_RUNS) + 1)
    if not 0 < len(set(numbers)) == len(numbers) <= MAX_RUNS:
        raise argparse.ArgumentTypeError(f"{text!r}: name 1 to {MAX_RUNS} different seeds")
    return numbers


def folds(text: str) -> str | int:
    """ "5" -> 5, all of five folds; "2/5" -> the second of five."""
    number, slash, total = text.rpartition("/")
    if total.isdecimal() and 2 <= int(total) <= MAX_RUNS:
        if not slash:
            return int(total)
        if number.isdecimal() and 1 <= int(number) <= int(total):
            return f"{int(number)}/{int(total)}"
    raise argparse.ArgumentTypeError(f"{text!r}: a number of folds (5), or one of them (2/5)")
