"""Figures of runs as PNG files for slides."""

import re
from collections.abc import Sequence
from pathlib import Path

from vqa_repro.reporting import charts, figures
from vqa_repro.reporting.comparison import RunGroup, RunSummary, group_runs
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.messages import messages

EXAMPLES = 3  # of each list


def write_slides(runs: Sequence[RunSummary], folder: Path, language: str) -> list[Path]:
    """Write curves.png, accuracy.png, and attention of each recipe's first examples.

    In English, with a note, if no installed font has ``language``.
    """
    if not figures.can_show("".join(texts[language] for texts in messages().values())):
        print("--png: no installed font has Chinese (Noto Sans CJK has): these are in English")
        language = "en"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--png {folder}: cannot create it: {error.strerror}") from None
    groups = group_runs(runs)
    paths = [folder / "curves.png"]
    logs = [(group.title, [run.log for run in group.runs]) for group in groups]
    charts.overlaid(logs, paths[-1], language)
    scores = [(group.title, figure) for group in groups if (figure := group.figure("overall"))]
    if scores:
        paths.append(folder / "accuracy.png")
        figures.beside_published(scores, paths[-1], language)
    for number, group in enumerate(groups, start=1):
        paths += _attention(number, group, folder, language)
    return paths


def _attention(number: int, group: RunGroup, folder: Path, language: str) -> list[Path]:
    """Draw the first examples of every list; each question once."""
    run = next((run for run in group.runs if run.examples), None)
    if run is None or run.examples is None:
        return []
    gallery = run.examples
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", run.run.folder.name).strip(".-")
    paths: list[Path] = []
    drawn: set[int] = set()
    for kind, positions in gallery.lists.items():
        fresh = [p for p in positions if p not in drawn and gallery.records[p].picture][:EXAMPLES]
        drawn |= set(fresh)
        for n, position in enumerate(fresh, start=1):
            paths.append(folder / f"{number}-{name}-{kind}-{n}.png")
            figures.example(gallery.records[position], gallery.images, paths[-1], language)
    return paths
