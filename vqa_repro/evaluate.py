"""Score a run, or any results file, with the official metric.

python -m vqa_repro.evaluate runs/easy-vqa
python -m vqa_repro.evaluate RUN --split test2015 --out results.json   # for the server
python -m vqa_repro.evaluate RUN --data FOLDER --split val             # on another data set
python -m vqa_repro.evaluate --results R.json --questions Q.json --annotations A.json --json
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vqa_repro.utils.errors import UserError, main_guard
from vqa_repro.utils.paths import path_argument

if TYPE_CHECKING:
    from vqa_repro.data.types import Split
    from vqa_repro.features.provider import Runtime
    from vqa_repro.recipe import Data
    from vqa_repro.run import Run

SERVER = "the evaluation server, see visualqa.org/challenge"
# Options for runs, and those for results files.
_OF_RUNS = ("data", "split", "out", "weights")
_OF_RESULTS = ("questions", "annotations")


def answer_split(run: Run, data: Data, split: Split, runtime: Runtime) -> dict[int, str]:
    """Return the run's answer to each question of ``split``: question id -> answer.

    Questions about images that the features skip as damaged have none.
    """
    from vqa_repro.data.questions import encode
    from vqa_repro.evaluation.inference import answers_by_id, predict_all
    from vqa_repro.features.loader import FeatureLoader
    from vqa_repro.features.provider import open_or_extract
    from vqa_repro.models.network import load_model

    with redirect_stdout(sys.stderr):  # an extraction reports there: stdout is for the scores
        store = open_or_extract(data, [split], runtime)
    if store.made_by != run.features["made_by"]:
        raise UserError(
            f"{store.path}: made by {store.made_by}, but the run was trained on features made by "
            f"{run.features['made_by']}; extract them that way"
        )
    examples = [example for example in split.examples if example.image in store.row_of]
    if not examples:
        raise UserError(f"{store.path}: skips every image of {split.name} as damaged")
    questions = encode(examples, run.vocabulary, store.row_of).to(runtime.device)
    loader = FeatureLoader(store, runtime.device, "disk")  # each image is read once
    predictions = predict_all(load_model(run, runtime.device), loader, questions)
    return answers_by_id(predictions, questions, run.vocabulary.answers)


def where_scored(data: str, split: Split, out: Path, count: int) -> str:
    """One line: who scores the complete results of a split whose answers are hidden."""
    line = f"{out}: {count:,} answers, all of {split.name}, whose answers are hidden; "
    if data not in ("vqa-v1", "vqa-v2"):
        return line + "only the data set's owner can score it"
    if split.name == "test2015":
        return line + f"scored by {SERVER}"
    return (
        line + f"the evaluation server takes all of test2015 only: give --split test2015 ({SERVER})"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", type=path_argument, nargs="?", help="a run folder, which answers the split"
    )
    parser.add_argument("--run", type=path_argument, dest="run_option", help=argparse.SUPPRESS)
    parser.add_argument("--results", type=path_argument, help="answers in the submission format")
    parser.add_argument("--data", help="with RUN: another data set, or a folder of your own")
    parser.add_argument("--split", help="with RUN: which split (default: the recipe's test)")
    parser.add_argument(
        "--root", type=path_argument, default=Path("resources"), help="folder of the data sets"
    )
    parser.add_argument(
        "--weights",
        type=path_argument,
        help="with RUN: the backbone's checkpoint, if features are missing",
    )
    parser.add_argument(
        "--questions", type=path_argument, help="with --results: VQA-format questions"
    )
    parser.add_argument(
        "--annotations", type=path_argument, help="with --results: their annotations"
    )
    parser.add_argument(
        "--out",
        type=path_argument,
        help="with RUN: write the answers there, in the submission format",
    )
    parser.add_argument(
        "--per-question",
        type=path_argument,
        metavar="FILE",
        help="write question id -> percent there",
    )
    parser.add_argument("--wups", action="store_true", help="WUPS too, for single-answer data")
    parser.add_argument(
        "--wordnet", type=path_argument, help="folder of WordNet 3.0's files, for --wups"
    )
    parser.add_argument("--pre-2021", action="store_true", help="process answers as before 2021")
    parser.add_argument(
        "--device",
        default="auto",
        metavar="auto|cpu|cuda|cuda:N",
        help="where to compute; auto is the first GPU, or the CPU if there is none",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m vqa_repro.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    args = parser.parse_args(arguments)
    folder = args.run or args.run_option
    if (folder is None) == (args.results is None) or (args.run and args.run_option):
        parser.error("name either a run folder or --results FILE")
    for option in _OF_RUNS if args.results else _OF_RESULTS:
        if getattr(args, option) is not None:
            raise UserError(f"--{option} goes with {'a RUN' if args.results else '--results'}")

    from vqa_repro.utils.shortage import explain_out_of_memory_in

    with explain_out_of_memory_in():
        scored = _read_results(args) if args.results else _answer(args, folder)
        if scored is None:
            return 0
        results, split = scored
        _report(args, results, split)
    return 0


def _read_results(args: argparse.Namespace) -> tuple[dict[int, str], Split]:
    from vqa_repro.data import vqa
    from vqa_repro.data.types import Split
    from vqa_repro.evaluation import vqa_accuracy

    if not (args.questions and args.annotations):
        raise UserError("--results needs --questions and --annotations")
    examples = vqa.read_files(args.questions, args.annotations)
    results = vqa_accuracy.read_results(args.results)
    asked = [example.question_id for example in examples]
    vqa_accuracy.check_results(results, asked, str(args.results))
    return results, Split("", "results", examples, {})


def _answer(args: argparse.Namespace, folder: Path) -> tuple[dict[int, str], Split] | None:
    """Answer a split with a run; None if its answers are hidden and cannot be scored here."""
    from vqa_repro.data.registry import load_split
    from vqa_repro.evaluation import vqa_accuracy
    from vqa_repro.features.provider import Runtime
    from vqa_repro.run import open_run
    from vqa_repro.utils.device import choose_device

    run = open_run(folder)
    data = replace(run.recipe.data, name=args.data or run.recipe.data.name)
    split = load_split(
        data.name, args.root, args.split or data.test, single_answers=data.single_answers
    )
    if split.hidden and not args.out:
        raise UserError(
            f"{data.name}, {split.name}: its answers are hidden; --out FILE writes the results "
            "to submit"
        )
    runtime = Runtime(choose_device(args.device), root=args.root, weights=args.weights)
    results = answer_split(run, data, split, runtime)
    examples = [example for example in split.examples if example.question_id in results]
    if len(examples) < len(split.examples):
        print(
            f"note: {len(split.examples) - len(examples):,} of {len(split.examples):,} questions "
            "are not answered: the features skip their images as damaged",
            file=sys.stderr,
        )
    if split.hidden:
        vqa_accuracy.check_results(results, [example.question_id for example in split.examples])
    if args.out:
        vqa_accuracy.write_results(args.out, results)
    if not split.hidden:
        return results, replace(split, examples=examples)
    # With --json this line is still for a person.
    line = where_scored(data.name, split, args.out, len(results))
    print(line, file=sys.stderr if args.json else sys.stdout)
    if args.json:
        from vqa_repro.evaluation.scoring import score

        print(json.dumps(score(results, split)))
    return None


def _report(args: argparse.Namespace, results: dict[int, str], split: Split) -> None:
    """Print the scores of ``results``."""
    from vqa_repro.evaluation import vqa_accuracy, wups
    from vqa_repro.evaluation.scoring import score
    from vqa_repro.utils.files import write_atomic

    wordnet = wups.WordNet(args.wordnet) if args.wups else None
    scores = score(results, split, wordnet=wordnet, pre_2021=args.pre_2021)
    if args.per_question:
        values = vqa_accuracy.per_question(results, split.examples, pre_2021=args.pre_2021)
        text = json.dumps({number: round(100 * value, 2) for number, value in values.items()})
        write_atomic(args.per_question, lambda file: file.write(text.encode()))
    if args.json:
        print(json.dumps(scores))
        return
    print(f"{scores['overall']:6.2f}%  of {len(results):,} questions")
    for name, value in scores.items():
        if name.startswith("wups"):
            print(f"{value:6.2f}   {name}")
    for kind in ("per_answer_type", "per_question_type"):
        for name, value in scores[kind].items():
            print(f"{value:6.2f}%  {name}")


if __name__ == "__main__":
    main_guard(main)
