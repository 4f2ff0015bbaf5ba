"""Runs side by side: the paper's figures beside ours, as a Markdown table.

python -m vqa_repro.report runs/*
python -m vqa_repro.report runs/san-2-lstm-daquar* --out table.md
"""

import argparse
import shlex
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vqa_repro.atomic import write_atomic
from vqa_repro.errors import UserError, main_guard
from vqa_repro.run import Run, open_run, read_json

Group = list[tuple[Run, dict[str, Any]]]  # runs that differ in their seeds alone, their metrics


def markdown(runs: Sequence[Run]) -> str:
    """A table with a row for each recipe, its runs' mean and spread beside the published figures.

    Raises UserError, naming the run, for one that is not finished.
    """
    groups: dict[str, Group] = defaultdict(list)
    for run in runs:
        if not run.finished:
            raise UserError(f"{run.folder}: not finished; train it with --resume")
        groups[_what(run)].append((run, read_json(run.folder / "metrics.json")))
    lines = []
    for data, split in dict.fromkeys(
        (m["data"], m["split"]) for g in groups.values() for _, m in g
    ):
        of_data = [
            g for g in groups.values() if (g[0][1]["data"], g[0][1]["split"]) == (data, split)
        ]
        questions = of_data[0][0][1]["questions"]
        lines += [f"### {data}, {split} ({questions:,} questions)", "", *_table(of_data), ""]
    return "\n".join([*lines, *_made_with(runs)])


def _what(run: Run) -> str:
    """The recipe and what was changed in it, but for the seed."""
    recipe = run.recipe.to_json()
    changes = [key for key in run.recipe.changed if key != "training.seed"]
    values = [recipe[section][key] for section, key in (c.split(".", 1) for c in changes)]
    return ", ".join([run.recipe.title, *map("{}={}".format, changes, values)])


def _table(groups: Sequence[Group]) -> list[str]:
    names = ["overall"]
    for group in groups:
        for _, metrics in group:
            names += [n for n in metrics if n.startswith("wups") and n not in names]
    head = ["", "seeds", "published", *(_in_words(name) for name in names), "minutes", "epochs"]
    rows = [head, ["---", *["---:"] * (len(head) - 1)]]
    for group in groups:
        run, first = group[0]
        published = run.recipe.published
        rows.append(
            [
                _what(run),
                str(len(group)),
                f"{published.accuracy:.1f}" if published else "",
                *(_mean(name, group) for name in names),
                f"{statistics.mean(m['seconds'] for _, m in group) / 60:.1f}",
                str(first["epochs"]),
            ]
        )
    return ["| " + " | ".join(row) + " |" for row in rows]


def _mean(name: str, group: Group) -> str:
    """Mean and standard deviation over the seeds, and the published figure where there is one."""
    values = [metrics[name] for _, metrics in group if metrics.get(name) is not None]
    if not values:
        return ""
    text = f"{statistics.mean(values):.1f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values):.1f}"
    published = group[0][0].recipe.published
    if published and name in published.others:
        text += f" ({published.others[name]:.1f})"
    if published and name == "overall":
        text = f"**{text}** ({statistics.mean(values) - published.accuracy:+.1f})"
    return text


def _in_words(name: str) -> str:
    return {"overall": "accuracy, % (difference)"}.get(name, f"{name} (published)")


def _made_with(runs: Sequence[Run]) -> list[str]:
    """Where, with what features, and how to repeat it."""
    lines = []
    environments = [read_json(run.folder / "environment.json") for run in runs]
    devices = {f"{e['device']}, torch {e['packages']['torch']}": None for e in environments}
    lines += ["Trained on " + "; ".join(devices) + "."]
    for made_by in {str(run.features["made_by"]): run.features["made_by"] for run in runs}.values():
        lines += [
            "Features: " + ", ".join(f"{key} {value}" for key, value in made_by.items()) + "."
        ]
    return lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m vqa_repro.report", description=__doc__.splitlines()[0]
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="finished run folders")
    parser.add_argument("--out", type=Path, help="write the table there")
    args = parser.parse_args(arguments)
    text = markdown([open_run(folder) for folder in args.runs])
    if args.out:
        write_atomic(args.out, lambda file: file.write(text.encode() + b"\n"))
        print(f"table: {shlex.quote(str(args.out))}")
    else:
        print(text)
    return 0


if __name__ == "__main__":
    main_guard(main)
