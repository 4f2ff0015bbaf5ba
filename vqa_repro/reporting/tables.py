"""Runs and published figures as Markdown tables."""

import statistics
from collections.abc import Sequence

from vqa_repro.evaluation.titles import procedure
from vqa_repro.features.provider import NO_IMAGE
from vqa_repro.reporting.comparison import (
    RunGroup,
    RunSummary,
    by_dataset,
    group_runs,
    metric_names,
)
from vqa_repro.utils.errors import UserError

_HEADS = {
    "overall": "accuracy, % (difference)",
    "best_on_test": "best epoch on the test, % (not a valid result)",
    "prior": "most frequent answer, %",
    "coverage": "answers covered, %",
}


def markdown(runs: Sequence[RunSummary]) -> str:
    """Return a table with a row per recipe: mean and spread of its runs, published figures.

    Raise UserError, naming the run, if one is not finished.
    """
    for run in runs:
        if run.metrics is None:
            raise UserError(f"{run.run.folder}: not finished; train it with --resume")
    lines = []
    for (data, split), groups in by_dataset(group_runs(runs)).items():
        questions = groups[0].metrics[0]["questions"]
        lines += [f"### {data}, {split} ({questions:,} questions)", "", *_table(groups), ""]
    return "\n".join([*lines, *_made_with(runs)])


def _table(groups: Sequence[RunGroup]) -> list[str]:
    names = metric_names(groups)
    more = ("best_on_test", "prior", "coverage")
    names += [name for name in more if any(g.figure(name) for g in groups)]
    types = metric_names(groups, "per_answer_type")
    columns = [_HEADS.get(name, f"{name} (published)") for name in names]
    columns += [f"{name} (published)" for name in types]
    head = ["", "seeds", "published", *columns, "95% interval", "procedure", "minutes", "epochs"]
    keys = [(name, "") for name in names] + [(name, "per_answer_type") for name in types]
    rows = [head, ["---", *["---:"] * (len(head) - 1)], *(_row(group, keys) for group in groups)]
    return ["| " + " | ".join(row) + " |" for row in rows]


def _row(group: RunGroup, keys: Sequence[tuple[str, str]]) -> list[str]:
    overall = group.figure("overall")
    low, high = group.interval(overall) if overall else (0.0, 0.0)
    return [
        group.title,
        str(len(group.metrics)),
        f"{group.published.accuracy:.1f}" if group.published else "",
        *(_cell(group, name, section) for name, section in keys),
        f"{low:.1f} to {high:.1f}" if overall else "",
        procedure(group.recipe),
        f"{statistics.mean(m['seconds'] for m in group.metrics) / 60:.1f}",
        str(group.metrics[0]["epochs"]),
    ]


def _cell(group: RunGroup, name: str, section: str) -> str:
    """Return mean and standard deviation over the seeds, with the published figure if any."""
    figure = group.figure(name, section)
    if figure is None:
        return ""
    if (name, section) != ("overall", ""):
        return figure.text + ("" if figure.published is None else f" ({figure.published:.1f})")
    difference = "" if figure.difference is None else f" ({figure.difference:+.1f})"
    return f"**{figure.text}**{difference}"


def _made_with(runs: Sequence[RunSummary]) -> list[str]:
    """Return the devices and features of the runs."""
    environments = [run.environment for run in runs]
    devices = {f"{e['device']}, torch {e['packages'].get('torch')}": None for e in environments}
    lines = ["Trained on " + "; ".join(devices) + "."]
    features = {str(made): made for made in (run.run.features["made_by"] for run in runs)}
    features.pop(str(NO_IMAGE), None)
    for made in features.values():
        if made["backbone"] == "none":
            lines += [f"Images of {made['size']} pixels a side, through a CNN of the model's own."]
            continue
        lines += ["Features: " + ", ".join(f"{key} {value}" for key, value in made.items()) + "."]
    return lines
