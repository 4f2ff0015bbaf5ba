"""A line chart as SVG, to stand in a page: colours come from the page's style sheet."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

WIDTH, HEIGHT = 400, 260
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 10, 22  # margins


class Line(NamedTuple):
    style: str  # CSS classes
    name: str  # shown where the pointer rests
    points: Sequence[tuple[float, float]]


def chart(lines: Sequence[Line], labelled_by: str, *, logarithmic: bool) -> Markup:
    """Lines over x from 0. labelled_by: id of the element that names the chart."""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points if y > 0 or not logarithmic]
    if not ys:
        return Markup("")
    y_ticks = _decades(min(ys), max(ys)) if logarithmic else _ticks(min(ys), max(ys))
    x_ticks = [x for x in _ticks(0, max(*xs, 1)) if x <= max(*xs, 1)]
    low, high = _height(y_ticks[0], logarithmic), _height(y_ticks[-1], logarithmic)

    def place(x: float, y: float) -> tuple[float, float]:
        across = x / max(*xs, 1)
        up = (_height(y, logarithmic) - low) / ((high - low) or 1)
        return (
            round(LEFT + across * (WIDTH - LEFT - RIGHT), 1),
            round(HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM), 1),
        )

    parts = []
    for tick in y_ticks:
        _, y = place(0, tick)
        parts.append(
            Markup('<path class="grid" d="M{} {}H{}"/><text x="{}" y="{}" class="y">{:g}</text>')
            .format(LEFT, y, WIDTH - RIGHT, LEFT - 6, y + 4, tick)
        )  # fmt: skip
    for tick in x_ticks:
        x, _ = place(tick, y_ticks[0])
        parts.append(
            Markup('<text x="{}" y="{}" class="x">{:g}</text>').format(
                x, HEIGHT - BOTTOM + 15, tick
            )
        )
    for line in lines:
        points = [place(x, y) for x, y in line.points if y > 0 or not logarithmic]
        if not points:
            continue
        path = " ".join(f"{x},{y}" for x, y in points)
        x, y = points[-1]
        parts.append(
            Markup(
                '<g class="{}"><title>{}</title><polyline points="{}"/>'
                '<circle cx="{}" cy="{}" r="3"/></g>'
            ).format(line.style, line.name, path, x, y)
        )
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-labelledby="{}">{}</svg>'
    ).format(WIDTH, HEIGHT, labelled_by, Markup("").join(parts))


def _height(y: float, logarithmic: bool) -> float:
    return math.log10(y) if logarithmic else y


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers from at most ``low`` to at least ``high``."""
    raw = (high - low or 1) / 4
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= raw)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(n * step, 10) for n in range(first, max(last, first + 1) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """1, 2, 5 times powers of ten from at most ``low`` to at least ``high``, thinned if many."""
    steps = [m * 10.0**e for e in range(math.floor(math.log10(low)), 309) for m in (1, 2, 5)]
    first = max(i for i, step in enumerate(steps) if step <= low)
    last = next((i for i, step in enumerate(steps) if step >= high), len(steps) - 1)
    last = max(last, first + 1)
    return steps[first : last + 1] if last - first < 8 else [steps[first], *steps[last:][:1]]
