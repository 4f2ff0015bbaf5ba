"""The report as one HTML page: report.html filled in, with report.css and report.js in it."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from vqa_repro.evaluation.titles import model_title, procedure
from vqa_repro.reporting import charts, contrasts
from vqa_repro.reporting.commands import option, repeat
from vqa_repro.reporting.comparison import (
    Figure,
    RunGroup,
    RunSummary,
    by_dataset,
    differences,
    group_runs,
    metric_names,
    question_only,
)
from vqa_repro.reporting.example_views import disagreement_view, gallery_view
from vqa_repro.utils import messages
from vqa_repro.utils.messages import LANGUAGES, translate
from vqa_repro.utils.palette import css_gradient

FOLDER = Path(__file__).parent / "templates"
BASELINES = ("prior", "coverage")
# Sections of the page, in its order.
PARTS = (
    *("table", "curves", "differences", "types", "questions", "disagreements", "confusions"),
    *("analysis", "runs"),
)

# SAN section 4.6: percent of 100 wrong answers on COCO-QA.
ERROR_CLASSES = {"region": 22, "answer": 42, "ambiguous": 31, "label": 5}


def page(
    runs: Sequence[RunSummary],
    language: str,
    refresh: float | None,
    skipped: Sequence[str] = (),
) -> str:
    """Return the report on ``runs``, finished or not, as HTML that needs no other file.

    refresh: seconds after which the page reloads; None: never. skipped: what is no run folder.
    """
    script = (FOLDER / "report.js").read_text(encoding="utf-8")
    groups = group_runs(runs)
    galleries = [gallery_view(n, group) for n, group in enumerate(groups, start=1)]
    differing = _differences(groups)
    disagreements, confusions = _disagreements(groups, galleries), _confusions(groups)
    contents = {"disagreements": disagreements, "confusions": confusions, "differences": differing}
    # Runs of one data set share many images; each is in the page once.
    pictures = {p["id"]: p for shown in galleries for p in shown["pictures"].values()}
    template = _environment(language).get_template("report.html")
    return template.render(
        language=language,
        refresh=refresh,
        skipped=skipped,
        headlines=[headline for group in groups if (headline := _headline(group, groups))],
        made=datetime.now().strftime("%Y-%m-%d %H:%M"),
        style=Markup((FOLDER / "report.css").read_text(encoding="utf-8")),
        scale=css_gradient(),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        tables=[_table(data, members) for data, members in by_dataset(groups).items()],
        unfinished=sum(run.metrics is None for run in runs),
        charts=_charts(groups),
        legend=[
            (charts.style(n), n + 1, group.title, len(group.runs)) for n, group in enumerate(groups)
        ],
        types=[
            (_data_name(data), section, table)
            for data, members in by_dataset(groups).items()
            for section in ("per_answer_type", "per_question_type")
            if (table := _types(members, section))
        ],
        differences=differing,
        disagreements=disagreements,
        confusions=confusions,
        parts=[part for part in PARTS if contents.get(part, True)],
        galleries=galleries,
        pictures=pictures.values(),
        error_classes=ERROR_CLASSES,
        runs=[_about(run) for run in runs],
    )


def _environment(language: str) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    helpers: dict[str, Any] = {
        "t": text,
        "t_plain": lambda key: translate(key, language),
        "number": number,
        "level_name": level_name,
    }
    environment.globals |= helpers
    environment.filters["percent"] = lambda share: f"{Figure(100 * share, None, None).text}%"
    return environment


def _headline(group: RunGroup, groups: Sequence[RunGroup]) -> Markup | None:
    """Return one sentence on a group's accuracy and what it must beat; None without one."""
    figure = group.figure("overall")
    if figure is None:
        return None
    low, high = group.interval(figure)
    sentence = text(
        "headline",
        title=group.title,
        value=figure.text,
        count=f"{group.metrics[0]['questions']:,}",
        low=number(low),
        high=number(high),
    )
    if figure.published is not None:
        sentence += text("headline_published", value=number(figure.published))
    if prior := group.figure("prior"):
        sentence += text("headline_prior", value=prior.text)
    blind = question_only(groups, group.data)
    if blind and group.recipe.model["name"] != "question-only":
        sentence += text("headline_question_only", value=blind.text)
    return sentence


def _differences(groups: Sequence[RunGroup]) -> dict[str, Any] | None:
    """Return the options in which the groups differ, with each group's value."""
    recipes = [group.recipe for group in groups]
    values = [recipe.to_json() for recipe in recipes]
    rows = {key: [option(v, key) for v in values] for key in differences(recipes)}
    return {"titles": [group.title for group in groups], "rows": rows} if rows else None


def _disagreements(
    groups: Sequence[RunGroup], galleries: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return the disagreements of each data set's groups."""
    found = []
    for data, members in by_dataset(groups).items():
        views = [view for group, view in zip(groups, galleries, strict=True) if group in members]
        if view := disagreement_view(members, views):
            found.append({"data": _data_name(data), **view})
    return found


def _confusions(groups: Sequence[RunGroup]) -> list[dict[str, Any]]:
    """Return the answers that each group's first run confuses most often."""
    found = ((group.title, _details(group)) for group in groups)
    return [
        {"title": title, "rows": details.confusions}
        for title, details in found
        if details and details.confusions
    ]


def text(key: str, **values: object) -> Markup:
    return _in_each({language: translate(key, language, **values) for language in LANGUAGES})


def level_name(name: str) -> Markup:
    return _in_each({language: messages.level_name(name, language) for language in LANGUAGES})


def _in_each(texts: Mapping[str, str]) -> Markup:
    """The text in every language; the style sheet shows the one that is chosen."""
    return Markup("").join(
        Markup('<span lang="{}">{}</span>').format(*pair) for pair in texts.items()
    )


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _data_name(data: tuple[str, str]) -> str:
    """The data set, or the folder's name without the way to it, and the split."""
    return f"{Path(data[0]).name}, {data[1]}"


def _table(data: tuple[str, str], groups: Sequence[RunGroup]) -> dict[str, Any]:
    names = metric_names(groups)
    finished = [group for group in groups if group.metrics]
    return {
        "data": _data_name(data),
        "questions": finished[0].metrics[0]["questions"] if finished else None,
        "names": names,
        "compared": [name for name in names if any(_is_published(g, name) for g in groups)],
        "baselines": [name for name in BASELINES if any(g.figure(name) for g in groups)],
        "rows": [
            {
                "title": group.title,
                "finished": len(group.metrics),
                "states": [_state(run) for run in group.runs if run.metrics is None],
                "published": group.published,
                "procedure": procedure(group.recipe),
                "cells": [_cell(group, name) for name in names],
                "baselines": {name: group.figure(name) for name in BASELINES},
                "weights": contrasts.weights_in(group.runs[0].run.folder),
                "minutes": _mean(group, "seconds") / 60 if group.metrics else None,
                "epochs": group.metrics[0]["epochs"] if group.metrics else None,
            }
            for group in groups
        ],
    }


def _is_published(group: RunGroup, name: str) -> bool:
    published = group.published
    return published is not None and (name == "overall" or name in published.others)


def _cell(group: RunGroup, name: str) -> dict[str, Any] | None:
    """Return a figure, its interval, and its mark: higher, lower or within the interval."""
    figure = group.figure(name)
    if figure is None:
        return None
    mark = ""
    if figure.difference is not None:
        mark = "higher" if figure.difference > 0 else "lower"
        if group.is_within_error(figure):
            mark = "within"
    count = group.metrics[0]["questions"]
    return {"figure": figure, "mark": mark, "interval": group.interval(figure), "count": count}


def _mean(group: RunGroup, key: str) -> float:
    return float(np.mean([metrics[key] for metrics in group.metrics]))


def _state(run: RunSummary) -> dict[str, Any]:
    """Return the progress of an unfinished run."""
    epochs = run.epochs
    return {
        "epoch": int(epochs[-1]["epoch"]) if epochs else 0,
        "epochs": run.run.recipe.training.epochs,
        "validation": epochs[-1].get("validation_accuracy") if epochs else None,
    }


def _charts(groups: Sequence[RunGroup]) -> list[tuple[str, Markup]]:
    logs = [[run.log for run in group.runs] for group in groups]
    return [(key, chart) for key in charts.QUANTITIES if (chart := charts.page_chart(logs, key))]


def _types(groups: Sequence[RunGroup], section: str) -> dict[str, Any] | None:
    names = metric_names(groups, section)
    shown = [group for group in groups if group.metrics]
    if not names:
        return None
    scores = {name: [group.figure(name, section) for group in shown] for name in names}
    details = next((d for group in shown if (d := _details(group))), None)
    counts = details.counts.get(section, {}) if details else {}
    return {"titles": [group.title for group in shown], "figures": scores, "counts": counts}


def _details(group: RunGroup) -> contrasts.ScoreDetails | None:
    """Return the score details of a group's first run that has some."""
    found = (contrasts.read_score_details(run.run.folder) for run in group.runs)
    return next((details for details in found if details), None)


def _about(summary: RunSummary) -> dict[str, Any]:
    run, environment = summary.run, summary.environment
    command, recipe = repeat(run)
    data = run.recipe.data
    answers = f"{len(run.vocabulary.answers):,} answers"
    return {
        "folder": run.folder.name,
        "title": model_title(run.recipe),
        "state": _state(summary) if summary.metrics is None else None,
        "seed": run.recipe.training.seed,
        "command": command,
        "recipe": recipe,
        "facts": {
            "device": environment["device"],
            "gpus": _in_words(environment.get("gpus", [])),
            "cpu": _in_words(environment.get("cpu", "")),
            "python": _in_words(environment.get("python", "")),
            "packages": _in_words(environment["packages"]),
            "commit": _in_words(environment.get("commit") or ""),
            "without": _in_words(environment.get("without", [])),
            "data": f"{data.name}: {data.train}, tested on {data.tested_on}; {answers}",
            "features": _in_words(run.features["made_by"]),
        },
    }


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_in_words(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "; ".join(map(_in_words, value))
    return str(value)
