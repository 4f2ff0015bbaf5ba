"""The ``vqa`` command: every verb as a sub-command, and the list of recipes.

    vqa list                                  recipes, their data sets and published results
    vqa train --recipe san-2-lstm-daquar      the same as python -m vqa_repro.train ...
    vqa predict RUN --image IMAGE --question "what is it?"

``vqa VERB --help`` describes the options of a verb.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

from vqa_repro.utils.arguments import add_root_option
from vqa_repro.utils.errors import UserError, main_guard

VERBS = {
    "train": "train a recipe into a run folder; --resume continues it",
    "evaluate": "score a run or a results file",
    "predict": "answer a question about an image",
    "extract": "store the features of a frozen backbone",
    "report": "compare runs with the published results in one HTML page",
    "serve": "ask a run questions in the browser",
    "export": "pack a finished run into one file for others",
    "check": "check a data set: counts, answers, images",
    "doctor": "check the environment and explain what to fix",
}
LIST = "list"


def main(arguments: list[str] | None = None) -> int:
    """Run the sub-command named first and return its exit code.

    Raises UserError for a misspelt verb, recipe or bad input of the verb itself.
    """
    words = sys.argv[1:] if arguments is None else arguments
    if words and not words[0].startswith("-"):
        verb, *rest = words
        if verb == LIST:
            return list_recipes(rest)
        check_verb(verb)
        if verb == "train":
            check_recipe(rest)
        # By name: importing a verb costs seconds, and no module depends on one.
        code: int = importlib.import_module(f"vqa_repro.{verb}").main(rest)
        return code
    parser = build_parser()
    parser.parse_args(words)
    parser.print_help()
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of ``vqa`` itself; the verbs parse their own options."""
    from vqa_repro import __version__

    commands = {**VERBS, LIST: "list the recipes and whether their data is present"}
    lines = [f"  {name:<10} {text}" for name, text in commands.items()]
    parser = argparse.ArgumentParser(
        prog="vqa",
        usage="vqa COMMAND [OPTION ...]",
        description="Train, evaluate and inspect classic VQA models.",
        epilog="\n".join(["commands:", *lines, "", "vqa COMMAND --help describes its options"]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"vqa_repro {__version__}",
        help="print the version and exit",
    )
    return parser


def check_verb(verb: str) -> None:
    """Raise UserError, with the nearest command, if ``verb`` does not exist."""
    names = [*VERBS, LIST]
    if verb not in names:
        raise UserError(f"no command {verb!r}; {suggest(verb, names)}vqa --help lists them")


def check_recipe(arguments: list[str]) -> None:
    """Raise UserError, with the nearest recipes, if --recipe names one that does not exist."""
    from vqa_repro.recipe import recipe_names

    for position, word in enumerate(arguments):
        option, equals, value = word.partition("=")
        if option != "--recipe":
            continue
        name = value if equals else next(iter(arguments[position + 1 :]), "")
        if name and name not in recipe_names() and not Path(name).is_file():
            hint = suggest(name, recipe_names())
            raise UserError(f"--recipe {name}: no such recipe; {hint}vqa list names all of them")


def suggest(name: str, names: list[str]) -> str:
    """Return "did you mean ...? " with up to three names like ``name``, or nothing."""
    plain = {n: n.replace("-", "") for n in names}
    close = difflib.get_close_matches(name, names, n=3)
    close = close or [n for n in names if plain[n].startswith(name.replace("-", ""))][:3]
    return f"did you mean {' or '.join(close)}? " if close else ""


def list_recipes(arguments: list[str]) -> int:
    """Print every recipe with its data set, reported accuracy and whether its data is present."""
    parser = argparse.ArgumentParser(
        prog="vqa list", description="List the recipes and whether their data is present."
    )
    add_root_option(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON list instead")
    args = parser.parse_args(arguments)
    rows = recipe_rows(args.root)
    if args.json:
        print(json.dumps(rows))
        return 0
    print(f"{'recipe':<38} {'data set':<15} {'published':>9}  data")
    for row in rows:
        reported = "-" if row["reported"] is None else f"{row['reported']:.1f}%"
        state = "present" if row["present"] else "missing"
        print(f"{row['recipe']:<38} {row['data']:<15} {reported:>9}  {state}")
    if not all(row["present"] for row in rows):
        print(f"missing below {args.root}: docs/data.md says where to download each data set")
    return 0


def recipe_rows(root: Path) -> list[dict[str, Any]]:
    """Return one record per recipe: "recipe", "data", "reported" (percent or None), "present"."""
    from vqa_repro.recipe import load_recipe, recipe_names

    rows = []
    presence: dict[str, bool] = {}
    for name in recipe_names():
        recipe = load_recipe(name, {})
        data = recipe.data.name
        if data not in presence:
            presence[data] = is_present(data, root)
        rows.append(
            {
                "recipe": name,
                "data": data,
                "reported": recipe.published.accuracy if recipe.published else None,
                "present": presence[data],
            }
        )
    return rows


# Any one of these files, at most three folders below the root, means that the data set is there.
# Reading the questions themselves would take half a minute for VQA.
FILES = {
    "vqa-v1": ("Questions_Train_mscoco.zip", "OpenEnded_mscoco_train2014_questions.json"),
    "vqa-v2": ("v2_Questions_Train_mscoco.zip", "v2_OpenEnded_mscoco_train2014_questions.json"),
    "coco-qa": ("cocoqa-2015-05-17.zip", "img_ids.txt"),
    "daquar": ("qa.894.raw.train.txt",),
    "daquar-reduced": ("qa.37.raw.train.txt",),
}


def is_present(data: str, root: Path) -> bool:
    """Return whether the training questions of ``data`` are below ``root``."""
    if data == "easy-vqa":
        return importlib.util.find_spec("easy_vqa") is not None
    folders = ("", "*/", "*/*/", "*/*/*/")
    return any(
        next(root.glob(folder + name), None) is not None
        for name in FILES.get(data, ())
        for folder in folders
    )


def run() -> None:
    """Run ``vqa`` and leave the process with its exit code; the entry point of the package."""
    main_guard(main)


if __name__ == "__main__":
    run()
