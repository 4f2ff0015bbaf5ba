"""Cross-validated settings compared: every question once, paired, errors by group of images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from vqa_repro.evaluation.held_out import NAME, VERSION
from vqa_repro.utils.errors import UserError, first_line
from vqa_repro.utils.files import read_bounded

MAX_FILE = 2**28  # bytes

_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Loss = Annotated[float, msgspec.Meta(ge=0)]


class _Row(msgspec.Struct, array_like=True):
    """A question of held_out.json."""

    question_id: int
    group: str
    accuracy: _Share
    loss: _Loss | None
    wups: _Share | None
    calibrated: _Loss | None = None  # version 1 lacks it


class _Record(msgspec.Struct):
    """The content of held_out.json, see evaluation/held_out.py."""

    version: int
    data: str
    split: str
    fold: Annotated[str, msgspec.Meta(pattern=r"^[1-9]\d*/[1-9]\d*$")]
    digest: str
    questions: list[_Row]


@dataclass(frozen=True)
class Setting:
    """All folds of one setting. NaN where a value is missing."""

    digests: list[str]
    groups: npt.NDArray[np.int64]  # (N,) group of each question
    values: dict[str, npt.NDArray[np.float64]]  # name -> (N,)


class Estimate(NamedTuple):
    mean: float
    error: float  # standard error

    def text(self, digits: int, sign: bool = False) -> str:
        return f"{self.mean:{'+' if sign else ''}.{digits}f} ± {self.error:.{digits}f}"


# Column -> its factor and digits.
COLUMNS = {
    "accuracy, %": (100, 1),
    "log loss": (1, 3),
    "wups_0.9": (100, 1),
    "log loss, calibrated": (1, 3),
}


def read_setting(base: Path) -> Setting:
    """Read the runs that ``train --folds N --out base`` made.

    Raise UserError, naming the file, if one is missing, damaged, unfinished or of another version.
    """
    paths = [f / NAME for f in base.parent.glob(f"{escape(base.name)}-fold-*") if f.is_dir()]
    if not paths:
        raise UserError(
            f"{base}: no runs {base.name}-fold-1, ... there; make them with "
            f"train --folds 5 --out {base}"
        )
    records = sorted(
        (_read(path) for path in paths), key=lambda record: int(record.fold.split("/")[0])
    )
    first = records[0]
    count = int(first.fold.split("/")[1])
    found = [record.fold for record in records]
    if len(found) != count or found != [f"{k}/{count}" for k in range(1, count + 1)]:
        folds = ", ".join(found)
        raise UserError(f"{base}: has the folds {folds}, not all of one number of folds")
    if any((record.data, record.split) != (first.data, first.split) for record in records):
        raise UserError(f"{base}: its folds are of different data sets")
    rows = [row for record in records for row in record.questions]
    names = [row.group for row in rows]
    values = [(row.accuracy, row.loss, row.wups, row.calibrated) for row in rows]
    table = np.array([[math.nan if v is None else v for v in row] for row in values], float)
    return Setting(
        [f"{first.data} {first.split}", *(record.digest for record in records)],
        np.unique(names, return_inverse=True)[1],
        dict(zip(COLUMNS, table.T, strict=True)),
    )


def _read(path: Path) -> _Record:
    if not path.exists():
        raise UserError(f"{path}: missing: the fold is not finished; re-run the training command")
    try:
        record = msgspec.json.decode(read_bounded(path, MAX_FILE), type=_Record)
    except (msgspec.MsgspecError, ValueError) as error:
        raise UserError(f"{path}: damaged: {first_line(error)}; train the fold again") from None
    if not 1 <= record.version <= VERSION or not record.questions:
        raise UserError(f"{path}: of another version of the program; train the fold again")
    return record


def clustered(values: npt.NDArray[np.float64], groups: npt.NDArray[np.int64]) -> Estimate:
    """Return the mean of ``values`` (N,) and its standard error, NaNs left out.

    Questions of one group are correlated, so the error is that of the groups' sums of residuals
    (Liang & Zeger 1986), with the factor G/(G-1) for G groups.
    """
    known = ~np.isnan(values)
    values, groups = values[known], groups[known]
    if not len(values):
        return Estimate(math.nan, math.nan)
    mean = float(values.mean())
    sums = np.bincount(np.unique(groups, return_inverse=True)[1], weights=values - mean)
    count = len(sums)
    variance = float(np.square(sums).sum()) * count / max(1, count - 1)
    return Estimate(mean, math.sqrt(variance) / len(values))


def compare(bases: Sequence[Path]) -> list[str]:
    """Return a Markdown table of settings, the differences being to the first one.

    Raise UserError for settings of different data sets or folds.
    """
    settings = [read_setting(base) for base in bases]
    base = settings[0]
    for path, setting in zip(bases, settings, strict=True):
        if setting.digests != base.digests:
            raise UserError(
                f"{path}: other questions or folds than {bases[0]}; "
                "compare settings with the same data, folds and single_answers"
            )
    shown = [name for name in COLUMNS if not np.isnan(base.values[name]).all()]
    head = ["", *(cell for name in shown for cell in (name, "difference"))]
    rows = [head, ["---", *["---:"] * (len(head) - 1)]]
    ambiguous = len({path.name for path in bases}) < len(bases)
    for path, setting in zip(bases, settings, strict=True):
        row = [str(path) if ambiguous else path.name]
        for name in shown:
            factor, digits = COLUMNS[name]
            values = factor * setting.values[name]
            row.append(clustered(values, setting.groups).text(digits))
            difference = clustered(values - factor * base.values[name], setting.groups)
            row.append("" if setting is base else difference.text(digits, sign=True))
        rows.append(row)
    return [
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        f"{len(base.groups):,} questions, each answered once by a training without its fold; "
        f"{len(base.digests) - 1} folds of whole groups of images "
        f"({len(set(base.groups.tolist())):,}). ± standard error, clustered by group; differences "
        "paired by question.",
    ]
