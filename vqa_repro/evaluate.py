"""Score a run, or anybody's results, with the official metric.

python -m vqa_repro.evaluate --run runs/easy-vqa
python -m vqa_repro.evaluate --run R --split test2015 --out results.json   # for the server
python -m vqa_repro.evaluate --run R --data FOLDER --split val             # on another data set
python -m vqa_repro.evaluate --results R.json --questions Q.json --annotations A.json --json
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from vqa_repro.data import vqa
from vqa_repro.data.questions import encode
from vqa_repro.data.registry import load_split
from vqa_repro.data.types import Example, Split
from vqa_repro.evaluation import vqa_accuracy, wups
from vqa_repro.evaluation.inference import predictions
from vqa_repro.features.loader import FeatureLoader
from vqa_repro.features.provider import open_features
from vqa_repro.models.network import load_model
from vqa_repro.recipe import Data
from vqa_repro.run import Run, open_run
from vqa_repro.utils.device import add_device_option, choose_device
from vqa_repro.utils.errors import UserError, main_guard
from vqa_repro.utils.files import write_atomic
from vqa_repro.utils.shortage import explain_out_of_memory_in

SERVER = "the evaluation server, see visualqa.org/challenge"
# Options that say how a run answers, and those that go with anybody's results.
_OF_RUNS = ("data", "split", "out", "weights")
_OF_RESULTS = ("questions", "annotations")


def answer_split(
    run: Run, data: Data, split: Split, root: Path, device_name: str, weights: Path | None = None
) -> dict[int, str]:
    """The run's answer to each question of ``split``: question id -> answer.

    Questions about pictures that the features leave out as damaged have none.
    """
    device = choose_device(device_name)
    store = open_features(data, root, [split], device, weights)
    if store.made_by != run.features["made_by"]:
        raise UserError(
            f"{store.path}: made by {store.made_by}, but the run was trained on features made by "
            f"{run.features['made_by']}; extract them that way"
        )
    examples = [example for example in split.examples if example.image in store.row_of]
    if not examples:
        raise UserError(f"{store.path}: leaves out every picture of {split.name} as damaged")
    questions = encode(examples, run.vocabulary, store.row_of).to(device)
    rows = FeatureLoader(store, device, "disk")  # each is looked at once
    classes = predictions(load_model(run, device), rows, questions).tolist()
    ids = questions.question_id.tolist()
    return {i: run.vocabulary.answers[c] for i, c in zip(ids, classes, strict=True)}


def where_scored(data: str, split: Split, out: Path, count: int) -> str:
    """One line: who scores the complete results of a split whose answers are hidden."""
    line = f"{out}: {count:,} answers, all of {split.name}, whose right answers are hidden; "
    if data not in ("vqa-v1", "vqa-v2"):
        return line + "whoever keeps those can score it"
    if split.name == "test2015":
        return line + f"scored by {SERVER}"
    return (
        line + f"the evaluation server takes all of test2015 only: give --split test2015 ({SERVER})"
    )


@explain_out_of_memory_in()
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m vqa_repro.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", type=Path, help="a run folder, which answers the questions")
    what.add_argument("--results", type=Path, help="answers in the submission format")
    parser.add_argument("--data", help="with --run: another data set, or a folder of your own")
    parser.add_argument("--split", help="with --run: which split; by default the recipe's test")
    parser.add_argument("--root", type=Path, default=Path("resources"), help="where data sets lie")
    parser.add_argument(
        "--weights",
        type=Path,
        help="with --run: the backbone's checkpoint, if features are missing",
    )
    parser.add_argument("--questions", type=Path, help="with --results: VQA-format questions")
    parser.add_argument("--annotations", type=Path, help="with --results: their annotations")
    parser.add_argument(
        "--out", type=Path, help="with --run: write the answers there, in the submission format"
    )
    parser.add_argument(
        "--per-question", type=Path, metavar="FILE", help="write question id -> percent there"
    )
    parser.add_argument("--wups", action="store_true", help="WUPS too, for one answer a question")
    parser.add_argument("--wordnet", type=Path, help="folder of WordNet 3.0's files, for --wups")
    parser.add_argument("--pre-2021", action="store_true", help="process answers as before 2021")
    add_device_option(parser)
    parser.add_argument("--json", action="store_true", help="everything, for programs")
    args = parser.parse_args(arguments)
    for option in _OF_RUNS if args.results else _OF_RESULTS:
        if getattr(args, option) is not None:
            raise UserError(f"--{option} goes with --{'run' if args.results else 'results'}")
    examples: list[Example]
    if args.results:
        if not (args.questions and args.annotations):
            raise UserError("--results needs --questions and --annotations")
        examples = vqa.read_files(args.questions, args.annotations)
        results = vqa_accuracy.read_results(args.results)
    else:
        run = open_run(args.run)
        data = replace(run.recipe.data, name=args.data or run.recipe.data.name)
        split = load_split(
            data.name, args.root, args.split or data.test, single_answers=data.single_answers
        )
        if split.hidden and not args.out:
            raise UserError(
                f"{data.name}, {split.name}: its answers are hidden; --out FILE writes the "
                "results to hand in"
            )
        results = answer_split(run, data, split, args.root, args.device, args.weights)
        examples = [example for example in split.examples if example.question_id in results]
        if len(examples) < len(split.examples):
            print(
                f"note: {len(split.examples) - len(examples):,} of {len(split.examples):,} "
                "questions are not answered: their pictures are left out of the features",
                file=sys.stderr,
            )
        if split.hidden:
            vqa_accuracy.check_results(results, [example.question_id for example in split.examples])
            vqa_accuracy.write_results(args.out, results)
            # With --json the line is for a person all the same.
            print(
                where_scored(data.name, split, args.out, len(results)),
                file=sys.stderr if args.json else sys.stdout,
            )
            if args.json:
                print(json.dumps({"overall": None, "per_answer_type": {}, "per_question_type": {}}))
            return 0
        if args.out:
            vqa_accuracy.write_results(args.out, results)
    scores = vqa_accuracy.score(results, examples, pre_2021=args.pre_2021)
    if args.per_question:
        values = vqa_accuracy.per_question(results, examples, pre_2021=args.pre_2021)
        text = json.dumps({number: round(100 * value, 2) for number, value in values.items()})
        write_atomic(args.per_question, lambda file: file.write(text.encode()))
    soft = wups.score(results, examples, wups.WordNet(args.wordnet)) if args.wups else {}
    if args.json:
        print(json.dumps({**scores, **soft}))
        return 0
    print(f"{scores['overall']:6.2f}%  of {len(results):,} questions")
    for name, value in soft.items():
        print(f"{value:6.2f}   {name}")
    for kind in ("per_answer_type", "per_question_type"):
        for name, value in scores[kind].items():
            print(f"{value:6.2f}%  {name}")
    return 0


if __name__ == "__main__":
    main_guard(main)
