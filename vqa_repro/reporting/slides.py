"""Figures of runs for slides and papers: PNG, SVG or PDF, and one 16:9 slide with the whole."""

import io
import re
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image

from vqa_repro.evaluation.examples import ExampleRecord, Gallery
from vqa_repro.reporting import charts, figures
from vqa_repro.reporting.comparison import RunGroup, RunSummary, group_runs
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.messages import level_name, messages, translate
from vqa_repro.utils.paths import why_not_created

EXAMPLES = 3  # of each list
SHOWN = 6  # groups on the slide


def write_slides(
    runs: Sequence[RunSummary], folder: Path, language: str, kind: str = "png"
) -> list[Path]:
    """Write summary, curves, accuracy, and attention of each recipe's first examples.

    kind: png, svg or pdf. In English, with a note, if no installed font has ``language``.
    """
    if not figures.can_show("".join(texts[language] for texts in messages().values())):
        print(
            f"--{kind}: no installed font has Chinese characters (Noto Sans CJK does): these "
            "are in English"
        )
        language = "en"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = why_not_created(folder, error)
        raise UserError(f"--{kind} {folder}: cannot be created: {why}") from None
    groups = group_runs(runs)
    paths = [folder / f"summary.{kind}", folder / f"curves.{kind}"]
    summary(groups, paths[0], language)
    logs = [(group.title, [run.log for run in group.runs]) for group in groups]
    charts.overlaid(logs, paths[1], language)
    if scores := accuracies(groups):
        paths.append(folder / f"accuracy.{kind}")
        figures.beside_published(scores, paths[-1], language)
    for number, group in enumerate(groups, start=1):
        paths += _attention(number, group, folder, language, kind)
    return paths


def accuracies(groups: Sequence[RunGroup]) -> list[figures.Accuracy]:
    return [
        (group.title, figure, group.figure("prior"))
        for group in groups
        if (figure := group.figure("overall"))
    ]


@figures.with_fonts
def summary(groups: Sequence[RunGroup], path: Path, language: str) -> None:
    """Write one 16:9 slide: accuracies, validation or training curves, one attention example."""
    groups = groups[:SHOWN]
    margins = ConstrainedLayoutEngine(w_pad=0.2, h_pad=0.15)
    figure = Figure(figsize=(13.333, 7.5), layout=margins)
    title = translate("title", language)
    figure.suptitle(figures.drawable(title), fontsize=18, fontweight="bold")
    grid = figure.add_gridspec(2, 2, width_ratios=(5, 4), height_ratios=(5, 4))
    # Bars have the numbers of the legend: long titles would overlap.
    numbered = [replace(group, title=str(n)) for n, group in enumerate(groups, start=1)]
    if scores := accuracies(numbered):
        bars = figure.add_subplot(grid[0, 0])
        figures.draw_accuracies(bars, scores, language)
        handles, labels = bars.get_legend_handles_labels()
        once = dict(zip(labels, handles, strict=True))
        above = (0, 1)  # where it covers no bar
        bars.legend(
            once.values(), once.keys(), fontsize=8, loc="lower left", bbox_to_anchor=above, ncols=3
        )
    logs = [[run.log for run in group.runs] for group in groups]
    measured = [key for key in reversed(charts.QUANTITIES) if charts.has_curve(logs, key)]
    if measured:
        panel = figure.add_subplot(grid[0, 1])
        charts.draw_curves(panel, logs, measured[0])
        panel.set_xlabel(translate("epoch", language))
        panel.set_title(translate(f"chart_{measured[0]}", language), fontsize=10)
    names = [f"{n}: {group.title}" for n, group in enumerate(groups, start=1)]
    legend = "\n".join(textwrap.fill(figures.drawable(name), 70) for name in names)
    text = figure.add_subplot(grid[1, 1])
    text.set_axis_off()
    text.text(0, 1, legend, va="top", fontsize=10)
    for group in groups:
        if found := _with_maps(group):
            _draw_example(figure, grid[1, 0], *found, language)
            break
    figures.save(figure, path)


def _with_maps(group: RunGroup) -> tuple[ExampleRecord, Gallery] | None:
    """Return the first sample question of ``group`` with a picture and attention over it."""
    for run in group.runs:
        for position in run.examples.lists.get("sample", []) if run.examples else []:
            assert run.examples is not None
            record = run.examples.records[position]
            if record.picture and record.attention:
                return record, run.examples
    return None


def _draw_example(
    figure: Figure, where: SubplotSpec, record: ExampleRecord, gallery: Gallery, language: str
) -> None:
    maps = {
        name.split("/")[0]: np.array(weights, np.float32)
        for name, weights in record.attention.items()
        if not name.endswith("/question")
    }
    pixels = np.array(Image.open(io.BytesIO(gallery.images[str(record.picture)])).convert("RGB"))
    panels = where.subgridspec(1, 1 + len(maps))
    original = figure.add_subplot(panels[0])
    original.imshow(pixels)
    original.set_axis_off()
    question = f"{record.question}\n{figures.verdict(record, language)}"
    wrapped = "\n".join(textwrap.fill(line, 40) for line in question.split("\n"))
    original.set_title(figures.drawable(wrapped), fontsize=9, loc="left")
    for column, (name, weights) in enumerate(maps.items(), start=1):
        panel = figure.add_subplot(panels[column])
        figures.overlay(panel, pixels, weights, level_name(name, language), language)


def _attention(number: int, group: RunGroup, folder: Path, language: str, kind: str) -> list[Path]:
    """Draw the first examples of every list; each question once."""
    run = next((run for run in group.runs if run.examples), None)
    if run is None or run.examples is None:
        return []
    gallery = run.examples
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", run.run.folder.name).strip(".-")
    paths: list[Path] = []
    drawn: set[int] = set()
    for listed, positions in gallery.lists.items():
        fresh = [p for p in positions if p not in drawn and gallery.records[p].picture][:EXAMPLES]
        drawn |= set(fresh)
        for n, position in enumerate(fresh, start=1):
            paths.append(folder / f"{number}-{name}-{listed}-{n}.{kind}")
            figures.example(gallery.records[position], gallery.images, paths[-1], language)
    return paths
