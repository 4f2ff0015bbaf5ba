"""Figures read the same with red-green colour blindness: simulated, and measured in CIELAB."""

import re
from itertools import combinations, pairwise

import numpy as np
import numpy.typing as npt
import pytest
from conftest import PROJECT

from vqa_repro.reporting import charts
from vqa_repro.utils import palette

Array = npt.NDArray[np.float64]
# Machado, Oliveira and Fernandes (2009), severity 1.0, in linear RGB.
VISION = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
}
TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
# Just noticeable is 2.3; lines of 1.5 points need several times as much.
DISTINCT = 15.0


def lab(colours: Array, vision: str) -> Array:
    """Return CIELAB (N, 3) of sRGB ``colours`` (N, 3) from 0 to 255, as seen with ``vision``."""
    share = colours / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ VISION[vision].T, 0, 1)
    t = seen @ TO_XYZ.T / TO_XYZ.sum(axis=1)
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = f.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


def line_colours(scheme: str) -> Array:
    """Return the colours of curves in figures, or in the page with its light or dark colours."""
    names: list[str] = list(charts.COLOURS)
    if scheme != "figures":
        css = (PROJECT / "vqa_repro/reporting/templates/report.css").read_text(encoding="utf-8")
        sets = re.findall(r"--c\d: (#[0-9a-f]{6});", css)
        assert len(sets) == 2 * len(names)
        names = sets[: len(names)] if scheme == "light" else sets[len(names) :]
    return np.array([[int(name[i : i + 2], 16) for i in (1, 3, 5)] for name in names], float)


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("scheme", ["figures", "light", "dark"])
def test_curves_differ_in_colour(scheme: str, vision: str) -> None:
    seen = lab(line_colours(scheme), vision)
    distances = {
        (a, b): float(np.linalg.norm(seen[a] - seen[b])) for a, b in combinations(range(7), 2)
    }
    assert {pair: d for pair, d in distances.items() if d < DISTINCT} == {}


def test_neighbouring_curves_differ_in_dashes_too_and_no_two_of_21_are_alike() -> None:
    styles = [charts.style(number).split() for number in range(21)]
    assert all(a[1] != b[1] for a, b in pairwise(styles))
    assert len(set(map(tuple, styles))) == 21


@pytest.mark.parametrize("vision", VISION)
def test_more_attention_is_always_lighter(vision: str) -> None:
    shares = np.linspace(0, 1, 64)
    lightness = lab(np.array([palette.colour(share) for share in shares]), vision)[:, 0]
    assert (np.diff(lightness) > 0).all() and lightness[-1] - lightness[0] > 60
    # In equal steps: no part of the scale looks flat.
    assert np.diff(lightness).min() > 0.3 * np.diff(lightness).mean()


def test_the_simulation_confuses_red_and_green() -> None:
    red_green = np.array([[190.0, 60, 40], [110.0, 110, 30]])
    (red, green), (red_seen, green_seen) = lab(red_green, "normal"), lab(red_green, "deuteranopia")
    assert np.linalg.norm(red - green) > 3 * np.linalg.norm(red_seen - green_seen)
    assert np.allclose(lab(np.array([[255.0, 255, 255]]), "protanopia"), [[100, 0, 0]], atol=0.5)
