"""Pictures of a run: curves, and attention over the pictures asked about."""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import cv2
import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from vqa_repro.reporting import comparison
from vqa_repro.reporting.fonts import drawable, families
from vqa_repro.utils.files import write_atomic
from vqa_repro.utils.messages import level_name, translate

P = ParamSpec("P")
Floats = npt.NDArray[np.floating[Any]]
# Attention is smoothed with a Gaussian of half a region, as wide as one needs to hide the grid.
SMOOTHING = 0.5
# (64, 4) uint8 RGBA, from no attention to most: laid over the picture.
_SHARES = np.linspace(0, 1, 64)
HEAT = matplotlib.colormaps["jet"](_SHARES, alpha=0.15 + 0.5 * _SHARES, bytes=True)


def save(figure: Figure, path: Path) -> None:
    """Write ``figure`` as PNG, without a display and without touching pyplot's global state."""
    figure.set_dpi(160)  # sharp on a slide
    canvas = FigureCanvasAgg(figure)
    write_atomic(path, lambda file: canvas.print_png(file))  # type: ignore[no-untyped-call]


def _with_fonts(draw: Callable[P, None]) -> Callable[P, None]:
    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> None:
        with matplotlib.rc_context({"font.family": families()}):
            draw(*args, **kwargs)

    return drawn


@_with_fonts
def curves(log: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Loss and accuracy over epochs, from the log's records."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    steps = [record for record in log if record["type"] == "step"]
    epochs = [record for record in log if record["type"] == "epoch"]
    loss.plot(
        [r["epoch"] for r in steps], [r["loss"] for r in steps], color="0.75", label="training"
    )
    ends = [r["epoch"] for r in epochs]
    loss.plot(ends, [r["loss"] for r in epochs], marker=".", label="training, mean of an epoch")
    loss.set(xlabel="epoch", ylabel="loss")
    _logarithmic(loss)
    accuracy.plot(ends, [r["accuracy"] for r in epochs], marker=".", label="training")
    validated = [r for r in epochs if "validation_accuracy" in r]
    accuracy.plot(
        [r["epoch"] for r in validated],
        [r["validation_accuracy"] for r in validated],
        marker=".",
        label="validation (held out of training)",
    )
    accuracy.set(xlabel="epoch", ylabel="accuracy, %")
    for axes in (loss, accuracy):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(drawable(title))
    save(figure, path)


@_with_fonts
def overlaid(
    rows: Sequence[tuple[str, Sequence[Sequence[Mapping[str, Any]]]]],
    path: Path,
    language: str = "en",
) -> None:
    """Curves of all runs over epochs: a colour for each row (title, logs of its runs)."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    panels = figure.subplots(1, 3)
    quantities = ("loss", "accuracy", "validation_accuracy")
    for panel, key in zip(panels, quantities, strict=True):
        for number, (title, logs) in enumerate(rows):
            for n, log in enumerate(logs):
                shown = [r for r in log if r["type"] == "epoch" and key in r]
                panel.plot(
                    [r["epoch"] for r in shown],
                    [r[key] for r in shown],
                    color=f"C{number % 10}",
                    marker="." if len(shown) == 1 else None,
                    label=drawable(title) if n == 0 else None,
                )
        panel.set_xlabel(translate("epoch", language))
        panel.set_title(translate(f"chart_{key}", language), fontsize=10)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.3)
    _logarithmic(panels[0])
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", fontsize=8)
    save(figure, path)


def _logarithmic(axes: Axes) -> None:
    """With ticks that read 0.2, 0.5, 1 in place of powers of ten; fewer over many decades."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    decades = math.log10(high / low)
    marks = (1, 2, 3, 5, 7) if decades < 1.5 else (1, 3) if decades < 4 else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=marks))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


@_with_fonts
def beside_published(
    figures: Sequence[tuple[str, comparison.Figure]],
    path: Path,
    language: str = "en",
) -> None:
    """Accuracies: a bar for each (title, ours beside the published one)."""
    names = [textwrap.fill(drawable(title), 44) for title, *_ in figures]
    rows = sum(max(2, name.count("\n") + 1) for name in names)
    figure = Figure(figsize=(9, 1.4 + 0.25 * rows), layout="constrained")
    axes = figure.subplots()
    for y, (_, ours) in enumerate(figures):
        bar = axes.barh(y, ours.mean, xerr=ours.deviation, height=0.5, capsize=3, color="C0")
        axes.text(1, y, ours.text, va="center", color="w")
        bar.set_label(translate("ours", language) if y == 0 else "")
        if ours.published is not None:
            (line,) = axes.plot([ours.published] * 2, [y - 0.4, y + 0.4], color="k", linewidth=2)
            axes.text(ours.published + 1, y, f"{ours.published:.1f}", va="center", fontsize=9)
            line.set_label(translate("published", language))
    axes.set_xlim(0, 108)  # room for the published number
    axes.set_xticks(range(0, 101, 20))
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(translate("accuracy_png", language))
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    figure.legend(once.values(), once.keys(), loc="outside lower center", fontsize=8, ncols=2)
    save(figure, path)


def over_picture(weights: Floats, size: tuple[int, int]) -> Floats:
    """(R,) weights of a square grid -> (height, width) in 0..1, upsampled and smoothed.

    SAN section 4.5: "up-sample the attention ... and apply a Gaussian filter".
    """
    side = round(len(weights) ** 0.5)
    width, height = size
    grid = weights.reshape(side, side).astype(np.float32)
    big = cv2.resize(grid, size, interpolation=cv2.INTER_CUBIC)
    big = cv2.GaussianBlur(big, (0, 0), SMOOTHING * max(width, height) / side)
    low, high = float(np.min(big)), float(np.max(big))
    return np.asarray((big - low) / max(high - low, 1e-12), np.float32)


@_with_fonts
def attention(
    picture: npt.NDArray[np.uint8],
    question: str,
    answers: Sequence[tuple[str, float]],
    maps: Mapping[str, Floats],
    path: Path,
    note: str = "",
    words: Sequence[str] = (),
    language: str = "en",
) -> None:
    """The picture, each attention map over it, and the likeliest answers as bars.

    picture: (H, W, 3). answers: (text, probability), falling. maps: name -> (R,) over regions, or
    (T,) over ``words`` where it ends in "/question"; those of a level stand one below the other.
    note: a second line under the question.
    """
    height, width = picture.shape[:2]
    levels = list(dict.fromkeys(name.split("/")[0] for name in maps))
    over_words = {name.split("/")[0]: m for name, m in maps.items() if not _is_grid(name)}
    columns = len(levels) + 2
    figure = Figure(figsize=(2.6 * columns, 3.2 + bool(over_words)), layout="constrained")
    grid = figure.add_gridspec(
        2 if over_words else 1, columns, height_ratios=(8, 1)[: 1 + bool(over_words)]
    )
    seen = figure.add_subplot(grid[0, 0])
    seen.imshow(picture)
    seen.set_title(translate("picture", language), fontsize=9)
    seen.set_axis_off()
    for column, level_ in enumerate(levels, start=1):
        panel = figure.add_subplot(grid[0, column])
        panel.imshow(picture)
        panel.set_axis_off()
        title = level_name(level_, language)
        weights = maps.get(level_, maps.get(f"{level_}/image"))
        if weights is not None:
            heat = over_picture(weights, (width, height))
            panel.imshow(HEAT[np.rint(heat * (len(HEAT) - 1)).astype(int)])
            title += translate("with_largest_weight", language, value=f"{np.max(weights):.0%}")
        panel.set_title(drawable(title), fontsize=9)
        if level_ in over_words:
            _strip(figure.add_subplot(grid[1, column]), over_words[level_], words)
    bars = figure.add_subplot(grid[0, -1])
    texts = [text for text, _ in answers][::-1]
    values = [probability for _, probability in answers][::-1]
    bars.barh(range(len(texts)), values)
    bars.set_yticks(range(len(texts)), [drawable(text) for text in texts])
    bars.set_xlim(0, 1)
    bars.set_title(translate("probability", language), fontsize=9)
    figure.suptitle(drawable(f"{question}\n{note}" if note else question), fontsize=11)
    save(figure, path)


def _strip(axes: Axes, weights: Floats, words: Sequence[str]) -> None:
    """Attention over words: the darker, the more."""
    axes.imshow(np.asarray(weights)[None], cmap="Oranges", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(words)), [drawable(word) for word in words], rotation=90, fontsize=8)
    axes.set_yticks([])


def _is_grid(name: str) -> bool:
    return not name.endswith("/question")
