"""Example questions as the report's page shows them: galleries, attention maps, disagreements."""

import base64
import hashlib
import io
import shlex
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from vqa_repro.evaluation.examples import ExampleRecord, Gallery
from vqa_repro.reporting import contrasts, figures
from vqa_repro.reporting.comparison import RunGroup

HEAT_SIDE = 56  # pixels of a heat map's longer side; the page scales it up smoothly


def gallery_view(number: int, group: RunGroup) -> dict[str, Any]:
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
        view["pictures"] = {name: _picture(data) for name, data in gallery.images.items()}
        view["lists"] = {
            name: [_leaf(gallery, gallery.records[p]) for p in positions]
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
        with Image.open(io.BytesIO(kept.images[asked.picture])) as image:
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


def disagreement_view(
    groups: Sequence[RunGroup], views: Sequence[dict[str, Any]]
) -> dict[str, Any] | None:
    """Return the example questions that ``groups`` of a data set answer differently, if any.

    views: the groups' galleries.
    """
    shown = [n for n, group in enumerate(groups) if any(run.examples for run in group.runs)]
    rows = contrasts.disagreements(groups)
    if not rows:
        return None
    return {
        "titles": [groups[n].title for n in shown],
        "rows": [
            {
                "question": row.record.question,
                "label": row.record.label,
                "picture": views[row.number]["pictures"].get(row.record.picture),
                "answers": row.answers,
            }
            for row in rows
        ],
    }
