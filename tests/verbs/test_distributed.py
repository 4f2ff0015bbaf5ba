"""Several processes started by torchrun train the same model as one process."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import steps
import torch
import torch.distributed as dist
from conftest import LIMIT, PROJECT, environ
from torch import nn

from vqa_repro import train
from vqa_repro.data.batching import plan_batches
from vqa_repro.features.store import StoreWriter
from vqa_repro.models.cnn import BatchNorm2d
from vqa_repro.utils.distributed import World, init_distributed
from vqa_repro.utils.errors import UserError

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]


def start(*command: object, cwd: Path | None = None) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*TORCHRUN, *map(str, command)],
        cwd=cwd,
        env={**environ(), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )


@pytest.mark.parametrize("order", ["grouped", "iid", "stored"])
@pytest.mark.parametrize("size", [2, 3, 20])
def test_the_shares_of_a_batch_make_up_the_batch(order: str, size: int) -> None:
    _, questions = steps.made_up(pictures=False)
    whole = plan_batches(questions, 6, order, 1)
    shares = [plan_batches(questions, 6, order, 1, World(rank, size)) for rank in range(size)]
    seen: Counter[int] = Counter()
    for batch, *parts in zip(whole, *shares, strict=True):
        together = torch.cat([part.positions for part in parts])
        assert together.sort().values.equal(batch.positions.sort().values)
        for rank, part in enumerate(parts):
            assert part.total == batch.total == len(batch.positions)
            rows = part.rows * size + rank  # of the whole store
            assert rows[part.image_index].equal(questions.row[part.positions])
        seen.update(together.tolist())
    assert seen == Counter(range(len(questions)))


VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@pytest.mark.parametrize(
    "values", [{}, dict.fromkeys(VARIABLES, ""), {"WORLD_SIZE": "1"}, {"RANK": "3"}], ids=str
)
def test_one_process_needs_no_torchrun(
    values: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Empty or single-process variables of a batch script are fine, too."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with init_distributed("cpu") as (world, device):
        assert world.size == 1 and world.is_main and device == "cpu"


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"WORLD_SIZE": "4"}, "RANK is not set"),
        ({"WORLD_SIZE": "x", "RANK": "0"}, "WORLD_SIZE is 'x', not a number"),
        ({"WORLD_SIZE": "4", "RANK": "0"}, "LOCAL_RANK is not set"),
        ({"WORLD_SIZE": "4(x2)"}, r"WORLD_SIZE is '4\(x2\)'"),
        (dict(zip(VARIABLES, "4404", strict=True)), "contradict"),
    ],
)
def test_several_processes_without_torchrun_are_one_clear_line(
    values: dict[str, str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=named) as error, init_distributed("cpu"):
        pass
    assert "torchrun" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    """Includes an empty share of a batch, weight decay, clipping and normalisation."""
    done = start(PROJECT / "tests" / "steps.py", tmp_path / "two.pt", cwd=tmp_path)
    _, errors = done.communicate(timeout=LIMIT)
    assert done.returncode == 0, errors
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    for case in steps.CASES:
        one = steps.steps(case)
        for name, value in one.items():
            torch.testing.assert_close(
                two[case][name], value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory, drawn_folder: Path) -> list[str]:
    """Return the options of a training on made-up features of the drawn images."""
    folder = tmp_path_factory.mktemp("features")
    keys = sorted(path.stem for path in (drawn_folder / "images").iterdir())
    path = folder / "features.safetensors"
    rows = np.random.default_rng(0).normal(size=(len(keys), 9, 12)).astype(np.float16)
    writer = StoreWriter(path, keys, (9, 12), np.float16, {"backbone": "made up"})
    for row, values in enumerate(rows):
        writer.write(row, values)
    writer.finish()
    recipe = folder / "recipe.toml"
    recipe.write_text(
        f'title = "t"\n[data]\nname = "{drawn_folder}"\ntest = "val"\nvalidation = 0.1\n'
        f'features = "{path}"\n'
        '[model]\nname = "san"\nembedding = 8\nhidden = 16\nattention = 16\ndropout = 0.0\n'
        '[training]\nepochs = 400\noptimizer = "sgd"\nlearning_rate = 0.05\nbatch_size = 12\n'
        'clip = 0.1\nclip_per = "tensor"\nschedule = "constant"\nweight_decay = 1e-3\n'
    )
    return ["--recipe", str(recipe)]


def log(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def finished(process: "subprocess.Popen[str]") -> str:
    output, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, output + errors
    return output


def train_two(options: list[str], out: Path, *more: object) -> "subprocess.Popen[str]":
    return start("-m", "vqa_repro.train", *options, "--out", out, *more, cwd=out.parent)


def wait_for_epochs(process: "subprocess.Popen[str]", out: Path, count: int) -> None:
    while process.poll() is None:
        if (out / "log.jsonl").exists() and len(log(out)) >= count:
            return
        time.sleep(0.02)
    raise AssertionError(process.communicate())


@pytest.mark.slow
def test_the_curve_of_two_processes_is_that_of_one(options: list[str], tmp_path: Path) -> None:
    few = [*options, "--epochs", "4"]
    output = finished(train_two(few, tmp_path / "two"))
    assert "2 processes" in output and output.count("epoch  1/4") == 1
    assert train.main([*few, "--out", str(tmp_path / "one")]) == 0
    one, two = log(tmp_path / "one"), log(tmp_path / "two")
    for a, b in zip(one, two, strict=True):
        assert a["step"] == b["step"]
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a.get("validation_accuracy") == b.get("validation_accuracy")
    for name in ("results.json", "gallery.json"):
        assert (tmp_path / "two" / name).exists()
    answered = json.loads((tmp_path / "two" / "results.json").read_text())
    assert len(answered) == len({each["question_id"] for each in answered}) == 36
    assert answered == json.loads((tmp_path / "one" / "results.json").read_text())
    metrics = [json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("one", "two")]
    assert metrics[0]["questions"] == metrics[1]["questions"] == 36
    assert metrics[0]["overall"] == metrics[1]["overall"]


@pytest.mark.slow
def test_stopped_by_a_signal_both_processes_resume(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drops = [*options, "--epochs", "12", "--set", "model.dropout=0.5"]
    finished(train_two(drops, tmp_path / "whole"))
    process = train_two(drops, tmp_path / "stopped")
    wait_for_epochs(process, tmp_path / "stopped", 2)
    process.send_signal(signal.SIGTERM)  # torchrun forwards it
    output, _ = process.communicate(timeout=LIMIT)
    assert "saved in" in output and "--resume" in output
    assert not (tmp_path / "stopped" / "metrics.json").exists()
    shutil.copytree(tmp_path / "stopped", tmp_path / "alone")
    finished(train_two(drops, tmp_path / "stopped", "--resume"))
    curves = [[each["loss"] for each in log(tmp_path / name)] for name in ("whole", "stopped")]
    assert curves[0] == curves[1]
    weights = [
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "stopped")
    ]
    assert weights[0] == weights[1]
    # One process alone resumes as well, with a note that its random numbers differ.
    assert train.main([*drops, "--out", str(tmp_path / "alone"), "--resume"]) == 0
    assert "started with 2 processes, resumes with 1" in capsys.readouterr().out
    assert len(log(tmp_path / "alone")) == len(log(tmp_path / "whole"))


@pytest.mark.slow
def test_a_student_of_other_images_resumes_with_another_number_of_processes(
    options: list[str], tmp_path: Path
) -> None:
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    assert train.main([*options, "--epochs", "1", "--out", str(teacher)]) == 0
    taught = [*options, "--epochs", "12", "--set", f'training.teachers=["{teacher}"]']
    taught += ["--set", "training.teacher_images=1"]
    for epochs in (2, 4):
        process = train_two(taught, student, "--resume")
        wait_for_epochs(process, student, epochs)
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=LIMIT)
        assert "saved in" in output, output + errors
    assert train.main([*taught, "--out", str(student), "--resume"]) == 0


@pytest.mark.slow
def test_the_end_of_one_process_ends_all_and_is_reported(
    options: list[str], tmp_path: Path
) -> None:
    process = train_two([*options, "--epochs", "100000"], tmp_path / "run")
    wait_for_epochs(process, tmp_path / "run", 3)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(workers[1]), signal.SIGKILL)
    _, errors = process.communicate(timeout=LIMIT)
    assert process.returncode != 0
    assert "error: another process has ended" in errors
    assert "Signal 9 (SIGKILL)" in errors  # from torchrun
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


@pytest.mark.slow
def test_bad_input_is_reported_once(tmp_path: Path) -> None:
    process = start("-m", "vqa_repro.train", "--root", tmp_path / "none", "--data", "daquar")
    _, errors = process.communicate(timeout=LIMIT)
    assert process.returncode != 0
    assert sum(line.startswith("error: ") for line in errors.splitlines()) == 1


def test_normalisation_in_low_precision_counts_and_sums_in_float32(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = (3 * torch.randn(5, 3, 31, 31) + 1).bfloat16()  # 4,805 numbers each: bfloat16 has 4,800
    ours, reference = BatchNorm2d(3), nn.BatchNorm2d(3)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        normalised = ours(x)
    finally:
        dist.destroy_process_group()
    expected = reference(x.float())
    assert normalised.dtype is torch.bfloat16
    torch.testing.assert_close(normalised.float(), expected, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(ours.running_mean, reference.running_mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.running_var, reference.running_var, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_process_without_an_image_keeps_up_also_if_images_are_not_seen(
    drawn_folder: Path, tmp_path: Path
) -> None:
    """The CNN, whose statistics are over all processes, has no gradient then."""
    options = ["-m", "vqa_repro.train", "--data", drawn_folder, "--set", "data.test=val"]
    options += ["--set", "model.name=question-only", "--features", "cnn", "--epochs", 1]
    options += ["--set", "data.picture_size=32", "--set", "training.batch_size=3"]  # one image
    process = start(*options, "--set", "training.order=grouped", "--out", "run", cwd=tmp_path)
    _, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, errors
