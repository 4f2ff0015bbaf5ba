"""Several seeds or folds in one command."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import environ

from vqa_repro import evaluate, report, train
from vqa_repro.run import open_run
from vqa_repro.training.side_by_side import Trained
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.side_by_side import Outcome


@pytest.fixture
def small(drawn_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options of a training that takes no time, since it sees no images; OUT is tmp_path/run."""
    monkeypatch.chdir(tmp_path)
    for name, value in environ().items():
        monkeypatch.setenv(name, value)
    common = ["--data", str(drawn_folder), "--set", "data.test=val", "--features", "none"]
    return [*common, "--set", "model.name=question-only", "--epochs", "1", "--out", "run"]


@pytest.mark.slow
def test_seeds_are_trained_resumed_and_compared(
    small: list[str],
    drawn_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    in_the_way = tmp_path / "run-seed-1"
    in_the_way.mkdir()
    (in_the_way / "notes.txt").touch()
    with pytest.raises(UserError) as failed:
        train.main([*small, "--seeds", "0-1", "--jobs", "2"])
    assert "seed-1" in str(failed.value) and "seed-0" not in str(failed.value)
    assert "name another folder" in str(failed.value)
    finished = tmp_path / "run-seed-0" / "metrics.json"
    before = finished.stat().st_mtime_ns

    (in_the_way / "notes.txt").unlink()
    capsys.readouterr()
    assert train.main([*small, "--seeds", "0-1", "--jobs", "2"]) == 0
    assert finished.stat().st_mtime_ns == before
    printed = capsys.readouterr().out.splitlines()
    table = [line for line in printed if line.startswith("| Question")]
    assert len(table) == 1 and "| 2 |" in table[0]

    # They teach a third, and all answer as one.
    teachers = 'training.teachers=["run-seed-0", "run-seed-1"]'
    others = (
        "training.ema=0.9",
        "training.test_every=1",
        "training.r_drop=1",
        "training.similar_answers=0.2",
        "training.teacher_images=1",
        teachers,
    )
    changes = [word for option in others for word in ("--set", option)]
    assert train.main([*small, *changes, "--out", "student"]) == 0
    run = open_run(Path("student"))
    metrics = json.loads(Path("student/metrics.json").read_text())
    assert metrics["best_on_test"] == pytest.approx(metrics["overall"], abs=0.01)
    assert "average" in torch.load("student/checkpoint.pt", weights_only=True)
    assert run.finished and run.recipe.training.teachers == ["run-seed-0", "run-seed-1"]
    with pytest.raises(UserError, match=r"run-seed-0.*\[data\]"):
        train.main([*small, *changes, "--folds", "1/2", "--out", "cheat"])
    assert not Path("cheat").exists()
    shutil.copytree("run-seed-0", "unfinished")
    Path("unfinished/metrics.json").unlink()
    with pytest.raises(UserError, match="unfinished: not finished"):
        train.main([*small, "--set", 'training.teachers=["unfinished"]', "--out", "early"])
    with pytest.raises(UserError, match=r"needs training\.teachers"):
        train.main([*small, "--set", "training.teacher_images=1", "--out", "early"])
    shares = ["training.similar_answers=0.6", "training.distillation=0.5", teachers]
    with pytest.raises(UserError, match="add up to more than 1"):
        train.main([*small, *(word for s in shares for word in ("--set", s)), "--out", "early"])
    capsys.readouterr()
    with pytest.raises(UserError, match=r"seed-0.*other options"):
        train.main([*small, "--seeds", "0-1", "--epochs", "2"])
    assert "| Question" not in capsys.readouterr().out, "the table of runs with other options"
    together = ["run-seed-0", "run-seed-1", "student", "--answers-of", str(drawn_folder)]
    assert evaluate.main([*together, "--split", "val", "--json"]) == 0
    assert 0 <= json.loads(capsys.readouterr().out)["overall"] <= 100


@pytest.mark.slow
def test_seeds_that_are_stopped_name_one_command_to_continue(
    small: list[str], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "vqa_repro.train", *small, "--epochs", "100000"]
    with subprocess.Popen(
        [*command, "--seeds", "0-1", "--jobs", "2"], stdout=subprocess.PIPE, text=True
    ) as process:
        logs = [tmp_path / f"run-seed-{seed}" / "log.jsonl" for seed in (0, 1)]
        while process.poll() is None and not all(log.exists() for log in logs):
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.stdout
        printed = process.stdout.read()
    assert process.returncode == 143 and printed.count("stopped in epoch") == 2
    assert "--resume" not in printed
    assert printed.splitlines()[-1].endswith("the same command continues")


@pytest.mark.parametrize("text", ["", "a", "3-1", "0-", "0,0", "-1", "0-5000"])
def test_seeds_that_make_no_sense(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        train.main([f"--seeds={text}"])
    assert ended.value.code == 2
    assert "seeds" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["1", "a", "5/", "/5", "0/5", "6/5", "1/1", "1/2/3"])
def test_folds_that_make_no_sense(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        train.main(["--folds", text])
    assert ended.value.code == 2
    assert "a number of folds (5), or one of them (2/5)" in capsys.readouterr().err


def test_more_folds_than_images_are_refused_before_any_training(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"--folds.* N from 2 to 40"):
        train.main([*small, "--folds", "41"])
    assert capsys.readouterr().out == "" and not any(tmp_path.iterdir())


def test_an_error_of_several_trainings_is_reported_once(tmp_path: Path) -> None:
    codes = {"seed-0": 0, "seed-1": 2, "seed-2": 2, "seed-3": 1}
    outcomes = {name: Outcome(code, f"error: {code} is bad") for name, code in codes.items()}
    folders = {name: tmp_path / name for name in codes}
    with pytest.raises(UserError) as failed:
        Trained(tmp_path, folders, outcomes, 0).exit_code()
    assert str(failed.value) == (
        "3 of 4 trainings failed: seed-1, seed-2 (2 is bad); seed-3 (1 is bad)"
    )


def test_seeds_under_torchrun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="torchrun"):
        train.main(["--seeds", "0-1", "--out", str(tmp_path / "run")])


def test_folds_with_several_seeds(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--folds"):
        train.main(["--seeds", "0-1", "--folds", "5", "--out", str(tmp_path / "run")])


@pytest.mark.slow
def test_folds_need_no_test_split(
    drawn_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(drawn_folder, "mine", ignore=shutil.ignore_patterns("val_*", "test_*"))
    options = ["--data", "mine", "--features", "none", "--set", "model.name=question-only"]
    with pytest.raises(UserError, match="no test_questions"):
        train.main([*options, "--epochs", "1"])
    assert train.main([*options, "--epochs", "1", "--folds", "2", "--jobs", "2"]) == 0
    assert all(Path(f"runs/mine-fold-{k}/metrics.json").is_file() for k in (1, 2))


@pytest.mark.slow
def test_folds_answer_every_training_question_once(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*small, "--folds", "2", "--jobs", "2"]) == 0
    assert "120 questions" in capsys.readouterr().out.splitlines()[-1]
    records = [json.loads((tmp_path / f"run-fold-{k}/held_out.json").read_text()) for k in (1, 2)]
    asked = {row[0] for record in records for row in record["questions"]}
    assert len(asked) == 120 == sum(len(record["questions"]) for record in records)
    for k, record in enumerate(records, start=1):
        metrics = json.loads((tmp_path / f"run-fold-{k}" / "metrics.json").read_text())
        assert metrics["questions"] == len(record["questions"])
        mean = sum(row[2] for row in record["questions"]) / len(record["questions"])
        assert metrics["overall"] == pytest.approx(100 * mean, abs=0.01)
        assert record["fold"] in metrics["split"]
        loss, calibrated = (sum(row[n] for row in record["questions"]) for n in (3, 5))
        assert calibrated <= loss and 0.5 <= record["temperature"] <= 4
        capsys.readouterr()
        assert evaluate.main([f"run-fold-{k}", "--json"]) == 0
        scored = json.loads(capsys.readouterr().out)
        assert scored["overall"] == metrics["overall"], "the fold, not the test split"
    with pytest.raises(UserError, match="run-fold-2: has other words or answers than run-fold-1"):
        evaluate.main(["run-fold-1", "run-fold-2"])
    assert report.main(["--folds", "run", "run"]) == 0
    assert "+0.0 ± 0.0" in capsys.readouterr().out
