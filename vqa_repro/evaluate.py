"""Score a run, or anybody's results, with the official metric.

python -m vqa_repro.evaluate --run runs/easy-vqa
python -m vqa_repro.evaluate --results R.json --questions Q.json --annotations A.json --json
"""

import argparse
import json
from pathlib import Path

from vqa_repro import metric, vqa_json, wups
from vqa_repro.datasets import load_split
from vqa_repro.device import add_device_option, choose_device
from vqa_repro.errors import UserError, main_guard
from vqa_repro.example import Split
from vqa_repro.run import Run, open_run


def answer_split(run: Run, split: Split, root: Path, device_name: str) -> dict[int, str]:
    """The run's answer to each question of ``split``: question id -> answer."""
    # Imported here: scoring somebody's results needs no torch.
    from vqa_repro.answering import predictions
    from vqa_repro.features import Rows, open_features
    from vqa_repro.model import load_network
    from vqa_repro.questions import encode

    device = choose_device(device_name)
    store = open_features(run.recipe.data, root, [split])
    if store.made_by != run.features["made_by"]:
        raise UserError(
            f"{store.path}: made by {store.made_by}, but the run was trained on features made by "
            f"{run.features['made_by']}; extract them that way"
        )
    questions = encode(split.examples, run.vocabulary, store.row_of).to(device)
    classes = predictions(load_network(run, device), Rows(store, device), questions).tolist()
    ids = questions.question_id.tolist()
    return {i: run.vocabulary.answers[c] for i, c in zip(ids, classes, strict=True)}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m vqa_repro.evaluate", description=__doc__.splitlines()[0]
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", type=Path, help="a run folder, which answers the questions")
    what.add_argument("--results", type=Path, help="answers in the submission format")
    parser.add_argument("--split", help="with --run: which split; by default the recipe's test")
    parser.add_argument("--root", type=Path, default=Path("resources"), help="where data sets lie")
    parser.add_argument("--questions", type=Path, help="with --results: VQA-format questions")
    parser.add_argument("--annotations", type=Path, help="with --results: their annotations")
    parser.add_argument("--out", type=Path, help="with --run: write the answers there")
    parser.add_argument("--wups", action="store_true", help="WUPS too, for one answer a question")
    parser.add_argument("--wordnet", type=Path, help="folder of WordNet 3.0's files, for --wups")
    parser.add_argument("--pre-2021", action="store_true", help="process answers as before 2021")
    add_device_option(parser)
    parser.add_argument("--json", action="store_true", help="everything, for programs")
    args = parser.parse_args(arguments)
    if args.results:
        if not (args.questions and args.annotations):
            raise UserError("--results needs --questions and --annotations")
        examples = vqa_json.read_files(args.questions, args.annotations)
        results = metric.read_results(args.results)
    else:
        run = open_run(args.run)
        name = args.split or run.recipe.data.test
        split = load_split(run.recipe.data.name, args.root, name)
        results, examples = answer_split(run, split, args.root, args.device), split.examples
        if args.out:
            metric.write_results(args.out, results)
    scores = metric.score(results, examples, pre_2021=args.pre_2021)
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
