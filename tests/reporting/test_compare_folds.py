"""Settings compared on folds: standard errors by group, paired differences, bad input."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from vqa_repro.reporting.folds import clustered, compare
from vqa_repro.utils.errors import UserError


def write(base: Path, fold: str, rows: list[list[object]], **changes: object) -> Path:
    folder = base.with_name(f"{base.name}-fold-{fold[0]}")
    folder.mkdir(exist_ok=True)
    path = folder / "held_out.json"
    record = {
        **{"version": 1, "data": "d", "split": "train", "fold": fold},
        **{"digest": f"of {fold}", "questions": rows, **changes},
    }
    path.write_text(json.dumps(record))
    return path


def a_setting(base: Path, right: list[float]) -> Path:
    write(base, "1/2", [[n, f"g{n // 2}", right[n], 0.5, None] for n in range(4)])
    write(base, "2/2", [[n, "h", right[n], None if n == 5 else 1.5, None] for n in (4, 5)])
    return base


def test_standard_errors_are_of_groups() -> None:
    values, groups = np.array([1.0, 1.0, 0.0, 0.0, 1.0, 0.0]), np.array([7, 7, 2, 2, 5, 5])
    mean, error = clustered(values, groups)
    # Residual sums of the groups: 1, -1, 0.
    assert mean == 0.5 and math.isclose(error, math.sqrt((1 + 1 + 0) * 3 / 2) / 6)
    single = clustered(values, np.arange(6))
    assert math.isclose(single.error, values.std(ddof=1) / math.sqrt(6))
    assert clustered(np.array([*values, math.nan]), np.array([*groups, 9])) == (mean, error)


def test_differences_are_paired(tmp_path: Path) -> None:
    a = a_setting(tmp_path / "a", [1, 0, 1, 0, 1, 0])
    b = a_setting(tmp_path / "b", [1, 1, 1, 1, 1, 1])
    lines = compare([a, b])
    assert "wups" not in lines[0] and "6 questions" in lines[-1]
    first, second = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:4])
    assert first[0] == "a" and first[1].startswith("50.0 ±") and first[2] == ""
    assert second[1] == "100.0 ± 0.0"
    # Each group of two gains one answer: the gain does not vary.
    assert second[2] == "+50.0 ± 0.0"
    assert first[3].startswith("0.700 ±") and second[4] == "+0.000 ± 0.000"


def test_a_number_of_folds_out_of_all_measure_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a", "1/100000000000", [[1, "g", 1, 0.5, None]])
    with pytest.raises(UserError, match="has the folds 1/100000000000, not all"):
        compare([tmp_path / "a"])


def test_settings_of_one_name_are_told_apart_by_folder(tmp_path: Path) -> None:
    bases = [tmp_path / "old" / "san", tmp_path / "new" / "san"]
    for base in bases:
        base.parent.mkdir()
        a_setting(base, [1, 0, 1, 0, 1, 0])
    rows = compare(bases)[2:4]
    assert [row.split("|")[1].strip() for row in rows] == [str(base) for base in bases]


def test_early_records_lack_the_calibrated_loss(tmp_path: Path) -> None:
    late = tmp_path / "late"
    write(late, "1/2", [[n, f"g{n // 2}", 1, 0.5, None, 0.4] for n in range(4)], version=2)
    write(late, "2/2", [[n, "h", 1, None if n == 5 else 1.5, None, 1.4] for n in (4, 5)], version=2)
    early = a_setting(tmp_path / "early", [1] * 6)
    head, _, *rows = compare([late, early])
    assert "calibrated" in head and "0.733 ±" in rows[0] and "nan" in rows[1]
    assert "calibrated" not in compare([early])[0]


def test_settings_that_cannot_be_compared(tmp_path: Path) -> None:
    a, b = (a_setting(tmp_path / name, [1] * 6) for name in "ab")
    write(b, "2/2", [[4, "h", 1, 1.5, None]], digest="other")
    with pytest.raises(UserError, match=r"b: other questions or folds than .*a"):
        compare([a, b])
    with pytest.raises(UserError, match="c: no runs"):
        compare([tmp_path / "c"])
    (tmp_path / "b-fold-2" / "held_out.json").unlink()
    with pytest.raises(UserError, match=r"b-fold-2.*not finished"):
        compare([b])
    (tmp_path / "b-fold-2").rmdir()
    with pytest.raises(UserError, match="1/2"):
        compare([b])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "damaged"),
        ("[]", "damaged"),
        ('{"version": 1}', "damaged"),
        (None, "another version"),
    ],
)
def test_a_file_of_another_version_or_damaged(
    text: str | None, expected: str, tmp_path: Path
) -> None:
    a = a_setting(tmp_path / "a", [1] * 6)
    path = write(a, "2/2", [[4, "h", 1, 1.5, None]], version=3)
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=expected) as error:
        compare([a])
    assert str(path) in str(error.value) and "\n" not in str(error.value)
