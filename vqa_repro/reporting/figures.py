"""Figures of runs: curves, accuracies, and attention over images."""

import io
import logging
import math
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache, wraps
from pathlib import Path
from typing import Any, ParamSpec

import cv2
import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from PIL import Image

from vqa_repro.evaluation.examples import ExampleRecord
from vqa_repro.reporting.comparison import Figure as Score
from vqa_repro.utils import palette
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.files import write_atomic
from vqa_repro.utils.messages import level_name, translate

P = ParamSpec("P")
Floats = npt.NDArray[np.floating[Any]]
# Attention is smoothed with a Gaussian of half a region, as wide as one needs to hide the grid.
SMOOTHING = 0.5
CROWDED = 12  # multiples of uniform: on a longer scale the labels 0 and 1 overlap
# (64, 4) uint8 RGBA, laid over the image: more opaque where there is more attention.
_SHARES = np.linspace(0, 1, 64)
HEAT = np.rint(
    [(*palette.colour(share), 255 * (0.25 + 0.5 * share)) for share in _SHARES.tolist()]
).astype(np.uint8)
COLOURS = ListedColormap(HEAT[:, :3] / 255)
CHINESE = (
    *("Noto Sans CJK SC", "Source Han Sans SC", "Noto Sans SC", "Noto Sans CJK JP"),
    *("WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback"),
    *("PingFang SC", "Hiragino Sans GB", "Microsoft YaHei", "SimHei"),
)
# A Chinese font may have no bold face; its regular one is then taken.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)


@cache
def families() -> list[str]:
    """Return the fonts of figures; matplotlib takes each character from the first that has it."""
    fonts = font_manager.fontManager
    if not _chinese():  # matplotlib's list of fonts is that of its first start
        for path in set(font_manager.findSystemFonts()) - {font.fname for font in fonts.ttflist}:
            with suppress(OSError, RuntimeError):  # not readable, or no font
                fonts.addfont(path)
    return ["DejaVu Sans", *_chinese()[:1]]


def _chinese() -> list[str]:
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return [name for name in CHINESE if name in installed]


@cache
def _characters() -> frozenset[int]:
    paths = [font_manager.findfont(name) for name in families()]
    return frozenset().union(*(font_manager.get_font(path).get_charmap() for path in paths))


def can_show(text: str) -> bool:
    return all(ord(character) in _characters() or character.isspace() for character in text)


def drawable(text: str) -> str:
    """Return ``text`` for matplotlib: no formulas, and "?" for what no installed font has.

    The first such replacement is noted on stderr.
    """
    if not can_show(text):
        _note_missing_font()
        text = "".join(character if can_show(character) else "?" for character in text)
    return text.replace("$", r"\$")


@cache
def _note_missing_font() -> None:
    print(
        "note: no installed font has all characters of a figure's text: the missing ones are "
        "question marks; Noto Sans CJK has Chinese characters",
        file=sys.stderr,
    )


_DATES = {"png": "", "svg": "Date", "pdf": "CreationDate"}  # kind -> what would differ each time


def save(figure: Figure, path: Path) -> None:
    """Write ``figure`` as PNG, SVG or PDF (by the suffix), the same bytes each time.

    It needs no display and does not touch pyplot's global state. Raise UserError for another
    suffix.
    """
    figure.set_dpi(160)  # sharp on a slide
    kind = path.suffix[1:].lower()
    if kind not in _DATES:
        raise UserError(f"{path}: figures are PNG, SVG or PDF; name it {path.stem}.png")
    options: dict[str, Any] = {"metadata": {_DATES[kind]: None}} if _DATES[kind] else {}
    with matplotlib.rc_context({"svg.hashsalt": path.stem}):
        write_atomic(path, lambda file: figure.savefig(file, format=kind, dpi=160, **options))


def with_fonts(draw: Callable[P, None]) -> Callable[P, None]:
    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> None:
        with matplotlib.rc_context({"font.family": families()}):
            draw(*args, **kwargs)

    return drawn


@with_fonts
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
    logarithmic(loss)
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


def logarithmic(axes: Axes) -> None:
    """With ticks that read 0.2, 0.5, 1 in place of powers of ten; fewer over many decades."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    decades = math.log10(high / low)
    marks = (1, 2, 3, 5, 7) if decades < 1.5 else (1, 3) if decades < 4 else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=marks))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


SHORT_BAR = 15  # percent: about the width of "14.9 ± 10.2"
Accuracy = tuple[str, Score, Score | None]  # title, ours, that of the most frequent answer


@with_fonts
def beside_published(figures: Sequence[Accuracy], path: Path, language: str = "en") -> None:
    """Draw accuracies with the published ones and those of the most frequent answer."""
    rows = sum(max(2, len(textwrap.wrap(title, 44))) for title, *_ in figures)
    figure = Figure(figsize=(9, 1.4 + 0.25 * rows), layout="constrained")
    axes = figure.subplots()
    draw_accuracies(axes, figures, language)
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    figure.legend(once.values(), once.keys(), loc="outside lower center", fontsize=8, ncols=3)
    save(figure, path)


def draw_accuracies(axes: Axes, figures: Sequence[Accuracy], language: str) -> None:
    """Draw a bar for each of ``figures`` on ``axes``."""
    names = [textwrap.fill(drawable(title), 44) for title, *_ in figures]
    for y, (_, ours, prior) in enumerate(figures):
        bar = axes.barh(y, ours.mean, xerr=ours.deviation, height=0.5, capsize=3, color="C0")
        _write_accuracy(axes, y, ours)
        bar.set_label(translate("ours", language) if y == 0 else "")
        if ours.published is not None:
            (line,) = axes.plot([ours.published] * 2, [y - 0.4, y + 0.4], color="k", linewidth=2)
            axes.text(ours.published + 1, y, f"{ours.published:.1f}", va="center", fontsize=9)
            line.set_label(translate("published", language))
        if prior is not None:
            (line,) = axes.plot([prior.mean] * 2, [y - 0.4, y + 0.4], "k:", linewidth=2)
            line.set_label(translate("prior", language))
    axes.set_xlim(0, 108)  # space for the published number
    axes.set_xticks(range(0, 101, 20))
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(translate("accuracy_png", language))
    axes.spines[["top", "right"]].set_visible(False)


def _write_accuracy(axes: Axes, y: int, ours: Score) -> None:
    """Write the number on its bar, or right of one too short for it."""
    if ours.mean >= SHORT_BAR:
        over = {"facecolor": "C0", "edgecolor": "none", "pad": 1}  # the line may cross the number
        axes.text(1, y, ours.text, va="center", color="w", bbox=over)
        return
    end = ours.mean + (ours.deviation or 0)
    if ours.published is not None and ours.published < end + SHORT_BAR:
        end = max(end, ours.published + 6)  # its number is there
    axes.text(end + 1, y, ours.text, va="center")


def over_picture(weights: Floats, size: tuple[int, int]) -> Floats:
    """(R,) weights of a square grid -> (height, width) multiples of uniform attention.

    Upsampled and smoothed (SAN section 4.5: "up-sample the attention ... and apply a Gaussian
    filter").
    """
    side = round(len(weights) ** 0.5)
    width, height = size
    total = float(np.sum(weights)) or 1.0
    grid = (weights.reshape(side, side) * len(weights) / total).astype(np.float32)
    big = cv2.resize(grid, size, interpolation=cv2.INTER_CUBIC)
    big = cv2.GaussianBlur(big, (0, 0), SMOOTHING * max(width, height) / side)
    multiples: Floats = np.maximum(big, 0)
    return multiples


def heat_levels(multiples: Floats) -> tuple[npt.NDArray[np.uint8], float]:
    """Return indices into HEAT, from 0 to the scale's top, and that top in multiples of uniform.

    The top is at least palette.MIN_TOP, so that a nearly uniform map looks uniform.
    """
    top = max(palette.MIN_TOP, float(np.max(multiples)))
    return np.rint(multiples / top * (len(HEAT) - 1)).astype(np.uint8), top


def verdict(record: ExampleRecord, language: str) -> str:
    """Return the answer, and whether it is right where that is known."""
    answer = record.answers[0][0]
    if record.accuracy is None:
        return answer
    key = "answered_right" if record.accuracy > 0 else "answered_wrong"
    return translate(key, language, answer=answer, label=record.label)


@with_fonts
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
    """Draw the image, each attention map over it, and the most probable answers as bars.

    picture: (H, W, 3). answers: (text, probability), falling. maps: name -> (R,) over regions, or
    (T,) over ``words`` where it ends in "/question"; those of a level stand one below the other.
    note: a second line under the question.
    """
    levels = list(dict.fromkeys(name.split("/")[0] for name in maps))
    over_words = {name.split("/")[0]: m for name, m in maps.items() if not _is_grid(name)}
    columns = len(levels) + 2
    figure = Figure(figsize=(2.6 * columns, 3.2 + bool(over_words)), layout="constrained")
    grid = figure.add_gridspec(
        2 if over_words else 1, columns, height_ratios=(8, 1)[: 1 + bool(over_words)]
    )
    original = figure.add_subplot(grid[0, 0])
    original.imshow(picture)
    original.set_title(translate("picture", language), fontsize=9)
    original.set_axis_off()
    for column, level in enumerate(levels, start=1):
        panel = figure.add_subplot(grid[0, column])
        weights = maps.get(level, maps.get(f"{level}/image"))
        overlay(panel, picture, weights, level_name(level, language), language)
        if level in over_words:
            _strip(figure.add_subplot(grid[1, column]), over_words[level], words)
    _answer_bars(figure.add_subplot(grid[0, -1]), answers, language)
    figure.suptitle(drawable(f"{question}\n{note}" if note else question), fontsize=11)
    save(figure, path)


def overlay(
    panel: Axes,
    picture: npt.NDArray[np.uint8],
    weights: Floats | None,
    title: str,
    language: str,
) -> None:
    """Draw ``weights`` over the image, with a colour bar in multiples of uniform."""
    height, width = picture.shape[:2]
    panel.imshow(picture)
    panel.set_axis_off()
    if weights is not None:
        indices, top = heat_levels(over_picture(weights, (width, height)))
        panel.imshow(HEAT[indices])
        mappable = ScalarMappable(Normalize(0, top), COLOURS)
        bar = panel.figure.colorbar(mappable, ax=panel, location="bottom", shrink=0.8, pad=0.02)
        ticks = [0, 1, top] if top < CROWDED else [0, top]
        bar.set_ticks(ticks, labels=[f"{tick:.3g}" for tick in ticks])
        bar.ax.tick_params(labelsize=7)
        bar.set_label(translate("times_uniform", language), fontsize=7)
        title += "\n" + translate("largest_weight", language, value=f"{np.max(weights):.0%}")
    panel.set_title(drawable(title), fontsize=9)


def _answer_bars(axes: Axes, answers: Sequence[tuple[str, float]], language: str) -> None:
    texts = [text for text, _ in answers][::-1]
    axes.barh(range(len(texts)), [probability for _, probability in answers][::-1])
    axes.set_yticks(range(len(texts)), [drawable(text) for text in texts])
    axes.set_xlim(0, 1)
    axes.set_title(translate("probability", language), fontsize=9)


def _strip(axes: Axes, weights: Floats, words: Sequence[str]) -> None:
    """Draw attention over words, from 0 to 1."""
    axes.imshow(np.asarray(weights)[None], cmap=COLOURS, vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(words)), [drawable(word) for word in words], rotation=90, fontsize=8)
    axes.set_yticks([])


def _is_grid(name: str) -> bool:
    return not name.endswith("/question")


def example(
    record: ExampleRecord, images: Mapping[str, bytes], path: Path, language: str = "en"
) -> None:
    """Write an example with its attention as PNG; images: file name -> JPEG."""
    note = verdict(record, language)
    maps = {name: np.array(weights) for name, weights in record.attention.items()}
    pixels = np.array(Image.open(io.BytesIO(images[str(record.picture)])))
    attention(pixels, record.question, record.answers, maps, path, note, record.words, language)
