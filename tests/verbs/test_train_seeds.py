"""Several seeds or folds in one command."""

import json
from pathlib import Path

import pytest
from conftest import run_verb

from vqa_repro import train


def small(folder: Path, out: Path) -> list[str]:
    """Options of a training that takes no time: it sees no images."""
    common = ["--data", str(folder), "--set", "data.test=val", "--features", "none"]
    return [*common, "--set", "model.name=question-only", "--epochs", "1", "--out", str(out)]


@pytest.mark.slow
def test_seeds_are_trained_resumed_and_compared(drawn_folder: Path, place: Path) -> None:
    out = place / "several"
    in_the_way = place / "several-seed-1"
    in_the_way.mkdir()
    (in_the_way / "notes.txt").touch()
    arguments = (*small(drawn_folder, out), "--seeds", "0-1", "--jobs", "2")
    failed = run_verb("train", *arguments, cwd=place)
    assert failed.returncode == 2
    assert "seed-1" in failed.stderr and "seed-0" not in failed.stderr
    assert str(in_the_way) in failed.stderr and len(failed.stderr.splitlines()) == 1
    finished = place / "several-seed-0" / "metrics.json"
    before = finished.stat().st_mtime_ns

    (in_the_way / "notes.txt").unlink()
    done = run_verb("train", *arguments, cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
    assert finished.stat().st_mtime_ns == before
    table = [line for line in done.stdout.splitlines() if line.startswith("| Question")]
    assert len(table) == 1 and "| 2 |" in table[0]


@pytest.mark.parametrize("text", ["", "a", "3-1", "0-", "0,0", "-1", "0-5000"])
def test_seeds_that_make_no_sense(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        train.main([f"--seeds={text}"])
    assert ended.value.code == 2
    assert "seeds" in capsys.readouterr().err


def test_seeds_under_torchrun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(train.UserError, match="torchrun"):
        train.main(["--seeds", "0-1", "--out", str(tmp_path / "run")])


@pytest.mark.slow
def test_folds_answer_every_training_question_once(drawn_folder: Path, place: Path) -> None:
    out = place / "crossed"
    arguments = (*small(drawn_folder, out), "--folds", "2", "--jobs", "2")
    done = run_verb("train", *arguments, cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "120 questions" in done.stdout.splitlines()[-1]
    records = [
        json.loads((place / f"crossed-fold-{k}" / "held_out.json").read_text()) for k in (1, 2)
    ]
    asked = {row[0] for record in records for row in record["questions"]}
    assert len(asked) == 120 == sum(len(record["questions"]) for record in records)
    for k, record in enumerate(records, start=1):
        metrics = json.loads((place / f"crossed-fold-{k}" / "metrics.json").read_text())
        assert metrics["questions"] == len(record["questions"])
        mean = sum(row[2] for row in record["questions"]) / len(record["questions"])
        assert metrics["overall"] == pytest.approx(100 * mean, abs=0.01)
        assert record["fold"] in metrics["split"]
    compared = run_verb("report", "--folds", out, out, cwd=place)
    assert compared.returncode == 0 and "+0.0 ± 0.0" in compared.stdout
