"""The report as one HTML page: report.html filled in, with report.css and report.js in it."""

import base64
import hashlib
import io
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from vqa_repro.evaluation.examples import ExampleRecord, Gallery
from vqa_repro.evaluation.titles import model_title, procedure
from vqa_repro.reporting import charts, figures
from vqa_repro.reporting.commands import option, repeat
from vqa_repro.reporting.comparison import (
    RunGroup,
    RunSummary,
    by_dataset,
    differences,
    group_runs,
    made_by,
    metric_names,
)
from vqa_repro.utils import messages
from vqa_repro.utils.messages import LANGUAGES, translate

FOLDER = Path(__file__).parent / "templates"
HEAT_SIDE = 56  # pixels of a heat map's longer side; the page scales it up smoothly

BASELINES = ("prior", "coverage")

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
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"t": text, "number": number, "level_name": level_name}
    environment.filters["percent"] = "{:.1%}".format
    script = (FOLDER / "report.js").read_text(encoding="utf-8")
    groups = group_runs(runs)
    galleries = [_gallery_view(n, group) for n, group in enumerate(groups, start=1)]
    # Runs of one data set share many images; each is in the page once.
    pictures = {p["id"]: p for shown in galleries for p in shown["pictures"].values()}
    return environment.get_template("report.html").render(
        language=language,
        refresh=refresh,
        skipped=skipped,
        headlines=[headline for group in groups if (headline := _headline(group))],
        made=datetime.now().strftime("%Y-%m-%d %H:%M"),
        style=Markup((FOLDER / "report.css").read_text(encoding="utf-8")),
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
        differences=_differences(groups),
        galleries=galleries,
        pictures=pictures.values(),
        error_classes=ERROR_CLASSES,
        runs=[_about(run) for run in runs],
    )


def _headline(group: RunGroup) -> Markup | None:
    """Return one sentence on a group's accuracy; None without one."""
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
    if figure.published is None:
        return sentence
    return sentence + text("headline_published", value=number(figure.published))


def _differences(groups: Sequence[RunGroup]) -> dict[str, Any] | None:
    """Return the options in which the groups differ, with each group's value."""
    recipes = [group.recipe for group in groups]
    values = [recipe.to_json() for recipe in recipes]
    rows = {key: [option(v, key) for v in values] for key in differences(recipes)}
    return {"titles": [group.title for group in groups], "rows": rows} if rows else None


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
    scores = {name: [group.figure(name) for group in shown] for name in names}
    return {"titles": [group.title for group in shown], "figures": scores}


def _gallery_view(number: int, group: RunGroup) -> dict[str, Any]:
    """Return the examples of a group's first run that has some."""
    run = next((run for run in group.runs if run.examples is not None), group.runs[0])
    view: dict[str, Any] = {
        "id": f"g{number}",
        "title": group.title,
        "run": run.run.folder.name,
        "kept": run.examples,
        "pictures": {},
        "finished": run.metrics is not None,
        "make": f"python -m vqa_repro.report --examples {shlex.quote(str(run.run.folder))}",
    }
    if gallery := run.examples:
        view["pictures"] = {name: _picture(data) for name, data in gallery.pictures.items()}
        view["lists"] = {
            name: [_leaf(gallery, gallery.asked[p]) for p in positions]
            for name, positions in gallery.lists.items()
            if positions
        }
    return view


def _picture(data: bytes) -> dict[str, Any]:
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
    digest = hashlib.sha256(data).hexdigest()[:16]
    return {"id": f"p{digest}", "width": width, "height": height, "url": _url("jpeg", data)}


def _leaf(kept: Gallery, asked: ExampleRecord) -> dict[str, Any]:
    """A question as the page shows it, its maps by hop or level: image and words."""
    size = (1, 1)
    if asked.picture is not None:
        with Image.open(io.BytesIO(kept.pictures[asked.picture])) as image:
            size = image.size
    levels: dict[str, dict[str, Any]] = {}
    for name, weights in asked.attention.items():
        empty = {"heat": None, "top": 0.0, "most": 0.0, "words": None}
        level = levels.setdefault(name.split("/")[0], empty)
        if name.endswith("/question"):
            level["words"] = list(zip(asked.words, weights, strict=True))
        elif asked.picture is not None:
            level["heat"], level["top"] = _heat(weights, size)
            level["most"] = max(weights)
    return {
        "asked": asked,
        "levels": levels,
        "human": Counter(asked.human).most_common(),
        "known": asked.label_probability is not None,
    }


def _heat(weights: Sequence[float], size: tuple[int, int]) -> tuple[str, float]:
    """Return the map as a small PNG with a palette of colours and alpha, and its scale's top."""
    width, height = (max(1, round(HEAT_SIDE * side / max(size))) for side in size)
    multiples = figures.over_picture(np.array(weights, np.float32), (width, height))
    indices, top = figures.heat_levels(multiples)
    image = Image.fromarray(indices, "P")
    image.putpalette(figures.HEAT[:, :3].tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=figures.HEAT[:, 3].tobytes(), optimize=True)
    return _url("png", buffer.getvalue()), top


def _url(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


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
            "features": _in_words(made_by(run)),
        },
    }


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_in_words(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "; ".join(map(_in_words, value))
    return str(value)
