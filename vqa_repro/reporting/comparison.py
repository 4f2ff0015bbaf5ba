"""Runs that differ in their seeds alone, together, beside the published figures."""

import json
import math
import re
import shlex
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vqa_repro.recipe import Published, load_recipe, recipe_names
from vqa_repro.run import Run, read_bounded
from vqa_repro.utils.errors import UserError

MAX_JSON = 2**22  # bytes of a run's small files
MAX_LOG = 2**28  # bytes of a run's log


class Figure(NamedTuple):
    """Ours beside theirs, in percent."""

    mean: float  # over the seeds
    deviation: float | None  # standard deviation over the seeds; None for one
    published: float | None

    @property
    def text(self) -> str:
        """Mean ± deviation to a tenth; to a hundredth where a tenth would read as all right."""
        digits = 2 if 99.95 <= self.mean < 100 else 1
        spread = "" if self.deviation is None else f" ± {self.deviation:.{digits}f}"
        return f"{self.mean:.{digits}f}{spread}"

    @property
    def difference(self) -> float | None:
        return None if self.published is None else self.mean - self.published


@dataclass(frozen=True)
class Row:
    """A recipe: all its runs, and the metrics of those that are finished."""

    changes: list[str]  # what was changed in the recipe, but for the seed
    runs: list[Run]
    metrics: list[dict[str, Any]]

    @property
    def title(self) -> str:
        """The recipe's, and what was changed in it."""
        return ", ".join([self.runs[0].recipe.title, *self.changes])

    @property
    def data(self) -> tuple[str, str]:
        """Data set and split of the test."""
        return self.runs[0].recipe.data.name, self.runs[0].recipe.data.test

    @property
    def published(self) -> Published | None:
        return self.runs[0].recipe.published

    def figure(self, name: str) -> Figure | None:
        """Of "overall", "wups_0.9", or a type of answer or question; None without one."""
        values = [value for m in self.metrics if (value := _value(m, name)) is not None]
        if not values:
            return None
        published = None
        if self.published:
            published = self.published.others.get(name)
            if name == "overall":
                published = self.published.accuracy
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return Figure(statistics.mean(values), deviation, published)

    def sampling_error(self, figure: Figure) -> float:
        """Two standard errors of a ``figure`` of all test questions, in points.

        Of a score of 0 or 1 for each question; scores in between vary less.
        """
        share = figure.mean / 100
        questions: int = self.metrics[0]["questions"]
        return 200 * math.sqrt(share * (1 - share) / questions)


def rows(runs: Sequence[Run]) -> list[Row]:
    """The ``runs`` by recipe, in the order given. Raises UserError for damaged metrics."""
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        recipe = run.recipe.to_json()
        recipe["training"]["seed"] = None
        recipe["changed"] = [key for key in recipe["changed"] if key != "training.seed"]
        groups[json.dumps(recipe, sort_keys=True)].append(run)
    return [
        Row(_changes(group[0]), group, [read_metrics(run) for run in group if run.finished])
        for group in groups.values()
    ]


def tables(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """The rows by data set and split."""
    by_data: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        by_data[row.data].append(row)
    return by_data


def metric_names(rows: Sequence[Row], section: str = "") -> list[str]:
    """The figures there are: "overall" and WUPS, or those of a ``section`` of metrics.json."""
    names: dict[str, None] = {} if section else {"overall": None}
    for row in rows:
        for metrics in row.metrics:
            here = metrics[section] if section else metrics
            names |= {name: None for name in here if section or name.startswith("wups")}
    return list(names)


def _changes(run: Run) -> list[str]:
    recipe = run.recipe.to_json()
    changed = [key for key in run.recipe.changed if key != "training.seed"]
    return [f"{key}={_option(recipe, key)}" for key in changed]


def _option(recipe: dict[str, Any], key: str) -> Any:
    section, _, option = key.partition(".")
    values = recipe.get(section)
    return values.get(option) if isinstance(values, dict) else None


def _value(metrics: dict[str, Any], name: str) -> float | None:
    for here in (metrics, metrics["per_answer_type"], metrics["per_question_type"]):
        if name in here:
            value: float | None = here[name]
            return value
    return None


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
    for key in ("overall", *(key for key in metrics if key.startswith("wups"))):
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


def made_by(run: Run) -> dict[str, Any]:
    """What made the features."""
    made = run.features.get("made_by")
    if not isinstance(made, dict):
        raise UserError(f"{run.folder / 'features.json'}: does not say what made the features")
    return made


def read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(read_bounded(path, MAX_JSON))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: no JSON object")
    return value


def read_log(run: Run) -> list[dict[str, Any]]:
    """The log's records, those of steps and epochs checked. A log of a stranger's may be huge."""
    path = run.folder / "log.jsonl"
    if path.exists() and path.stat().st_size > MAX_LOG:
        raise UserError(f"{path}: more than {MAX_LOG:,} bytes: not made by this program")
    records = [record for record in run.log() if record.get("type") in ("step", "epoch")]
    for record in records:
        for key in ("epoch", "loss", "accuracy"):
            if not _is_number(record.get(key)):
                raise UserError(f"{path}: a record's {key} is no number: {record!r:.80}")
        if not _is_number(record.get("validation_accuracy", 0.0)):
            raise UserError(f"{path}: a record's validation_accuracy is no number: {record!r:.80}")
    return records


def repeat(run: Run) -> tuple[str, str]:
    """The command that trains the run again, and the recipe's file for it ("" if it needs none).

    Where the data lie and on what device to train is left to whoever repeats it.
    """
    recipe = run.recipe.to_json()
    program = "python -m vqa_repro.train"
    changes = {key: _option(recipe, key) for key in [*run.recipe.changed, "training.seed"]}
    if run.recipe.name in recipe_names() and "data.name" not in changes:
        try:
            same = load_recipe(run.recipe.name, changes) == run.recipe
        except UserError:
            same = False
        if same:
            given = [f"--set {shlex.quote(f'{k}={_toml(v)}')}" for k, v in changes.items()]
            return " ".join([program, "--recipe", run.recipe.name, *given]), ""
    return f"{program} --recipe recipe.toml", toml(recipe)


def toml(recipe: dict[str, Any]) -> str:
    """A recipe as the TOML file it could have come from."""
    lines = [f"title = {_toml(recipe['title'])}"]
    for section, values in recipe.items():
        if isinstance(values, dict):
            lines += ["", f"[{section}]", *(f"{_key(k)} = {_toml(v)}" for k, v in values.items())]
    return "\n".join(lines) + "\n"


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml(key)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(k)} = {_toml(v)}" for k, v in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_percent(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 100
