"""Figures: confidence intervals, curves as SVG, and the scale of attention."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import PROJECT, environ
from fontTools.ttLib import TTFont
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vqa_repro.reporting import charts, comparison, figures
from vqa_repro.reporting.comparison import Figure as Score


@pytest.mark.parametrize(
    ("percent", "count", "low", "high"),
    [(50, 100, 40.38, 59.62), (0, 10, 0, 27.75), (100, 10, 72.25, 100), (90, 1000, 87.98, 91.71)],
)
def test_intervals_are_wilsons(percent: float, count: int, low: float, high: float) -> None:
    assert comparison.wilson(percent, count) == pytest.approx((low, high), abs=0.01)


def test_curves_have_axes_and_the_same_bytes_each_time() -> None:
    records = [
        {"type": "epoch", "epoch": n, "loss": 3 / n, "accuracy": 40.0 + n} for n in range(1, 5)
    ]
    charts_made = [str(charts.page_chart([[records], [records]], "loss")) for _ in range(2)]
    assert charts_made[0] == charts_made[1]
    text = charts_made[0]
    assert "epoch</tspan>" in text and "轮</tspan>" in text and "Loss</tspan>" in text
    assert "stroke-dasharray" in text and "var(--c1)" in text
    assert "<dc:date>" not in text and "#000000" not in text
    assert charts.page_chart([[[]]], "loss") == ""


def test_uniform_attention_looks_uniform_and_the_scale_starts_at_zero() -> None:
    nearly = np.full(196, 1 / 196) * (1 + 0.02 * np.sin(np.arange(196)))
    indices, top = figures.heat_levels(figures.over_picture(nearly, (56, 56)))
    assert top == 2 and int(indices.max()) - int(indices.min()) <= 2
    sharp = np.zeros(196)
    sharp[100] = 1
    indices, top = figures.heat_levels(figures.over_picture(sharp, (56, 56)))
    assert top > 10 and indices.min() == 0 and indices.max() == len(figures.HEAT) - 1
    alpha = figures.HEAT[:, 3].astype(int)
    assert (np.diff(alpha) >= 0).all()


def test_no_number_makes_its_bar_look_longer() -> None:
    scores = [(8.3, 0.0, None), (3.5, None, 5.6), (14.9, 10.2, 46.2), (45.4, 1.0, 46.2)]
    axes = Figure(figsize=(9, 3)).subplots()
    figures.draw_accuracies(axes, [("SAN", Score(*score), None) for score in scores], "en")
    canvas = FigureCanvasAgg(axes.figure)
    canvas.draw()
    draw = canvas.get_renderer()
    bars = [bar.get_window_extent(draw) for bar in axes.patches]
    for y, bar in enumerate(bars):
        ours, *published = [text for text in axes.texts if text.get_position()[1] == y]
        patch = ours.get_bbox_patch()
        if patch is not None:  # it has the bar's color
            assert patch.get_window_extent(draw).x1 <= bar.x1
        else:
            number = ours.get_window_extent(draw)
            others = [bar, *(text.get_window_extent(draw) for text in published)]
            assert not any(number.overlaps(other) for other in others)


def test_a_font_that_was_installed_later_is_found(tmp_path: Path) -> None:
    settings = {"MPLCONFIGDIR": str(tmp_path / "mpl"), "XDG_DATA_HOME": str(tmp_path), "HOME": "/"}
    code = "from vqa_repro.reporting import figures; print(figures.families())"

    def families() -> str:
        command = [sys.executable, "-c", code]
        env = {**environ(), **settings}
        done = subprocess.run(command, cwd=PROJECT, env=env, capture_output=True, text=True)
        return done.stdout

    if families() != "['DejaVu Sans']\n":
        pytest.skip("a Chinese font is installed here")
    font = TTFont(font_manager.findfont("DejaVu Sans"))
    for record in font["name"].names:
        record.string = "SimHei"
    (tmp_path / "fonts").mkdir()
    font.save(tmp_path / "fonts" / "one.ttf")
    assert families() == "['DejaVu Sans', 'SimHei']\n"
