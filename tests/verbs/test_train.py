"""train, evaluate and predict on a folder of own data, in real processes."""

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from conftest import LIMIT, PROJECT, environ, options, run_verb
from PIL import Image

from vqa_repro import evaluate, predict, train
from vqa_repro.evaluation.inference import predict_all
from vqa_repro.evaluation.scoring import label_accuracy
from vqa_repro.features.provider import Runtime, open_features
from vqa_repro.models.network import load_model
from vqa_repro.reporting import summary
from vqa_repro.run import open_run, record_resumed
from vqa_repro.training import trackers
from vqa_repro.training.prepare import load_splits, prepare
from vqa_repro.utils.errors import UserError


def losses(run: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


def test_the_run_folder_is_complete(finished: Path) -> None:
    names = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    assert names == {
        *("recipe.json", "environment.json", "vocabulary.json", "features.json", "log.jsonl"),
        *("model.safetensors", "checkpoint.pt", "checkpoint.previous.pt"),
        *("results.json", "metrics.json", "curves.png", "gallery.json", "README.md"),
        *("score_details.json", "image_statistics.json"),
        *(f"attention/{n}.png" for n in range(1, summary.PICTURES + 1)),
        *(f"gallery/{n}.jpg" for n in range(1, 13)),  # all images of the test split, each once
    }
    environment = json.loads((finished / "environment.json").read_text())
    assert environment["packages"]["torch"] in torch.__version__
    if not torch.cuda.is_available():
        assert any(line.startswith("GPU") for line in environment["without"])


def test_it_learns_and_reports_its_accuracy(finished: Path) -> None:
    metrics = json.loads((finished / "metrics.json").read_text())
    assert metrics["questions"] == 36 and metrics["overall"] > 80
    assert set(metrics["per_answer_type"]) == {"other", "yes/no"}
    assert losses(finished)[-1][1] < 0.5 * losses(finished)[0][1]


def test_figures_open_as_images(finished: Path) -> None:
    for path in [finished / "curves.png", *(finished / "attention").iterdir()]:
        with Image.open(path) as image:
            assert image.width > 500 and len(image.convert("L").getcolors(256) or []) > 20


def test_an_epoch_is_logged_before_the_next_ends(
    drawn_folder: Path, place: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "vqa_repro.train", *options(drawn_folder, tmp_path, 10_000)]
    with subprocess.Popen(
        command, cwd=place, env=environ(), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert any("epoch  1/10000" in line for line in process.stdout)
        assert process.poll() is None
        process.kill()


def stop_in_the_middle(
    folder: Path,
    out: Path,
    place: Path,
    number: int,
    extra: tuple[str, ...] = (),
    epochs: int = 30,
) -> subprocess.CompletedProcess[str]:
    """Train and send signal ``number`` once some epochs are logged."""
    process = subprocess.Popen(
        [sys.executable, "-m", "vqa_repro.train", *options(folder, out, epochs), *extra],
        cwd=place,
        env=environ(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = out / "log.jsonl"
    before = len(log.read_text().splitlines()) if log.exists() else 0
    while process.poll() is None:
        if log.exists() and len(log.read_text().splitlines()) > before + 6:
            process.send_signal(number)
            break
        time.sleep(0.01)
    stdout, stderr = process.communicate(timeout=LIMIT)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        (signal.SIGTERM, 143),
        (signal.SIGHUP, 129),
        (signal.SIGUSR1, 138),
        (signal.SIGKILL, -signal.SIGKILL),
    ],
)
def test_stopped_anywhere_and_resumed_equals_an_uninterrupted_run(
    finished: Path, drawn_folder: Path, place: Path, number: int, code: int
) -> None:
    out = place / f"stopped by {number}"
    stopped = stop_in_the_middle(drawn_folder, out, place, number)
    assert stopped.returncode == code, stopped.stderr
    if number != signal.SIGKILL:
        assert "--resume" in stopped.stdout
    picture = drawn_folder / "images" / "1.png"
    asked = run_verb(
        *("predict", "--run", out, "--image", picture, "--question", "is it red?"), cwd=place
    )
    assert asked.returncode == 0, "a stopped run is of use as it is: " + asked.stderr
    resumed = run_verb("train", *options(drawn_folder, out, 30), "--resume", cwd=place)
    assert resumed.returncode == 0, resumed.stderr
    assert losses(out) == losses(finished)
    name = "model.safetensors"
    assert (out / name).read_bytes() == (finished / name).read_bytes()


@pytest.mark.parametrize("batch_size", [12, 1000])  # it is stopped in an epoch, or between two
def test_a_closed_terminal_costs_no_epoch(
    drawn_folder: Path, place: Path, tmp_path: Path, batch_size: int
) -> None:
    """From then on, the terminal refuses what the training prints."""
    out = tmp_path / "run"
    terminal, end = pty.openpty()
    command = ["setsid", "--ctty", sys.executable, "-m", "vqa_repro.train"]
    command += options(drawn_folder, out, 10_000)
    command += ["--set", f"training.batch_size={batch_size}"]
    process = subprocess.Popen(command, cwd=place, env=environ(), stdin=end, stdout=end, stderr=end)
    os.close(end)
    printed = b""
    while b"epoch  3/" not in printed:
        printed += os.read(terminal, 1 << 16)
    os.close(terminal)
    assert process.wait(timeout=LIMIT) == 128 + signal.SIGHUP
    run = open_run(out)
    epochs = [record["epoch"] for record in run.log() if record["type"] == "epoch"]
    saved = run.load_checkpoint(print)
    assert saved and saved["epoch"] == epochs[-1] < 10_000


def test_a_damaged_checkpoint_is_reported_and_the_previous_one_used(
    finished: Path, tmp_path: Path, drawn_folder: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / "metrics.json").unlink()
    data = (out / "checkpoint.pt").read_bytes()
    (out / "checkpoint.pt").write_bytes(data[: len(data) // 2])
    resumed = run_verb("train", *options(drawn_folder, out, 30), "--resume", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "checkpoint.pt is damaged" in resumed.stdout
    assert losses(out) == losses(finished)


def test_a_finished_run_is_left_as_it_is(finished: Path, drawn_folder: Path, place: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    again = run_verb("train", *options(drawn_folder, finished, 30), "--resume", cwd=place)
    assert again.returncode == 0 and "finished" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_evaluate_gives_the_accuracy_of_the_training(
    finished: Path, place: Path, capsys: pytest.CaptureFixture[str], drawn_folder: Path
) -> None:
    root, out = str(place / "resources"), str(place / "answers.json")
    arguments = ["--run", str(finished), "--root", root, "--out", out, "--json"]
    assert evaluate.main(arguments) == 0
    scores = json.loads(capsys.readouterr().out)
    metrics = json.loads((finished / "metrics.json").read_text())
    assert scores["overall"] == metrics["overall"]
    assert json.loads(Path(out).read_text()) == json.loads((finished / "results.json").read_text())
    anybody = ["--results", out, "--json"]
    anybody += ["--questions", str(drawn_folder / "val_questions.json")]
    anybody += ["--annotations", str(drawn_folder / "val_annotations.json")]
    assert evaluate.main(anybody) == 0
    of_file = json.loads(capsys.readouterr().out)  # knows no run: neither prior nor coverage
    assert of_file == {k: v for k, v in scores.items() if k not in ("prior", "coverage")}


def ask(run: Path, picture: Path, question: str = "is it red?", *more: str) -> int:
    return predict.main(["--run", str(run), "--image", str(picture), "--question", question, *more])


def test_predict(
    finished: Path, drawn_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture, out = drawn_folder / "images" / "3.png", tmp_path / "look.png"
    assert (
        ask(finished, picture, "what color is the zebra?", "--attention", str(out), "--json") == 0
    )
    printed = capsys.readouterr()
    assert "zebra" in printed.err
    output = json.loads(printed.out)
    probabilities = [answer["probability"] for answer in output["answers"]]
    assert probabilities == sorted(probabilities, reverse=True) and sum(probabilities) <= 1.0001
    assert set(output["attention"]) == {"hop 1", "hop 2"}
    for weights in output["attention"].values():
        assert len(weights) == 16 and sum(weights) == pytest.approx(1, abs=1e-5)
    with Image.open(out) as image:
        assert image.width > 500


def test_predict_answers_each_question_in_order(
    finished: Path, drawn_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture, both = drawn_folder / "images" / "3.png", ("--question", "what color is it?")
    alone = []
    for question in ("is it red?", both[1]):
        assert ask(finished, picture, question, "--json") == 0
        alone.append(capsys.readouterr().out)
    assert ask(finished, picture, "is it red?", *both, "--json") == 0
    assert capsys.readouterr().out == "".join(alone)
    assert ask(finished, picture, "is it red?", *both) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "is it red?" and both[1] in lines[2:]
    with pytest.raises(SystemExit, match="2"):
        ask(finished, picture, "is it red?", *both, "--attention", "look.png")
    assert "one --question" in capsys.readouterr().err


def damaged(finished: Path, tmp_path: Path, name: str, data: bytes | None) -> Path:
    run = tmp_path / "damaged"
    shutil.copytree(finished, run)
    if data is None:
        (run / name).unlink()
    else:
        (run / name).write_bytes(data)
    return run


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("recipe.json", None),
        ("recipe.json", b"{"),
        ("recipe.json", b"[]"),
        ("recipe.json", b'{"title": 3}'),
        ("recipe.json", b'{"model": {"name": "san"}, "training": {"epochs": "many"}}'),
        ("vocabulary.json", b'{"words": []}'),
        ("vocabulary.json", b"\xff\xfe"),
        ("features.json", b'{"channels": "six"}'),
        ("features.json", b"[]"),
        # Contradicts recipe.json, in which the CNN is trained with the model.
        (
            "features.json",
            b'{"channels": 64, "scale": 1.0, "made_by": {"backbone": "vgg19", "size": 448}}',
        ),
        (
            "features.json",
            b'{"channels": 64, "scale": 1.0, "made_by": {"backbone": "no picture"}}',
        ),
        (
            "features.json",
            b'{"channels": 128, "scale": 1.0, "made_by": {"backbone": "none", "size": 7}}',
        ),
        ("model.safetensors", None),
        ("model.safetensors", b""),
        ("model.safetensors", b"\x10\0\0\0\0\0\0\0{}"),
    ],
)
def test_a_damaged_run_is_one_clear_line(
    finished: Path, drawn_folder: Path, tmp_path: Path, name: str, data: bytes | None
) -> None:
    run = damaged(finished, tmp_path, name, data)
    with pytest.raises(UserError) as error:
        ask(run, drawn_folder / "images" / "1.png")
    assert "\n" not in str(error.value) and (
        name in str(error.value) or str(run) in str(error.value)
    )


def test_weights_of_another_model_are_refused(
    finished: Path, drawn_folder: Path, tmp_path: Path
) -> None:
    raw = json.loads((finished / "recipe.json").read_text())
    raw["model"]["hidden"] = 17
    run = damaged(finished, tmp_path, "recipe.json", json.dumps(raw).encode())
    with pytest.raises(UserError, match="does not fit"):
        ask(run, drawn_folder / "images" / "1.png")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--recipe", "none-such"], "no such recipe; there are"),
        (["--data", "none-such"], "no such folder or data set"),
        (["--set", "training.epoch=3"], "no option 'epoch'"),
        (["--set", "training.epochs=three"], "training.epochs: Expected `int`"),
        (["--set", "training.order=sorted"], "'grouped' or 'iid'"),
        (["--set", "data.fold=0/5"], "data.fold: expected K/N, for example 2/5"),
        (["--set", "training.teachers=[1]"], "training.teachers[0]: Expected `str`"),
        (["--set", "model.name=3"], "[model] needs a name"),
        (["--set", "model.layer=3"], "san has no option 'layer'"),
        (["--set", "model.hidden=abc"], "hidden = 'abc': expected a whole number"),
        (["--set", "model.fidelity=x"], "choose paper or released"),
        (["--set", "model.name=mcan"], "choose san, hiecoatt"),
        (["--set", "model.question=gru"], "choose lstm or cnn"),
        (["--set", "epochs=3"], "section.key"),
        (["--set", "epochs"], "SECTION.KEY=VALUE"),
        (["--device", "tpu"], "no such device"),
        (["--device", "cuda:99"], "sees"),
        (["--features", "none.safetensors"], "no such feature store"),
        (["--features", "vgg19"], "checkpoints_setup.py vgg19"),
        (["--features", "none"], "for the model question-only"),
        (["--set", "training.keep=best", "--set", "data.validation=0"], "set data.validation"),
        (["--root", "/proc/no"], "/proc/no"),
        (["--out", "/proc/no"], "/proc/no"),
        (["--set", "data.test=test9"], "test9"),
    ],
)
def test_bad_input_is_one_clear_line_and_writes_nothing(
    arguments: list[str],
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    drawn_folder: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["--data", str(drawn_folder), "--set", "data.test=val", *arguments]
    with pytest.raises(UserError) as error:
        train.main(given)
    assert line in str(error.value) and "\n" not in str(error.value)
    assert ".toml" not in str(error.value), "a file of the package is not to blame"
    assert not any(tmp_path.iterdir()), "features can take hours"


def test_a_folder_with_other_files_is_not_trained_into(
    finished: Path, drawn_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not a run"):
        train.main(options(drawn_folder, tmp_path, 30))
    with pytest.raises(UserError, match="--resume continues it"):
        train.main(options(drawn_folder, finished, 30))
    with pytest.raises(UserError, match=r"other options \(training\.epochs=30\)"):
        train.main([*options(drawn_folder, finished, 31), "--resume"])


def test_the_command_line_reports_one_line_and_exit_code_2(tmp_path: Path) -> None:
    done = run_verb("train", "--recipe", "none-such", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "given", [["--epochs", "0"], ["--epochs", "2000000"], ["--seed", "-1"], ["--jobs", "0"]]
)
def test_a_number_out_of_range_is_blamed_on_its_option(
    given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        train.main([f"{given[0]}={given[1]}"])
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert f"{given[0]}: '{given[1]}': a whole number from" in printed and ".toml" not in printed


def test_hidden_answers_cannot_be_trained_on(
    drawn_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(drawn_folder, tmp_path / "data")
    (tmp_path / "data" / "train_annotations.json").unlink()
    (tmp_path / "data" / "train_questions.json").rename(tmp_path / "data" / "test_questions.json")
    hidden = ["--set", "data.train=test"]
    with pytest.raises(UserError, match="its answers are hidden"):
        train.main([*options(tmp_path / "data", tmp_path / "run", 1), *hidden])
    assert not (tmp_path / "run").exists()


def test_hiecoatt_and_the_baselines_train_too(
    drawn_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    raw = (PROJECT / "vqa_repro" / "recipes" / "_easy-vqa.toml").read_text()
    training = raw.partition("[training]")[2].partition("[published]")[0]
    for model in ("hiecoatt", "question-only", "bag-of-words", "deeper-lstm", "show-ask-attend"):
        recipe = tmp_path / f"{model}.toml"
        recipe.write_text(
            f'title = "t"\n[data]\nname = "{drawn_folder}"\ntest = "val"\nfeatures = "cnn"\n'
            f'picture_size = 32\n[model]\nname = "{model}"\n[training]{training}'
        )
        out = tmp_path / model
        assert train.main(["--recipe", str(recipe), "--epochs", "1", "--out", str(out)]) == 0
        assert open_run(out).finished
        picture, look = drawn_folder / "images" / "1.png", out / "look.png"
        asked = ["--run", str(out), "--image", str(picture), "--question", "is it red?"]
        assert predict.main([*asked, "--attention", str(look)]) == 0
        assert look.stat().st_size > 10_000


def test_without_bfloat16_float32_is_used_and_recorded(
    drawn_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    users = ("models.network", "training.run_folder", "training.shortage")
    for module in ("utils.device", *users):
        monkeypatch.setattr(f"vqa_repro.{module}.has_bfloat16", lambda device: False)
    for precision in ("float32", "bfloat16"):
        chosen = ["--set", f"training.precision={precision}", "--device", "cpu"]
        assert train.main([*options(drawn_folder, tmp_path / precision, 1), *chosen]) == 0
        notes = json.loads((tmp_path / precision / "environment.json").read_text())["without"]
        assert any("float32" in line for line in notes) is (precision == "bfloat16")
    a, b = (tmp_path / name / "model.safetensors" for name in ("float32", "bfloat16"))
    assert a.read_bytes() == b.read_bytes()


def test_a_run_resumed_elsewhere_records_where(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    run, path = open_run(tmp_path / "run"), tmp_path / "run" / "environment.json"
    recorded = json.loads(path.read_text())
    here = {key: recorded[key] for key in ("device", "torch_build", "processes", "without")}
    elsewhere = {**here, "device": "another", "without": ["bfloat16"]}
    for facts, resumed in (
        (here, None),
        (elsewhere, [elsewhere]),
        (elsewhere, [elsewhere]),
        (here, [elsewhere, here]),
    ):
        record_resumed(run, facts)
        assert json.loads(path.read_text()).get("resumed") == resumed
    path.write_text("[]")
    with pytest.raises(UserError, match=r"environment\.json: damaged"):
        record_resumed(run, here)


# Kills itself instead of saving the weights for the nth time.
KILLED = """
import os, signal, sys
from vqa_repro import train
from vqa_repro.training import loop
save, left = loop.save_weights, int(sys.argv[1])
def save_weights(*arguments):
    global left
    left -= 1
    save(*arguments) if left else os.kill(os.getpid(), signal.SIGKILL)
loop.save_weights = save_weights
train.main(sys.argv[2:])
"""


def resume_after_a_kill(command: list[str], saves: int, killed: Path, whole: Path) -> None:
    """Train, die instead of the last of ``saves`` saves of weights, resume; expect ``whole``."""
    subprocess.run([sys.executable, "-c", KILLED, str(saves), *command], env=environ())
    assert not (killed / "metrics.json").exists()
    weights = (whole / "model.safetensors").read_bytes()
    assert (killed / "model.safetensors").read_bytes() != weights
    assert train.main([*command, "--resume"]) == 0
    assert (killed / "model.safetensors").read_bytes() == weights


def test_the_best_epoch_is_kept_and_patience_ends_training(
    drawn_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    best = ["--set", "training.keep=best", "--set", "training.patience=3"]
    out = tmp_path / "run"
    assert train.main([*options(drawn_folder, out, 200), *best]) == 0
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    held_out = [line["validation_accuracy"] for line in log if line["type"] == "epoch"]
    metrics = json.loads((out / "metrics.json").read_text())
    first_best = held_out.index(max(held_out)) + 1
    assert metrics["kept_epoch"] == first_best
    assert metrics["epochs"] == len(held_out) == first_best + 3 < 200
    # The weights are those of that epoch: they reach its validation accuracy.
    run = open_run(out)
    runtime = Runtime(torch.device("cpu"))
    splits = load_splits(run.recipe, runtime.root)
    data = prepare(run, splits, open_features(run.recipe.data, splits, runtime), runtime)
    predictions = predict_all(load_model(run, runtime.device), data.loader, data.validation)
    assert label_accuracy(predictions, data.validation) == pytest.approx(max(held_out))

    # Killed between the checkpoint of that epoch and its weights: the resumed run has them, too.
    improvements = len(set(accumulate(held_out, max)))
    killed = tmp_path / "killed"
    resume_after_a_kill([*options(drawn_folder, killed, 200), *best], improvements, killed, out)


def test_the_last_weights_are_kept_after_a_kill(
    drawn_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out, killed = tmp_path / "run", tmp_path / "killed"
    assert train.main(options(drawn_folder, out, 3)) == 0
    resume_after_a_kill(options(drawn_folder, killed, 3), 3, killed, out)


def test_a_question_only_model_needs_no_images(
    drawn_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(drawn_folder, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "images")
    recipe = tmp_path / "blind.toml"
    recipe.write_text(
        'title = "blind"\n[data]\nname = "data"\ntest = "val"\nfeatures = "none"\n'
        '[model]\nname = "question-only"\n[training]\nepochs = 20\nlearning_rate = 3e-3\n'
    )
    assert train.main(["--recipe", str(recipe), "--out", "run"]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["overall"] > 40  # it learns that the answer to "is it red?" is mostly "no"
    asked = predict.main(["--run", "run", "--image", "none.jpg", "--question", "is it red?"])
    assert asked == 0


def test_a_test_split_with_hidden_answers_is_answered_in_full(
    drawn_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(drawn_folder, tmp_path / "data")
    (tmp_path / "data" / "val_annotations.json").unlink()
    (tmp_path / "data" / "val_questions.json").rename(tmp_path / "data" / "test_questions.json")
    given = options(tmp_path / "data", tmp_path / "run", 1)
    assert train.main([*given, "--set", "data.test=test"]) == 0
    output = capsys.readouterr().out
    assert "evaluation server" in output and "hidden  this run" in output
    asked = json.loads((drawn_folder / "val_questions.json").read_text())["questions"]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert {r["question_id"] for r in results} == {q["question_id"] for q in asked}
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["overall"] is None


def test_questions_about_damaged_images_are_skipped_and_counted(
    drawn_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(drawn_folder, tmp_path / "data")
    images = {path.stem: path for path in (tmp_path / "data" / "images").iterdir()}
    for name in ("3", "42"):  # one of the training split, one of the test split
        images[name].write_bytes(images[name].read_bytes()[:50])
    with pytest.raises(UserError, match="2 of 52 images are missing or damaged"):
        train.main(options(tmp_path / "data", tmp_path / "run", 1))
    assert not (tmp_path / "run").exists()
    given = options(tmp_path / "data", tmp_path / "run", 1)
    assert train.main([*given, "--skip-damaged"]) == 0
    assert "  39 training and 11 test images; " in capsys.readouterr().out
    without = json.loads((tmp_path / "run" / "environment.json").read_text())["without"]
    assert any(line.startswith("3 of 120 questions of train") for line in without)
    assert sum(": 1 image is damaged (see " in line for line in without) == 2
    assert any(line.startswith("3 of 36 questions of val") for line in without)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["questions"] == 33


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_keeps_the_last_checkpoint(finished: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        run = replace(open_run(finished), folder=disk)
        run.save_checkpoint({"step": 1, "weights": torch.zeros(250_000)})
        with pytest.raises(UserError, match=r"cannot be written: No space left"):
            run.save_checkpoint({"step": 2, "weights": torch.zeros(1_000_000)})
        state = run.load_checkpoint(print)
        assert state is not None and state["step"] == 1
        assert [path.name for path in disk.iterdir()] == ["checkpoint.pt"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_tensorboard_shows_the_log_of_a_resumed_run(
    drawn_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    out = tmp_path / "run"
    arguments = [*options(drawn_folder, out, 8), "--tensorboard"]
    stop_in_the_middle(drawn_folder, out, tmp_path, signal.SIGTERM, ("--tensorboard",), epochs=8)
    assert train.main([*arguments, "--resume"]) == 0
    seen = EventAccumulator(str(out / "tensorboard"))
    seen.Reload()
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    for kind in ("step", "epoch"):
        shown = [(each.step, each.value) for each in seen.Scalars(f"{kind}/loss")]
        logged = [(line["step"], line["loss"]) for line in log if line["type"] == kind]
        assert shown == [(step, pytest.approx(loss)) for step, loss in logged]
    assert len(seen.Scalars("epoch/validation_accuracy")) == 8
    assert len([tag for tag in seen.Tags()["images"] if tag.startswith("attention/")]) == 8
    metrics = json.loads((out / "metrics.json").read_text())
    assert seen.Scalars("test/overall")[0].value == pytest.approx(metrics["overall"])
    hparams = seen.SummaryMetadata("_hparams_/session_start_info")
    assert b"training.learning_rate" in hparams.plugin_data.content


def test_mlflow_gets_options_numbers_scores_and_images_of_a_resumed_run(
    drawn_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_spec("mlflow") is None:
        pytest.skip("mlflow is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    out = tmp_path / "run"
    stop_in_the_middle(drawn_folder, out, tmp_path, signal.SIGTERM, ("--mlflow",), epochs=8)
    done = run_verb("train", *options(drawn_folder, out, 8), "--mlflow", "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "mlruns").glob("[0-9]*/*/params")  # one, although it was resumed
    assert (run / "training.learning_rate").read_text() == "0.002"
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    logged = [line for line in log if line["type"] == "epoch"]
    lines = (run.parent / "metrics" / "epoch" / "loss").read_text().splitlines()
    shown = {int(line.split()[2]): float(line.split()[1]) for line in lines}
    assert shown == {line["step"]: pytest.approx(line["loss"]) for line in logged}
    overall = (run.parent / "metrics" / "test" / "overall").read_text().split()[1]
    assert float(overall) == json.loads((out / "metrics.json").read_text())["overall"]
    assert len(list((run.parent / "artifacts" / "attention").glob("*.png"))) == 8


def test_wandb_gets_options_numbers_scores_and_images(
    drawn_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_spec("wandb") is None:
        pytest.skip("wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB__SERVICE_WAIT", str(LIMIT))  # its own process, on a busy machine
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", str(LIMIT))
    out = tmp_path / "run"
    done = run_verb("train", *options(drawn_folder, out, 2), "--wandb", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--wandb failed" not in done.stdout
    (kept,) = out.glob("wandb/offline-run-*/*.wandb")
    content = kept.read_bytes()
    for name in (b"training.learning_rate", b"epoch/loss", b"test/overall", b"test/prior"):
        assert name in content
    assert len(list((kept.parent / "files" / "media" / "images").glob("*.png"))) == 8


def test_a_tracker_that_is_not_installed_or_cannot_start_is_one_line(
    drawn_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site" / "mlflow").mkdir(parents=True)
    (tmp_path / "site" / "mlflow" / "__init__.py").write_text("raise OSError('no server')")
    monkeypatch.chdir(tmp_path)
    if find_spec("wandb") is None:
        with pytest.raises(UserError, match=r"wandb is not installed.*docs/remote\.md"):
            train.main([*options(drawn_folder, tmp_path / "a", 1), "--wandb"])
        assert not (tmp_path / "a").exists()
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(sys.modules, "mlflow", raising=False)
    with pytest.raises(UserError, match=r"--mlflow: cannot start: no server.*--resume"):
        train.main([*options(drawn_folder, tmp_path / "b", 1), "--mlflow"])


def test_a_tracker_that_fails_during_training_does_not_stop_it(
    drawn_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def refuse(*_: object) -> None:
        raise ConnectionError("the server is gone")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trackers.TensorBoard, "log", refuse)
    assert train.main([*options(drawn_folder, tmp_path / "run", 1), "--tensorboard"]) == 0
    assert capsys.readouterr().out.count("the server is gone") == 1
    assert open_run(tmp_path / "run").finished
