"""Compare runs with the published figures in one HTML page, with a sheet for an error analysis.

python -m vqa_repro.report runs/*                         # report.html, one file, needs no network
python -m vqa_repro.report runs/* --watch 30              # rewrite it every 30 s until all finish
python -m vqa_repro.report runs/* --png slides            # PNG figures for slides; or --svg, --pdf
python -m vqa_repro.report runs/* --markdown              # the table alone, for a README
python -m vqa_repro.report --folds runs/a runs/b          # two settings of `train --folds 5`
python -m vqa_repro.report --examples RUN                 # choose a run's examples again
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vqa_repro.utils.arguments import (
    add_device_option,
    add_root_option,
    add_weights_option,
    parse_arguments,
    path_argument,
)
from vqa_repro.utils.errors import UserError, main_guard
from vqa_repro.utils.files import check_folder, write_output
from vqa_repro.utils.messages import LANGUAGES

if TYPE_CHECKING:
    from vqa_repro.reporting.comparison import RunSummary


DESCRIPTION = ("recipe.json", "environment.json", "vocabulary.json", "features.json")
FIGURES = ("png", "svg", "pdf")


def load_runs(folders: Sequence[Path]) -> tuple[list[RunSummary], list[str]]:
    """Return the runs, and one line for each path that is no run folder.

    Such paths, and copies of runs that lack a file, are skipped if there are others, as in
    ``runs/*``. Raise UserError for a damaged run folder, and if there is no run.
    """
    from vqa_repro.reporting.comparison import RunSummary
    from vqa_repro.run import not_a_run

    runs, skipped = [], []
    unique: dict[Path, Path] = {}  # a run named twice is not two seeds
    for folder in folders:
        unique.setdefault(folder.resolve(), folder)
    for folder in unique.values():
        missing = [name for name in DESCRIPTION if not (folder / name).is_file()]
        if not missing:
            runs.append(RunSummary.load(folder))
        elif "recipe.json" in missing:
            skipped.append(not_a_run(folder))
        else:
            skipped.append(f"{folder}: an incomplete copy of a run ({missing[0]} is missing)")
    if not runs:
        raise UserError(skipped[0])
    return runs, skipped


def write(
    folders: Sequence[Path], out: Path, language: str, refresh: float | None
) -> tuple[list[RunSummary], list[str]]:
    """Write the page; ``refresh`` (seconds) goes into it while a run is not finished.

    Return what ``load_runs`` does.
    """
    from vqa_repro.reporting.html import page

    runs, skipped = load_runs(folders)
    html = page(runs, language, None if all_finished(runs) else refresh, skipped)
    # Texts of a run may hold half a surrogate pair, which is not UTF-8.
    content = html.encode(errors="replace")
    write_output(out, lambda file: file.write(content))
    return runs, skipped


def all_finished(runs: Sequence[RunSummary]) -> bool:
    return all(run.metrics is not None for run in runs)


def make_examples(folder: Path, root: Path, device_name: str, weights: Path | None) -> None:
    """Choose the examples of a finished run again; this reads its data set."""
    from vqa_repro.evaluation import examples
    from vqa_repro.evaluation.inference import answers_by_id, predict_all
    from vqa_repro.features.provider import Runtime, open_or_extract
    from vqa_repro.models.network import load_model
    from vqa_repro.release import as_given, is_release
    from vqa_repro.run import open_run
    from vqa_repro.training.prepare import load_splits, prepare
    from vqa_repro.utils.device import choose_device

    run, device = open_run(folder), choose_device(device_name)
    if is_release(run.folder):
        raise UserError(
            f"--examples {as_given(folder)}: a release, to which nothing is added; "
            "name the run that it was made from"
        )
    run.check_finished()
    runtime = Runtime(device, root=root, weights=weights)
    splits = load_splits(run.recipe, root)
    store = open_or_extract(run.recipe.data, splits, runtime, run.features["made_by"])
    data = prepare(run, splits, store, runtime)
    network = load_model(run, device)
    predictions = predict_all(network, data.loader, data.test)
    results = answers_by_id(predictions, data.test, run.vocabulary.answers)
    made = examples.make(
        run, network, data.loader, data.test, data.test_split, predictions, results
    )
    print(f"{len(made.records)} questions: {shlex.quote(str(run.folder / 'gallery.json'))}")


def seconds(text: str) -> float:
    value = float(text)
    if not 1 <= value <= 86_400:
        raise argparse.ArgumentTypeError("between 1 and 86400 seconds")
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "runs",
        nargs="*",
        type=path_argument,
        metavar="RUN",
        help="run folders, finished or not",
    )
    add("--out", type=path_argument, help="output file (default: report.html)")
    add(
        "--language",
        choices=LANGUAGES,
        default="en",
        help="language of the figures, and the page's initial one",
    )
    for kind in FIGURES:
        what = "a 16:9 summary slide, curves, accuracies and attention"
        add(
            f"--{kind}",
            type=path_argument,
            metavar="DIR",
            help=f"write {what} as {kind.upper()} too",
        )
    add(
        "--watch",
        type=seconds,
        metavar="SECONDS",
        help="rewrite the page every SECONDS until all runs finish",
    )
    add("--markdown", action="store_true", help="only the table, printed or written to --out")
    add(
        "--folds",
        nargs="+",
        type=path_argument,
        metavar="OUT",
        help="compare cross-validated settings with the first; OUT as given to train --folds",
    )
    add("--examples", type=path_argument, metavar="RUN", help="choose this run's examples again")
    group = parser.add_argument_group("options of --examples")
    add_root_option(group)
    add_weights_option(group)
    add_device_option(group)


def print_markdown(folders: Sequence[Path], out: Path | None) -> None:
    from vqa_repro.reporting.tables import markdown

    runs, skipped = load_runs(folders)
    print_skipped(skipped)
    print_table(markdown(runs), out)


def print_folds(settings: Sequence[Path], out: Path | None) -> None:
    from vqa_repro.reporting.folds import compare

    print_table("\n".join(compare(settings)), out)


def print_table(text: str, out: Path | None) -> None:
    if out:
        write_output(out, lambda file: file.write(text.encode() + b"\n"))
        print(f"table: {shlex.quote(str(out))}")
    else:
        print(text)


def print_skipped(skipped: Sequence[str]) -> None:
    for line in skipped:
        print(f"note: skipped {line}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    parser, args = parse_arguments("report", __doc__, add_arguments, arguments)
    if args.examples:
        figures = args.png or args.svg or args.pdf
        if args.runs or args.markdown or args.watch or figures or args.out:
            raise UserError("--examples: takes one run and only --root, --weights and --device")
        make_examples(args.examples, args.root, args.device, args.weights)
        return 0
    if args.folds:
        if args.runs or args.markdown or args.watch or args.png or args.svg or args.pdf:
            raise UserError("--folds: takes the settings alone, and --out")
        print_folds(args.folds, args.out)
        return 0
    if not args.runs:
        parser.error("name one or more run folders")
    if args.markdown:
        if args.watch or args.png or args.svg or args.pdf:
            raise UserError("--markdown: cannot be combined with --watch or figures")
        print_markdown(args.runs, args.out)
        return 0
    for kind in FIGURES:
        if folder := getattr(args, kind):
            check_folder(folder, f"--{kind}")
    out = args.out or Path("report.html")
    runs, skipped = write(args.runs, out, args.language, args.watch)
    print_skipped(skipped)
    print(f"page: {shlex.quote(str(out))}", flush=True)
    while args.watch and not all_finished(runs):
        time.sleep(args.watch)
        runs, _ = write(args.runs, out, args.language, args.watch)
    for kind in FIGURES:
        if folder := getattr(args, kind):
            from vqa_repro.reporting.slides import write_slides

            paths = write_slides(runs, folder, args.language, kind)
            print(f"{kind.upper()} figures: {len(paths)} in {shlex.quote(str(folder))}")
    return 0


if __name__ == "__main__":
    main_guard(main)
