"""Run summaries, grouped by recipe (runs that differ in their seeds only), and their figures."""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vqa_repro.evaluation import examples
from vqa_repro.evaluation.examples import Gallery
from vqa_repro.evaluation.titles import IN_TITLE, NOT_TRAINED_BY, model_title
from vqa_repro.features.provider import is_file
from vqa_repro.recipe import Published, Recipe
from vqa_repro.reporting.commands import option
from vqa_repro.run import Run, open_run
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.files import read_json

MAX_JSON = 2**22  # bytes of a run's small files


class Figure(NamedTuple):
    """A score and the published one, in percent."""

    mean: float  # over the seeds
    deviation: float | None  # standard deviation over the seeds; None for one
    published: float | None

    @property
    def text(self) -> str:
        """Mean ± deviation to a tenth, or to a hundredth where a tenth would round to 100."""
        digits = 2 if 99.95 <= self.mean < 100 else 1
        spread = "" if self.deviation is None else f" ± {self.deviation:.{digits}f}"
        return f"{self.mean:.{digits}f}{spread}"

    @property
    def difference(self) -> float | None:
        return None if self.published is None else self.mean - self.published


@dataclass(frozen=True)
class RunSummary:
    """Everything a report needs of a run folder, read and checked once."""

    run: Run
    environment: dict[str, Any]
    metrics: dict[str, Any] | None  # None: not finished
    log: list[dict[str, Any]]
    examples: Gallery | None

    @classmethod
    def load(cls, folder: Path) -> "RunSummary":
        """Read a run folder. Raise UserError, naming the file, if it is damaged."""
        run = open_run(folder)
        return cls(
            run,
            read_environment(run),
            read_metrics(run) if run.finished else None,
            read_log(run),
            examples.read(folder),
        )

    @property
    def epochs(self) -> list[dict[str, Any]]:
        return [record for record in self.log if record["type"] == "epoch"]


@dataclass(frozen=True)
class RunGroup:
    """All runs of one recipe; their seeds differ."""

    title: str  # model, data and what distinguishes it from the other groups
    changes: list[str]  # options set away from the recipe's that the title does not express
    runs: list[RunSummary]

    @property
    def recipe(self) -> Recipe:
        return self.runs[0].run.recipe

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Of the finished runs."""
        return [run.metrics for run in self.runs if run.metrics is not None]

    @property
    def data(self) -> tuple[str, str]:
        """Data set and test split."""
        return self.recipe.data.name, self.recipe.data.tested_on

    @property
    def published(self) -> Published | None:
        return self.recipe.published

    def figure(self, name: str, section: str = "") -> Figure | None:
        """Return "overall", "prior", "coverage", "wups_0.9", or a type in a ``section``.

        section: "per_answer_type" or "per_question_type". A data set may name its types anything.
        """
        tables = [metrics[section] if section else metrics for metrics in self.metrics]
        values = [table[name] for table in tables if table.get(name) is not None]
        if not values:
            return None
        published = None
        if self.published and section != "per_question_type":
            published = self.published.others.get(name)
            if (name, section) == ("overall", ""):
                published = self.published.accuracy
        of_the_data = name in ("prior", "coverage")  # no seed changes it
        deviation = statistics.stdev(values) if len(values) > 1 and not of_the_data else None
        return Figure(statistics.mean(values), deviation, published)

    def interval(self, figure: Figure) -> tuple[float, float]:
        """Return Wilson's 95% interval of a ``figure`` of all test questions, in percent."""
        return wilson(figure.mean, self.metrics[0]["questions"])

    def is_within_error(self, figure: Figure) -> bool:
        """Return whether the published value is within the interval."""
        low, high = self.interval(figure)
        return figure.published is not None and low <= figure.published <= high


def wilson(percent: float, count: int) -> tuple[float, float]:
    """Return the 95% interval (Wilson 1927) of a share of ``count`` questions, in percent.

    It treats each question as right or wrong; scores in between vary less.
    """
    z, share = 1.96, percent / 100
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2) / (1 + z**2 / count)
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)


def group_runs(runs: Sequence[RunSummary]) -> list[RunGroup]:
    """Return the runs grouped by recipe, in the order given."""
    groups: dict[str, list[RunSummary]] = defaultdict(list)
    for run in runs:
        recipe = run.run.recipe.to_json()
        recipe["training"]["seed"] = None
        recipe["changed"] = [key for key in recipe["changed"] if key != "training.seed"]
        groups[json.dumps(recipe, sort_keys=True)].append(run)
    members = list(groups.values())
    titles = [model_title(group[0].run.recipe) for group in members]
    changes = [_changes(group[0].run) for group in members]
    labels = [", ".join([t, *c]) for t, c in zip(titles, changes, strict=True)]
    for number, label in enumerate(labels):
        namesakes = [n for n, other in enumerate(labels) if other == label]
        if len(namesakes) > 1:  # recipes that differ in more than their titles express
            options = differences([members[n][0].run.recipe for n in namesakes])
            recipe = members[number][0].run.recipe.to_json()
            values = {key: option(recipe, key) for key in options[:3]}
            named = [f"{key}={value}" for key, value in values.items() if value is not None]
            changes[number] = changes[number] + named
    return [
        RunGroup(", ".join([t, *c]), c, group)
        for t, c, group in zip(titles, changes, members, strict=True)
    ]


def differences(recipes: Sequence[Recipe]) -> list[str]:
    """Return the options ("section.key", but the seed) in which ``recipes`` differ."""
    tables = [recipe.options() for recipe in recipes]
    keys = dict.fromkeys(key for table in tables for key in table)
    return [
        key
        for key in keys
        if key != "training.seed" and any(t.get(key) != tables[0].get(key) for t in tables)
    ]


def by_dataset(groups: Sequence[RunGroup]) -> dict[tuple[str, str], list[RunGroup]]:
    """Return the groups by data set and test split."""
    table: dict[tuple[str, str], list[RunGroup]] = defaultdict(list)
    for group in groups:
        table[group.data].append(group)
    return table


def question_only(groups: Sequence[RunGroup], data: tuple[str, str]) -> Figure | None:
    """Return the accuracy of the question-only model on ``data``, if a group has it."""
    blind = (g for g in groups if g.recipe.model["name"] == "question-only" and g.data == data)
    return next((figure for group in blind if (figure := group.figure("overall"))), None)


def metric_names(groups: Sequence[RunGroup], section: str = "") -> list[str]:
    """Return "overall" and WUPS, or the names in a ``section`` of metrics.json."""
    names: dict[str, None] = {} if section else {"overall": None}
    for group in groups:
        for metrics in group.metrics:
            values = metrics[section] if section else metrics
            names |= {name: None for name in values if section or name.startswith("wups")}
    return list(names)


def _changes(run: Run) -> list[str]:
    recipe = run.recipe.to_json()
    hidden = {*IN_TITLE, *NOT_TRAINED_BY}
    if is_file(run.recipe.data.features):  # what it was made with is shown elsewhere
        hidden.add("data.features")
    changed = [k for k in run.recipe.changed if k not in hidden]
    return [f"{key}={option(recipe, key)}" for key in changed]


def read_metrics(run: Run) -> dict[str, Any]:
    """metrics.json, checked, for runs may come from strangers."""
    path = run.folder / "metrics.json"
    metrics = read_object(path)
    metrics = {"per_answer_type": {}, "per_question_type": {}, **metrics}

    def check(key: str, good: bool, what: str) -> None:
        if not good:
            raise UserError(f"{path}: {key}: not {what}; was it made by this program?")

    for key in ("questions", "epochs"):
        value = metrics.get(key)
        check(key, type(value) is int and value > 0, "a whole number above 0")
    check("seconds", _is_number(metrics.get("seconds")), "a number")
    for key in ("per_answer_type", "per_question_type"):
        value = metrics[key]
        good = isinstance(value, dict) and all(_is_percent(v) for v in value.values())
        check(key, good, "percents by type")
    for key in (
        *("overall", "best_on_test", "prior", "coverage"),
        *(key for key in metrics if key.startswith("wups")),
    ):
        value = metrics.get(key)
        check(key, value is None or _is_percent(value), "a percentage")
    return metrics


def read_environment(run: Run) -> dict[str, Any]:
    """environment.json, with "device" and "packages" checked."""
    path = run.folder / "environment.json"
    environment = read_object(path)
    packages = environment.get("packages")
    if not isinstance(environment.get("device"), str) or not isinstance(packages, dict):
        raise UserError(f"{path}: names no device and packages; was it made by this program?")
    return environment


def read_object(path: Path) -> dict[str, Any]:
    value = read_json(path, MAX_JSON)
    if not isinstance(value, dict):
        raise UserError(f"{path}: no JSON object")
    return value


def read_log(run: Run) -> list[dict[str, Any]]:
    """Return the log's records of steps and epochs, checked."""
    path = run.folder / "log.jsonl"
    records = [record for record in run.log() if record.get("type") in ("step", "epoch")]
    for record in records:
        for key in ("epoch", "loss", "accuracy"):
            if not _is_number(record.get(key)):
                raise UserError(f"{path}: a record's {key} is not a number: {record!r:.80}")
        if not _is_number(record.get("validation_accuracy", 0.0)):
            raise UserError(
                f"{path}: a record's validation_accuracy is not a number: {record!r:.80}"
            )
    return records


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_percent(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 100
