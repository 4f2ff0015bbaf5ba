"""Training with a non-finite loss, too little memory or disk, or another program's checkpoint."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Mount, options

from vqa_repro import train
from vqa_repro.recipe import Training
from vqa_repro.reporting import summary
from vqa_repro.run import open_run
from vqa_repro.training.logger import NonFiniteLossError, NonFiniteLossTracker
from vqa_repro.training.shortage import explain_shortage
from vqa_repro.utils.errors import UserError


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trained")


@pytest.fixture(scope="module")
def whole(place: Path, drawn_folder: Path) -> Path:
    """Train three epochs without a fault."""
    assert train.main([*options(drawn_folder, place / "whole", 3), "--root", str(place)]) == 0
    return place / "whole"


# ---------------------------------------------------------------- numbers


def test_a_non_finite_loss_names_its_step_and_questions(
    drawn_folder: Path, place: Path, tmp_path: Path
) -> None:
    """Use a learning rate so high that the loss after the first step is not finite."""
    wild = ["--set", "training.learning_rate=1e38", "--set", "training.weight_decay=1e3"]
    arguments = [*options(drawn_folder, tmp_path / "run", 3), "--root", str(place), *wild]
    with pytest.raises(
        UserError,
        match=r"the loss is nan at step 2, batch 2 of epoch 1, for the questions \d+, .* and 7 "
        r"more; lower training\.learning_rate",
    ):
        train.main(arguments)
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_non_finite_weights_are_not_saved(drawn_folder: Path, place: Path, tmp_path: Path) -> None:
    """Use one step an epoch, whose loss is finite and which makes the weights infinite."""
    wild = ["--set", "training.learning_rate=1e38", "--set", "training.weight_decay=1e3"]
    wild += ["--set", "training.batch_size=1000"]
    with pytest.raises(UserError, match="not finite at or shortly before step 1"):
        train.main([*options(drawn_folder, tmp_path / "run", 3), "--root", str(place), *wild])
    assert not list((tmp_path / "run").glob("*.pt"))
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_run_is_resumed_with_the_questions_it_began_with(
    drawn_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(drawn_folder, "data")
    quick = ["--features", "none", "--set", "model.name=question-only", "--set", "data.test=val"]
    quick += ["--data", "data", "--epochs", "2", "--device", "cpu", "--out", "run", "--resume"]
    assert train.main(quick) == 0
    Path("run/metrics.json").unlink()
    annotations = Path("data/train_annotations.json")
    before = annotations.read_text()
    yes_and_no = before.replace('"yes"', '"?"').replace('"no"', '"yes"').replace('"?"', '"no"')
    annotations.write_text(yes_and_no)
    with pytest.raises(UserError, match="run: data has other questions now"):
        train.main(quick)
    annotations.write_text(before)
    checkpoint = torch.load("run/checkpoint.pt", weights_only=True)
    del checkpoint["questions"]  # as of an older version
    torch.save(checkpoint, "run/checkpoint.pt")
    assert train.main(quick) == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_first_bad_batch_is_named(bad: float) -> None:
    numbers = torch.arange(12)
    suspects = NonFiniteLossTracker(100 + numbers)
    with (
        pytest.raises(UserError, match=rf"{bad} at step 3, .* 2 of epoch 5, .* 106, 107, 108;"),
        suspects.explain(),
    ):
        loss = torch.zeros(())  # reused at every step, as by a CUDA graph
        for step, value in enumerate([1.0, 2.0, bad, 3.0, bad], start=1):
            loss.fill_(value)
            suspects.add(step, 5, step - 1, numbers[3 * step - 3 :][:3], loss)
        raise NonFiniteLossError(5)


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize("low", [True, False])
def test_a_full_gpu_suggests_what_to_change(
    low: bool, drawn_folder: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Use torch's error in place of a full GPU."""

    def full(*_: object, **__: object) -> float:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.34 GiB. GPU 0 has a total capacity of 79 GiB"
        )

    monkeypatch.setattr("vqa_repro.training.loop.Trainer.fit", full)
    monkeypatch.setattr("vqa_repro.training.shortage.has_bfloat16", lambda device: low)
    arguments = [*options(drawn_folder, tmp_path / "run", 3), "--root", str(place)]
    less = r"another 2\.34 GiB .* batch_size 12: --set training\.batch_size=6 "
    more = r"or --set training\.precision=bfloat16 takes less" if low else "takes less"
    with pytest.raises(UserError, match=less + more):
        train.main(arguments)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_an_allocation_that_really_fails(device: str, tmp_path: Path) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    with (
        pytest.raises(UserError, match=r"out of memory \(another .*training\.batch_size=50"),
        explain_shortage(Training(epochs=1, learning_rate=1.0), tmp_path, torch.device(device)),
    ):
        torch.empty(2**50, dtype=torch.uint8, device=device)


def test_other_errors_keep_their_traceback(tmp_path: Path) -> None:
    for error in (RuntimeError("size mismatch"), FileNotFoundError(2, "No such file")):
        with (
            pytest.raises(type(error)),
            explain_shortage(Training(1, 1.0), tmp_path, torch.device("cpu")),
        ):
            raise error


# ---------------------------------------------------------------- disk


# A checkpoint has 2,530 KiB and the weights 840: the disk is full at the first checkpoint, at its
# weights, at the second checkpoint, at the third, at the last weights.
@pytest.mark.parametrize("kib", [1000, 3000, 4500, 7000, 8400])
def test_a_disk_that_fills_up_loses_nothing_saved(
    whole: Path, drawn_folder: Path, place: Path, mount: Mount, kib: int
) -> None:
    out = mount(f"size={kib}k") / "run"
    arguments = [*options(drawn_folder, out, 3), "--root", str(place)]
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        train.main(arguments)
    saved = [path for path in out.iterdir() if path.name.startswith("checkpoint")]
    assert bool(saved) == (kib > 1000)
    assert not saved or open_run(out).load_checkpoint(print)
    mount("size=20000k")
    assert train.main([*arguments, "--resume"]) == 0
    for name in ("model.safetensors", "results.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize("kib", [0, 16, 60])
def test_a_disk_that_is_full_after_training(
    whole: Path,
    drawn_folder: Path,
    place: Path,
    mount: Mount,
    kib: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Resume a run whose results, curves and gallery did not fit on the disk."""
    disk, finish = mount("size=20000k"), summary.finish

    def fill_up(*arguments: Any) -> None:
        free = shutil.disk_usage(disk).free
        (disk / "filler").write_bytes(bytes(free - 1024 * kib))
        finish(*arguments)

    arguments = [*options(drawn_folder, disk / "run", 3), "--root", str(place)]
    monkeypatch.setattr(summary, "finish", fill_up)
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        train.main(arguments)
    assert not open_run(disk / "run").finished
    monkeypatch.setattr(summary, "finish", finish)
    (disk / "filler").unlink()
    assert train.main([*arguments, "--resume"]) == 0
    for path in whole.rglob("*.*g"):  # PNG, JPEG
        assert (disk / "run" / path.relative_to(whole)).exists()


# ---------------------------------------------------------------- checkpoints


def test_one_flipped_bit_anywhere_is_detected(whole: Path, tmp_path: Path) -> None:
    """A class that torch.load would accept as a weight."""
    run = open_run(whole)
    data = (whole / "checkpoint.pt").read_bytes()
    run.folder.joinpath("checkpoint.pt").write_bytes(data)
    notes: list[str] = []
    try:
        for place in range(1000, len(data) - 50_000, len(data) // 20):
            damaged = bytearray(data)
            damaged[place] ^= 4
            (whole / "checkpoint.pt").write_bytes(damaged)
            state = run.load_checkpoint(notes.append)
            assert state is not None and state["epoch"] == 2, "the one before"
    finally:
        (whole / "checkpoint.pt").write_bytes(data)
    assert len(notes) >= 19 and all("checkpoint.pt is damaged (" in line for line in notes)


@pytest.mark.parametrize(
    "state",
    [
        [],
        {},
        {"network": 3},
        {"network": {"weight": torch.zeros(2)}},
        {"network": {}, "optimizer": {}, "random": {}},
    ],
)
def test_a_checkpoint_of_another_program_is_refused(
    whole: Path, drawn_folder: Path, place: Path, tmp_path: Path, state: object
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    for name in ("recipe.json", "vocabulary.json", "features.json", "environment.json"):
        (out / name).write_bytes((whole / name).read_bytes())
    torch.save(state, out / "checkpoint.pt")
    with pytest.raises(UserError, match=r"not of this run|all checkpoints are damaged"):
        train.main([*options(drawn_folder, out, 3), "--root", str(place), "--resume"])


# ---------------------------------------------------------------- determinism


def test_deterministic_on_demand(
    whole: Path, drawn_folder: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two trainings on the best device are the same; on the CPU they always are."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        for out in ("first", "second"):
            arguments = [*options(drawn_folder, tmp_path / out, 2), "--root", str(place)]
            assert train.main([*arguments, "--deterministic"]) == 0
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    first, second = (tmp_path / out / "model.safetensors" for out in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
