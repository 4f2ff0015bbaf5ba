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

from vqa_repro.evaluation import examples
from vqa_repro.evaluation.examples import ExampleRecord, Gallery
from vqa_repro.reporting import figures
from vqa_repro.reporting.chart import Line, chart
from vqa_repro.reporting.comparison import (
    Figure,
    Row,
    made_by,
    metric_names,
    read_environment,
    read_log,
    repeat,
    rows,
    tables,
)
from vqa_repro.run import Run
from vqa_repro.utils.messages import LANGUAGES, translate
from vqa_repro.utils.messages import level_name as _title_of_level

FOLDER = Path(__file__).parent / "templates"
STEPS_SHOWN = 100  # points of a curve of few epochs
HEAT_SIDE = 56  # pixels of a heat map's longer side; the page scales it up smoothly

# SAN section 4.6: percent of 100 wrong answers on COCO-QA.
ERROR_CLASSES = {"region": 22, "answer": 42, "ambiguous": 31, "label": 5}


def page(runs: Sequence[Run], language: str, refresh: float | None) -> str:
    """The report on ``runs``, finished or not, as HTML that needs no other file.

    refresh: seconds after which the page loads itself anew; None: never.
    Raises UserError for a run folder that is damaged.
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
    together = rows(runs)
    galleries = [_shown(n, row) for n, row in enumerate(together, start=1)]
    # Runs of one data set share many pictures; each is in the page once.
    pictures = {p["id"]: p for shown in galleries for p in shown["pictures"].values()}
    return environment.get_template("report.html").render(
        language=language,
        refresh=refresh,
        made=datetime.now().strftime("%Y-%m-%d %H:%M"),
        style=Markup((FOLDER / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        tables=[_table(data, of_data) for data, of_data in tables(together).items()],
        unfinished=sum(not run.finished for run in runs),
        charts=_charts(together),
        legend=[(_style(n), _title(row), len(row.runs)) for n, row in enumerate(together)],
        types=[
            (_data_name(data), section, table)
            for data, of_data in tables(together).items()
            for section in ("per_answer_type", "per_question_type")
            if (table := _types(of_data, section))
        ],
        galleries=galleries,
        pictures=pictures.values(),
        error_classes=ERROR_CLASSES,
        runs=[_about(run) for run in runs],
    )


def text(key: str, **values: object) -> Markup:
    return _in_each({language: translate(key, language, **values) for language in LANGUAGES})


def level_name(name: str) -> Markup:
    return _in_each({language: _title_of_level(name, language) for language in LANGUAGES})


def _in_each(texts: Mapping[str, str]) -> Markup:
    """The text in every language; the style sheet shows the one that is chosen."""
    return Markup("").join(
        Markup('<span lang="{}">{}</span>').format(*pair) for pair in texts.items()
    )


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _title(row: Row) -> Markup:
    # The heading above says which data.
    changes = [change for change in row.changes if not change.startswith("data.name=")]
    small = Markup(" <small>{}</small>").format(", ".join(changes)) if changes else ""
    return Markup("{}{}").format(row.runs[0].recipe.title, small)


def _data_name(data: tuple[str, str]) -> str:
    """The data set, or the folder's name without the way to it, and the split."""
    return f"{Path(data[0]).name}, {data[1]}"


def _table(data: tuple[str, str], of_data: Sequence[Row]) -> dict[str, Any]:
    names = metric_names(of_data)
    finished = [row for row in of_data if row.metrics]
    return {
        "data": _data_name(data),
        "questions": finished[0].metrics[0]["questions"] if finished else None,
        "names": names,
        "compared": [name for name in names if any(_is_published(row, name) for row in of_data)],
        "rows": [
            {
                "title": _title(row),
                "finished": len(row.metrics),
                "states": [_state(run) for run in row.runs if not run.finished],
                "published": row.published,
                "cells": [_cell(row, row.figure(name)) for name in names],
                "minutes": _mean(row, "seconds") / 60 if row.metrics else None,
                "epochs": row.metrics[0]["epochs"] if row.metrics else None,
            }
            for row in of_data
        ],
    }


def _is_published(row: Row, name: str) -> bool:
    return row.published is not None and (name == "overall" or name in row.published.others)


def _cell(row: Row, figure: Figure | None) -> dict[str, Any] | None:
    """A figure, and the mark of its difference: higher, lower or within the sampling error."""
    if figure is None:
        return None
    error = row.sampling_error(figure)
    mark = ""
    if figure.difference is not None:
        mark = "higher" if figure.difference > 0 else "lower"
        if abs(figure.difference) <= error:
            mark = "within"
    return {"figure": figure, "mark": mark, "error": error}


def _mean(row: Row, key: str) -> float:
    return float(np.mean([metrics[key] for metrics in row.metrics]))


def _state(run: Run) -> dict[str, Any]:
    """How far an unfinished run is."""
    epochs = [record for record in read_log(run) if record["type"] == "epoch"]
    return {
        "epoch": int(epochs[-1]["epoch"]) if epochs else 0,
        "epochs": run.recipe.training.epochs,
        "held_out": epochs[-1].get("validation_accuracy") if epochs else None,
    }


def _style(row: int) -> str:
    """The style sheet has eight colours, and dashes for those that come after."""
    return f"c{row % 8} d{row // 8 % 3}"


def _charts(together: Sequence[Row]) -> list[tuple[str, Markup]]:
    quantities = ("loss", "accuracy", "validation_accuracy")
    lines: dict[str, list[Line]] = {key: [] for key in quantities}
    for n, row in enumerate(together):
        for run in row.runs:
            log = read_log(run)
            name = f"{row.title}, {run.folder.name}"
            for key in quantities:
                lines[key].append(Line(_style(n), name, _curve(log, key)))
    drawn = (
        (key, chart(lines[key], f"chart-{key}", logarithmic=key == "loss")) for key in quantities
    )
    return [(key, svg) for key, svg in drawn if svg]


def _curve(log: Sequence[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    """(epoch, value) by epoch; by some of the steps until three epochs are done.

    Never both: an epoch's mean stands at its end, where the steps are better by then.
    """
    by_kind = {
        kind: [(r["epoch"], r[key]) for r in log if r["type"] == kind and key in r]
        for kind in ("epoch", "step")
    }
    if len(by_kind["epoch"]) > 2 or not by_kind["step"]:
        return by_kind["epoch"]
    return by_kind["step"][:: max(1, len(by_kind["step"]) // STEPS_SHOWN)]


def _types(of_data: Sequence[Row], section: str) -> dict[str, Any] | None:
    names = metric_names(of_data, section)
    shown = [row for row in of_data if row.metrics]
    if not names:
        return None
    figures = {name: [row.figure(name) for row in shown] for name in names}
    return {"titles": [_title(row) for row in shown], "figures": figures}


def _shown(number: int, row: Row) -> dict[str, Any]:
    """The gallery of a row's first run that has one."""
    for run in row.runs:
        kept = examples.read(run.folder)
        if kept is not None:
            return {
                "id": f"g{number}",
                "title": _title(row),
                "run": run.folder.name,
                "kept": kept,
                "pictures": {name: _picture(data) for name, data in kept.pictures.items()},
                "lists": {
                    name: [_leaf(kept, kept.asked[p]) for p in positions]
                    for name, positions in kept.lists.items()
                    if positions
                },
            }
    first = row.runs[0]
    return {
        "id": f"g{number}",
        "title": _title(row),
        "run": first.folder.name,
        "kept": None,
        "pictures": {},
        "finished": first.finished,
        "make": f"python -m vqa_repro.evaluation.examples {shlex.quote(str(first.folder))}",
    }


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
        level = levels.setdefault(name.split("/")[0], {"heat": None, "most": 0.0, "words": None})
        if name.endswith("/question"):
            level["words"] = list(zip(asked.words, weights, strict=True))
        elif asked.picture is not None:
            level["heat"], level["most"] = _heat(weights, size), max(weights)
    return {
        "asked": asked,
        "levels": levels,
        "human": Counter(asked.human).most_common(),
        "known": asked.label_probability is not None,
    }


def _heat(weights: Sequence[float], size: tuple[int, int]) -> str:
    """The map of ``plots.over_picture`` as a small PNG with a palette of colours and alpha."""
    width, height = (max(1, round(HEAT_SIDE * side / max(size))) for side in size)
    heat = figures.over_picture(np.array(weights, np.float32), (width, height))
    levels = np.rint(heat * (len(figures.HEAT) - 1)).astype(np.uint8)
    image = Image.fromarray(levels, "P")
    image.putpalette(figures.HEAT[:, :3].tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=figures.HEAT[:, 3].tobytes(), optimize=True)
    return _url("png", buffer.getvalue())


def _url(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _about(run: Run) -> dict[str, Any]:
    environment = read_environment(run)
    command, recipe = repeat(run)
    source = run.recipe.published
    return {
        "folder": run.folder.name,
        "title": run.recipe.title,
        "state": None if run.finished else _state(run),
        "seed": run.recipe.training.seed,
        "command": command,
        "recipe": recipe,
        "published": source,
        "facts": {
            "device": environment["device"],
            "gpus": _in_words(environment.get("gpus", [])),
            "cpu": _in_words(environment.get("cpu", "")),
            "python": _in_words(environment.get("python", "")),
            "packages": _in_words(environment["packages"]),
            "commit": _in_words(environment.get("commit") or ""),
            "without": _in_words(environment.get("without", [])),
            "data": _data(run),
            "features": _in_words(made_by(run)),
        },
    }


def _data(run: Run) -> str:
    data = run.recipe.data
    return (
        f"{data.name}: {data.train}, tested on {data.test}; {len(run.vocabulary.answers):,} answers"
    )


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_in_words(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "; ".join(map(_in_words, value))
    return str(value)
