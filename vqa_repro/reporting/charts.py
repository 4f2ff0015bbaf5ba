"""Curves of many runs: as an SVG in the page, and as a PNG for slides."""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from vqa_repro.reporting.figures import drawable, logarithmic, save, with_fonts
from vqa_repro.utils.messages import LANGUAGES, translate

X_LABEL, Y_LABEL = "@x@", "@y@"  # replaced by the axis labels of both languages
# Colours of groups (Okabe and Ito's, colour-blind safe) and the dashes of the next ones.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
DASHES: tuple[Any, ...] = ("-", (0, (7, 3)), (0, (2, 2)))
STEPS_SHOWN = 100  # points of a curve of few epochs
QUANTITIES = ("loss", "accuracy", "validation_accuracy")
Logs = Sequence[Sequence[Mapping[str, Any]]]  # of the runs of a group


def curve(log: Sequence[Mapping[str, Any]], key: str, kind: str) -> list[tuple[float, float]]:
    """Return (epoch, value) of the records of a ``kind``: "epoch", or some of "step"."""
    points = [(r["epoch"], r[key]) for r in log if r["type"] == kind and key in r]
    if kind == "epoch":
        return points
    return points[:: max(1, len(points) // STEPS_SHOWN)]


def measure(groups: Sequence[Logs], key: str) -> str:
    """Return what a chart of all runs is drawn from: means of epochs, or of steps.

    Never both in one chart: an epoch's mean is drawn at its end, where the steps are better by
    then. Steps only until a run has three epochs.
    """
    lengths = [len(curve(log, key, "epoch")) for logs in groups for log in logs]
    steps = any(curve(log, key, "step") for logs in groups for log in logs)
    return "step" if steps and max(lengths, default=0) < 3 else "epoch"


def has_curve(groups: Sequence[Logs], key: str) -> bool:
    return any(curve(log, key, measure(groups, key)) for logs in groups for log in logs)


def draw_curves(axes: Axes, groups: Sequence[Logs], key: str) -> bool:
    """Draw ``key`` of all runs, each group with its colour, dashes and number at the end."""
    drawn, kind = False, measure(groups, key)
    for number, logs in enumerate(groups):
        colour = COLOURS[number % len(COLOURS)]
        dashes = DASHES[(number // len(COLOURS) + number) % len(DASHES)]
        for log in logs:
            points = [(x, y) for x, y in curve(log, key, kind) if y > 0 or key != "loss"]
            if not points:
                continue
            xs, ys = zip(*points, strict=True)
            marker = "." if len(points) == 1 else None
            axes.plot(xs, ys, color=colour, linestyle=dashes, marker=marker, gid=f"group-{number}")
            axes.annotate(
                str(number + 1), (xs[-1], ys[-1]), (4, -3), textcoords="offset points",
                color=colour, fontsize=9, fontweight="bold",
            )  # fmt: skip
            drawn = True
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if key == "loss" and drawn:
        logarithmic(axes)
    return drawn


def curves_svg(groups: Sequence[Logs], key: str, x_label: str, y_label: str) -> str:
    """Return a chart of ``key`` as an SVG element, "" if nothing is logged.

    The same runs give the same bytes. Text stays text in the reader's font.
    """
    figure = Figure(figsize=(5, 3.3), layout="constrained")
    axes = figure.subplots()
    if not draw_curves(axes, groups, key):
        return ""
    axes.set(xlabel=x_label, ylabel=y_label)
    figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": key}):
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(buffer, metadata=metadata)  # type: ignore[no-untyped-call]
    text = buffer.getvalue()
    return text[text.index("<svg") :]


@with_fonts
def overlaid(rows: Sequence[tuple[str, Logs]], path: Path, language: str = "en") -> None:
    """Write the curves of all runs over epochs; a row is a group's title and its runs' logs."""
    figure = Figure(figsize=(12, 3.6 + 0.18 * len(rows)), layout="constrained")
    for panel, key in zip(figure.subplots(1, 3), QUANTITIES, strict=True):
        draw_curves(panel, [logs for _, logs in rows], key)
        panel.set_xlabel(translate("epoch", language))
        panel.set_ylabel(translate("loss" if key == "loss" else "accuracy_percent", language))
        panel.set_title(translate(f"chart_{key}", language), fontsize=10)
    handles = [
        Line2D([], [], color=COLOURS[n % len(COLOURS)],
               linestyle=DASHES[(n // len(COLOURS) + n) % len(DASHES)])
        for n in range(len(rows))
    ]  # fmt: skip
    labels = [f"{n}: {drawable(title)}" for n, (title, _) in enumerate(rows, start=1)]
    figure.legend(handles, labels, loc="outside lower center", fontsize=8)
    save(figure, path)


def style(number: int) -> str:
    """Return the classes of a group's colour and dashes."""
    colours = len(COLOURS)
    return f"c{number % colours} d{(number // colours + number) % len(DASHES)}"


def page_chart(groups: Sequence[Logs], key: str) -> Markup:
    """Return a chart with the page's colours and languages and ids of its own; "" if empty."""
    svg = curves_svg(groups, key, X_LABEL, Y_LABEL)
    if not svg:
        return Markup("")
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{key}-", svg)
    for number, colour in enumerate(COLOURS):
        if colour != "#000000":  # text and axes are black, too: all take the text's colour
            svg = svg.replace(colour, f"var(--c{number})")
    svg = svg.replace("#000000", "currentColor").replace("#b0b0b0", "var(--line)")
    svg = svg.replace(X_LABEL, _label("epoch")).replace(
        Y_LABEL, _label("loss" if key == "loss" else "accuracy_percent")
    )
    size = re.search(r'viewBox="[^"]*"', svg)
    opening = f'<svg class="chart" role="img" aria-labelledby="chart-{key}" {size and size[0]}'
    # Without its text, matplotlib's own <text> would inherit the page's black.
    body = svg[svg.index(">") + 1 :].replace("<text ", '<text fill="currentColor" ')
    return Markup(f'{opening} xmlns:xlink="http://www.w3.org/1999/xlink">{body}')


def _label(key: str) -> str:
    texts = {language: translate(key, language) for language in LANGUAGES}
    return "".join(f'<tspan lang="{lang}">{escape(label)}</tspan>' for lang, label in texts.items())
