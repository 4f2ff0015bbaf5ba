"""Score a run, or any results file, with the official metric.

python -m vqa_repro.evaluate runs/easy-vqa
python -m vqa_repro.evaluate RUN --split test2015 --out results.json   # for the server
python -m vqa_repro.evaluate RUN RUN RUN                                # as an ensemble
python -m vqa_repro.evaluate RUN --data FOLDER --split val             # on another data set
python -m vqa_repro.evaluate --results R.json --questions Q.json --annotations A.json --json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqa_repro.utils.arguments import (
    add_device_option,
    add_root_option,
    add_weights_option,
    name_or_path_argument,
    parse_arguments,
    path_argument,
)
from vqa_repro.utils.errors import UserError, main_guard
from vqa_repro.utils.files import check_distinct, check_writable, write_output

if TYPE_CHECKING:
    from torch import Tensor

    from vqa_repro.data.types import Split
    from vqa_repro.evaluation.wups import WordNet
    from vqa_repro.features.provider import Runtime
    from vqa_repro.run import Run

SERVER = "the evaluation server, see visualqa.org/challenge"
# Options for runs, and those for results files.
_OF_RUNS = ("data", "split", "out", "weights", "answers_of")
_OF_RESULTS = ("questions", "annotations")


def answer_split(
    runs: Sequence[Run],
    data: str,
    split: Split,
    runtime: Runtime,
    allowed: Tensor | None = None,
) -> dict[int, str]:
    """Return the runs' answers to the questions of ``split``: question id -> answer.

    Several runs, with the same classes, answer together, by their mean probabilities. allowed:
    (num_answers,) bool, the answers that may be given; None: all. Questions about images that the
    features skip as damaged are not answered. data: the data set of ``split``, or its folder.
    """
    from vqa_repro.data.questions import encode
    from vqa_repro.evaluation.ensemble import (
        Member,
        ensemble_outputs,
        group_by_features,
        load_ensemble,
        open_features_of,
    )
    from vqa_repro.evaluation.inference import answers_by_id, collect, predict_all
    from vqa_repro.features.loader import MappedLoader
    from vqa_repro.models.network import load_model

    vocabulary, device = runs[0].vocabulary, runtime.device
    groups = group_by_features(runs)
    stores = [
        open_features_of(run, replace(run.recipe.data, name=data), [split], runtime)
        for run, *_ in groups
    ]
    examples = [
        example
        for example in split.examples
        if all(example.image in store.row_of for store in stores)
    ]
    if not examples:
        raise UserError(f"{stores[0].path}: skips every image of {split.name} as damaged")
    questions = encode(examples, vocabulary, stores[0].row_of).to(device)
    loaders = [MappedLoader(store, device, stores[0].rows_in(store)) for store in stores]
    if len(runs) == 1 and allowed is None:
        predictions = predict_all(load_model(runs[0], device), loaders[0], questions)
        return answers_by_id(predictions, questions, vocabulary.answers)
    if allowed is not None:
        allowed = allowed.to(device)
    members = [
        Member(load_ensemble(group, device, allowed), loader)
        for group, loader in zip(groups, loaders, strict=True)
    ]
    predictions = collect(ensemble_outputs(members, questions), questions)
    return answers_by_id(predictions, questions, vocabulary.answers)


def where_scored(data: str, split: Split, out: Path, count: int) -> str:
    """Return one line: who can score the results of a split whose answers are hidden."""
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
        "run",
        type=path_argument,
        nargs="*",
        help="the run to evaluate; several answer together, by their mean probabilities",
    )
    parser.add_argument("--run", type=path_argument, dest="run_option", help=argparse.SUPPRESS)
    parser.add_argument("--results", type=path_argument, help="answers in the submission format")
    parser.add_argument(
        "--answers-of",
        type=name_or_path_argument,
        metavar="DATA",
        help="with RUN: only give answers of this data set's training split",
    )
    parser.add_argument(
        "--data",
        type=name_or_path_argument,
        help="with RUN: another data set, or a folder with your own",
    )
    parser.add_argument("--split", help="with RUN: the split (default: what the run was tested on)")
    add_root_option(parser)
    add_weights_option(parser)
    parser.add_argument(
        "--questions", type=path_argument, help="with --results: VQA-format questions"
    )
    parser.add_argument(
        "--annotations", type=path_argument, help="with --results: their annotations"
    )
    parser.add_argument(
        "--out",
        type=path_argument,
        help="with RUN: write the answers to this file, in the submission format",
    )
    parser.add_argument(
        "--per-question",
        type=path_argument,
        metavar="FILE",
        help="write question id -> percent to FILE",
    )
    parser.add_argument(
        "--wups", action="store_true", help="also WUPS, for data sets with one answer per question"
    )
    parser.add_argument(
        "--wordnet", type=path_argument, help="folder of WordNet 3.0's files, for --wups"
    )
    parser.add_argument(
        "--pre-2021",
        action="store_true",
        help="normalise answers as the official evaluation did before 2021",
    )
    add_device_option(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def main(arguments: list[str] | None = None) -> int:
    parser, args = parse_arguments("evaluate", __doc__, add_arguments, arguments)
    folders = args.run or ([args.run_option] if args.run_option else [])
    if bool(folders) == (args.results is not None) or (args.run and args.run_option):
        parser.error("name either a run folder or --results FILE")
    for option in _OF_RUNS if args.results else _OF_RESULTS:
        if getattr(args, option) is not None:
            raise UserError(
                f"--{option.replace('_', '-')} needs {'a RUN' if args.results else '--results'}"
            )

    from vqa_repro.evaluation.wups import WordNet
    from vqa_repro.utils.memory import explain_out_of_memory

    # What can be wrong with the options must not show only after all questions are answered.
    wordnet = WordNet(args.wordnet) if args.wups else None
    for option, path in (("--out", args.out), ("--per-question", args.per_question)):
        if path:
            check_writable(path, option)
    if args.out and args.per_question:
        check_distinct(args.out, args.per_question, "--out and --per-question")
    with explain_out_of_memory():
        scored = _read_results(args) if args.results else _answer(args, folders)
        if scored is not None:
            _report(args, *scored, wordnet)
    return 0


def _read_results(args: argparse.Namespace) -> tuple[dict[int, str], Split, Sequence[str]]:
    from vqa_repro.data import vqa
    from vqa_repro.data.types import Split
    from vqa_repro.evaluation import vqa_accuracy

    if not (args.questions and args.annotations):
        raise UserError("--results needs --questions and --annotations")
    examples = vqa.read_files(args.questions, args.annotations)
    results = vqa_accuracy.read_results(args.results)
    asked = [example.question_id for example in examples]
    vqa_accuracy.check_results(results, asked, str(args.results))
    return results, Split("", "results", examples, {}), ()


def _answer(
    args: argparse.Namespace, folders: Sequence[Path]
) -> tuple[dict[int, str], Split, Sequence[str]] | None:
    """Answer a split with runs: the results, what they answer, and the answers that may be given.

    Return None if the true answers are hidden and the results cannot be scored here.
    """
    from vqa_repro.evaluation import vqa_accuracy
    from vqa_repro.evaluation.ensemble import check_classes
    from vqa_repro.features.provider import Runtime
    from vqa_repro.run import open_run
    from vqa_repro.utils.device import choose_device

    runs = [open_run(folder) for folder in folders]
    check_classes(runs)
    for run in runs:
        if note := run.note():
            print(note, file=sys.stderr)
    name = args.data or runs[0].recipe.data.name
    split = _split_to_answer(runs, args)
    _check_options(args, name, split)
    runtime = Runtime(choose_device(args.device), root=args.root, weights=args.weights)
    classes: Sequence[str] = runs[0].vocabulary.answers
    allowed = _allowed(runs[0], args) if args.answers_of else None
    if allowed is not None:
        classes = tuple(compress(classes, allowed.tolist()))
    results = answer_split(runs, name, split, runtime, allowed)
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
        vqa_accuracy.write_results(args.out, results, write_output)
    if not split.hidden:
        return results, replace(split, examples=examples), classes
    # With --json this line is not part of the output.
    line = where_scored(name, split, args.out, len(results))
    print(line, file=sys.stderr if args.json else sys.stdout)
    if args.json:
        from vqa_repro.evaluation.scoring import score

        print(json.dumps(score(results, split)))
    return None


def _allowed(run: Run, args: argparse.Namespace) -> Tensor:
    """Return which answers of ``run`` are in the training split that --answers-of names."""
    from vqa_repro.data.registry import is_same, load_split
    from vqa_repro.evaluation.ensemble import allowed_answers

    data = run.recipe.data
    name = data.train if is_same(args.answers_of, data.name) else "train"
    split = load_split(args.answers_of, args.root, name, single_answers=data.single_answers)
    labels = (example.answer for example in split.examples)
    return allowed_answers(run.vocabulary, labels, f"{split.data}, {split.name}")


def _check_options(args: argparse.Namespace, data: str, split: Split) -> None:
    """Raise UserError for options that do not go with the answers of ``split``."""
    from vqa_repro.evaluation.wups import check_single_answers

    if split.hidden and not args.out:
        raise UserError(
            f"{data}, {split.name}: its answers are hidden; --out FILE writes the results to submit"
        )
    if split.hidden and (args.wups or args.per_question):
        raise UserError(f"{data}, {split.name}: its answers are hidden: no --wups, --per-question")
    if args.wups:
        check_single_answers(split.examples)


def _split_to_answer(runs: Sequence[Run], args: argparse.Namespace) -> Split:
    """Read the split that the options name; by default the one that the runs were tested on.

    Raise UserError by default for runs of which one may have trained on the other's fold.
    """
    from vqa_repro.data.registry import load_split
    from vqa_repro.training.prepare import load_test_split

    data = runs[0].recipe.data
    if args.data or args.split:
        name, split = args.data or data.name, args.split or data.test
        return load_split(name, args.root, split, single_answers=data.single_answers)
    for run in runs[1:]:
        if run.recipe.data.fold != data.fold:
            raise UserError(
                f"{run.folder}: holds out {_fold(run)}, {runs[0].folder} {_fold(runs[0])}, so one "
                f"may have trained on the other's questions; name the split: --split {data.test}"
            )
    return load_test_split(data, args.root)


def _fold(run: Run) -> str:
    return f"fold {run.recipe.data.fold}" if run.recipe.data.fold else "no fold"


def _report(
    args: argparse.Namespace,
    results: dict[int, str],
    split: Split,
    classes: Sequence[str],
    wordnet: WordNet | None,
) -> None:
    """Print the scores of ``results``, and the prior and coverage of the answers ``classes``."""
    from vqa_repro.evaluation import vqa_accuracy
    from vqa_repro.evaluation.baselines import prior_and_coverage
    from vqa_repro.evaluation.scoring import score

    scores = score(results, split, wordnet=wordnet, pre_2021=args.pre_2021)
    known = prior_and_coverage(split, classes, pre_2021=args.pre_2021) if classes else {}
    if args.json:
        print(json.dumps({**scores, **known}))
    else:
        _print_scores(scores, known, len(results), classes)
    if args.per_question:
        values = vqa_accuracy.per_question(results, split.examples, pre_2021=args.pre_2021)
        text = json.dumps({number: round(100 * value, 2) for number, value in values.items()})
        write_output(args.per_question, lambda file: file.write(text.encode()))


def _print_scores(
    scores: dict[str, Any], known: dict[str, float], questions: int, classes: Sequence[str]
) -> None:
    print(f"{scores['overall']:6.2f}%  of {questions:,} questions")
    if known:
        print(f'{known["prior"]:6.2f}%  always answering "{classes[0]}"')
        print(f"{known['coverage']:6.2f}%  of the questions have an answer of the model")
    for name, value in scores.items():
        if name.startswith("wups"):
            print(f"{value:6.2f}   {name}")
    for kind in ("per_answer_type", "per_question_type"):
        for name, value in scores[kind].items():
            print(f"{value:6.2f}%  {name}")


if __name__ == "__main__":
    main_guard(main)
