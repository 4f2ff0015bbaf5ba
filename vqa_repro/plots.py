"""Pictures of a run: curves, and attention over the pictures asked about."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vqa_repro.atomic import write_atomic

Floats = npt.NDArray[np.floating[Any]]
# Attention is smoothed with a Gaussian of half a region, as wide as one needs to hide the grid.
SMOOTHING = 0.5
# (64, 4) uint8 RGBA, from no attention to most: laid over the picture.
_SHARES = np.linspace(0, 1, 64)
HEAT = matplotlib.colormaps["jet"](_SHARES, alpha=0.15 + 0.5 * _SHARES, bytes=True)


def save(figure: Figure, path: Path) -> None:
    """Write ``figure`` as PNG, without a display and without touching pyplot's global state."""
    canvas = FigureCanvasAgg(figure)
    write_atomic(path, lambda file: canvas.print_png(file))  # type: ignore[no-untyped-call]


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
    loss.set(xlabel="epoch", ylabel="loss", yscale="log")
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
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(_literal(title))
    save(figure, path)


def overlaid(rows: Sequence[tuple[str, Sequence[Sequence[Mapping[str, Any]]]]], path: Path) -> None:
    """Curves of all runs over epochs: a colour for each row (title, logs of its runs)."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    panels = figure.subplots(1, 3)
    quantities = (
        ("loss", "loss in training"),
        ("accuracy", "accuracy in training, %"),
        ("validation_accuracy", "accuracy on held-out pictures, %"),
    )
    for panel, (key, words) in zip(panels, quantities, strict=True):
        for number, (title, logs) in enumerate(rows):
            for n, log in enumerate(logs):
                shown = [r for r in log if r["type"] == "epoch" and key in r]
                panel.plot(
                    [r["epoch"] for r in shown],
                    [r[key] for r in shown],
                    color=f"C{number % 10}",
                    marker="." if len(shown) == 1 else None,
                    label=_literal(title) if n == 0 else None,
                )
        panel.set(xlabel="epoch", title=words)
        panel.grid(alpha=0.3)
    panels[0].set_yscale("log")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", fontsize=8)
    save(figure, path)


def beside_published(
    figures: Sequence[tuple[str, float, float | None, float | None]], path: Path
) -> None:
    """Accuracies in percent: (title, ours, its spread over seeds, the published one)."""
    titles, ours, spread, published = zip(*figures, strict=True)
    names = [textwrap.fill(_literal(title), 44) for title in titles]
    rows = sum(max(2, name.count("\n") + 1) for name in names)
    figure = Figure(figsize=(9, 1.4 + 0.25 * rows), layout="constrained")
    axes = figure.subplots()
    at = list(range(len(figures)))[::-1]
    errors = [deviation or 0.0 for deviation in spread]
    axes.barh(at, ours, xerr=errors, height=0.6, capsize=3, color="C0", label="ours")
    known = [(value, y) for value, y in zip(published, at, strict=True) if value is not None]
    if known:
        values, places = zip(*known, strict=True)
        axes.scatter(values, places, marker="|", s=400, color="k", label="published")
    axes.set_yticks(at, names, fontsize=8)
    axes.set_xlabel("accuracy on the test, % (mean, standard deviation over seeds)")
    figure.legend(loc="outside lower center", fontsize=8, ncols=2)
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


def attention(
    picture: npt.NDArray[np.uint8],
    question: str,
    answers: Sequence[tuple[str, float]],
    maps: Mapping[str, Floats],
    path: Path,
    note: str = "",
) -> None:
    """The picture, each attention map over it, and the likeliest answers as bars.

    picture: (H, W, 3). answers: (text, probability), falling. maps: name -> (R,) over regions;
    maps over words are not drawn. note: a second line under the question.
    """
    height, width = picture.shape[:2]
    on_image = {name: map_ for name, map_ in maps.items() if _is_grid(name)}
    figure = Figure(figsize=(2.6 * (len(on_image) + 2), 3.2), layout="constrained")
    panels = figure.subplots(1, len(on_image) + 2)
    panels[0].imshow(picture)
    panels[0].set_title("picture", fontsize=9)
    for panel, (name, weights) in zip(panels[1:], on_image.items(), strict=False):
        panel.imshow(picture)
        heat = over_picture(weights, (width, height))
        panel.imshow(HEAT[np.rint(heat * (len(HEAT) - 1)).astype(int)])
        panel.set_title(_literal(f"{name} (largest weight {np.max(weights):.0%})"), fontsize=9)
    for panel in panels[:-1]:
        panel.set_axis_off()
    bars = panels[-1]
    texts = [text for text, _ in answers][::-1]
    values = [probability for _, probability in answers][::-1]
    bars.barh(range(len(texts)), values)
    bars.set_yticks(range(len(texts)), [_literal(text) for text in texts])
    bars.set_xlim(0, 1)
    bars.set_title("probability", fontsize=9)
    figure.suptitle(_literal(f"{question}\n{note}" if note else question), fontsize=11)
    save(figure, path)


def _literal(text: str) -> str:
    """``text`` as matplotlib shows it unchanged: between dollar signs it would read a formula."""
    return text.replace("$", r"\$")


def _is_grid(name: str) -> bool:
    return not name.endswith("/question")
