"""Scoring a run: hidden answers, other data sets, left-out pictures, single questions."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import write_features
from PIL import Image

from vqa_repro import evaluate, predict, report, train
from vqa_repro.data.folder import load_folder
from vqa_repro.evaluation.vqa_accuracy import read_results
from vqa_repro.run import MAX_LOG
from vqa_repro.utils.errors import UserError

MADE_BY = {"backbone": "test", "size": 4}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def run(root: Path, drawn_folder: Path) -> Path:
    options = ["--data", str(drawn_folder), "--set", "data.test=val", "--epochs", "2"]
    options += ["--set", "data.picture_size=32", "--set", "model.hidden=16"]
    out = root / "run"
    assert train.main([*options, "--root", str(root), "--out", str(out), "--device", "cpu"]) == 0
    return out


@pytest.fixture
def other(drawn_folder: Path, tmp_path: Path) -> Path:
    """Provide another data set: the same images and questions, "test" without answers."""
    folder = tmp_path / "other"
    shutil.copytree(drawn_folder, folder)
    shutil.copy(folder / "val_questions.json", folder / "test_questions.json")
    return folder


def score(run: Path, root: Path, *more: object) -> int:
    given = ["--run", str(run), "--root", str(root), "--device", "cpu", *map(str, more)]
    return evaluate.main(given)


def test_a_run_is_scored_on_another_data_set(
    run: Path, root: Path, other: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score(run, root, "--json") == 0
    own = json.loads(capsys.readouterr().out)
    assert score(run, root, "--data", other, "--json") == 0
    assert json.loads(capsys.readouterr().out) == own
    with pytest.raises(UserError, match=r"no dev_questions\.json"):
        score(run, root, "--data", other, "--split", "dev")
    with pytest.raises(UserError, match="no such folder or data set"):
        score(run, root, "--data", "none-such")


def test_answers_of_an_unfinished_run_are_marked(
    run: Path, root: Path, drawn_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "metrics.json").unlink()
    ask = ["--image", str(drawn_folder / "images" / "1.png"), "--question", "what color is it?"]
    for folder, marked in ((run, False), (copy, True)):
        assert score(folder, root) == 0
        assert ("copy: not finished: epoch 2 of 2" in capsys.readouterr().err) == marked
        assert predict.main([str(folder), *ask]) == 0
        assert ("copy: not finished: epoch 2 of 2" in capsys.readouterr().err) == marked
    (copy / "log.jsonl").write_text('{"step": 1}\n{"step": 2, "epoch": NaN}\n')
    assert predict.main([str(copy), *ask]) == 0
    assert "copy: not finished: epoch 0 of 2" in capsys.readouterr().err
    os.truncate(copy / "log.jsonl", MAX_LOG + 1)
    with pytest.raises(UserError, match=r"log\.jsonl: more than"):
        score(copy, root)


def test_bad_options_are_found_before_any_question_is_answered(
    run: Path, root: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "answer_split", lambda *_: pytest.fail("answered"))
    nowhere = tmp_path / "none" / "file.json"
    for option in ("--out", "--per-question"):
        with pytest.raises(UserError, match=f"{option} {nowhere}: cannot be written"):
            score(run, root, option, nowhere)
    (tmp_path / "link.json").symlink_to("file.json")
    same = ["--out", tmp_path / "file.json", "--per-question", tmp_path / "link.json"]
    with pytest.raises(UserError, match="--out and --per-question name the same file"):
        score(run, root, *same)
    with pytest.raises(UserError, match="none"):
        score(run, root, "--wups", "--wordnet", nowhere.parent)
    annotations = other / "train_annotations.json"
    unknown = json.loads(annotations.read_text())
    for each in unknown["annotations"]:
        each["answers"] = [{"answer": "sofa"}]
    annotations.write_text(json.dumps(unknown))
    with pytest.raises(UserError, match=r"--answers-of .*, train: the run can give none"):
        score(run, root, "--answers-of", other)
    hidden = ["--data", other, "--split", "test", "--out", tmp_path / "results.json"]
    with pytest.raises(UserError, match="hidden: no --wups, --per-question"):
        score(run, root, *hidden, "--per-question", tmp_path / "each.json")


def test_runs_with_other_answers_are_refused_before_a_split_is_asked_for(
    run: Path, root: Path, tmp_path: Path
) -> None:
    fold, recipe = tmp_path / "fold", json.loads((run / "recipe.json").read_text())
    shutil.copytree(run, fold)
    recipe["data"]["fold"] = "1/2"
    (fold / "recipe.json").write_text(json.dumps(recipe))
    both = [str(run), str(fold), "--root", str(root), "--device", "cpu"]
    with pytest.raises(UserError, match="name the split: --split val"):
        evaluate.main(both)
    vocabulary = (fold / "vocabulary.json").read_text()
    (fold / "vocabulary.json").write_text(vocabulary.replace('"yes"', '"si"'))
    with pytest.raises(UserError, match=r"fold: has other words or answers than .*run$"):
        evaluate.main(both)


def test_fields_of_a_question_are_copied_to_its_answer(
    run: Path, drawn_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(drawn_folder / "images" / "1.png")
    asked = {"image": image, "question": "is it red?", "id": 7, "path": "a", "answers": ["dog"]}
    lines = "\n".join(json.dumps(record) for record in (asked, {"question": "is it blue?"}))
    file = tmp_path / "questions.jsonl"
    file.write_text(f"{lines}\n", encoding="utf-8-sig")  # as programs for Windows write it
    assert predict.main([str(run), "--questions", str(file), "--image", image]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["id"], first["path"], first["image"]) == (7, "a", image)
    assert first["given"] == {"answers": ["dog"]} and "given" not in second
    assert all(set(answer) == {"answer", "probability"} for answer in first["answers"])


@pytest.mark.parametrize("third", ['{"question": " "}', '{"query": "is it red?"}'])
def test_a_bad_line_of_a_file_with_questions_is_named_before_any_answer(
    run: Path,
    drawn_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    third: str,
) -> None:
    file, image = tmp_path / "q.jsonl", drawn_folder / "images" / "1.png"
    file.write_text('{"question": "is it red?"}\n\n' + third)
    with pytest.raises(UserError, match=r"q\.jsonl, line 3: "):
        predict.main([str(run), "--questions", str(file), "--image", str(image)])
    assert capsys.readouterr().out == ""


def test_hidden_answers_make_a_complete_results_file(
    run: Path, root: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results.json"
    hidden = ["--data", other, "--split", "test"]
    with pytest.raises(UserError, match="test: its answers are hidden; --out FILE"):
        score(run, root, *hidden)
    assert score(run, root, *hidden, "--out", out) == 0
    output = capsys.readouterr().out
    assert output.count("\n") == 1 and f"{out}: 36 answers, all of test, whose" in output
    asked = {example.question_id for example in load_folder(other, "test").examples}
    assert read_results(out).keys() == asked
    assert score(run, root, "--split", "val", "--out", tmp_path / "val.json") == 0
    assert read_results(out) == read_results(tmp_path / "val.json")
    (tmp_path / "link.json").symlink_to("target.json")
    assert score(run, root, *hidden, "--out", tmp_path / "link.json") == 0
    assert read_results(tmp_path / "target.json") == read_results(out)
    capsys.readouterr()
    assert score(run, root, *hidden, "--out", out, "--json") == 0
    output = capsys.readouterr()
    assert json.loads(output.out)["overall"] is None and "whose answers" in output.err


def test_for_the_evaluation_server(
    run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    official = tmp_path / "root"
    (official / "test2015").mkdir(parents=True)
    for subset, images in (("test2015", (7, 8, 9)), ("test-dev2015", (9,))):
        questions = [
            {"question_id": 10 * i + k, "image_id": i, "question": "what color is it?"}
            for i in images
            for k in range(3)
        ]
        path = official / f"v2_OpenEnded_mscoco_{subset}_questions.json"
        path.write_text(json.dumps({"questions": questions}))
        for i in images:
            picture = official / "test2015" / f"COCO_test2015_{i:012d}.jpg"
            Image.new("RGB", (64, 48), (20 * i, 9, 9)).save(picture)
    given = ["--data", "vqa-v2", "--out", tmp_path / "r.json"]
    assert score(run, official, *given, "--split", "test2015") == 0
    output = capsys.readouterr().out
    assert "9 answers, all of test2015" in output and "scored by the evaluation server" in output
    records = json.loads((tmp_path / "r.json").read_text())
    assert {record["question_id"] for record in records} == {
        10 * i + k for i in (7, 8, 9) for k in range(3)
    }
    assert all(set(record) == {"question_id", "answer"} for record in records)
    assert score(run, official, *given, "--split", "test-dev2015") == 0
    assert "give --split test2015" in capsys.readouterr().out


def test_images_that_are_added_to_the_features_leave_earlier_runs_valid(
    root: Path, drawn_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "own"
    shutil.copytree(drawn_folder, folder)
    questions = json.loads((folder / "val_questions.json").read_text())
    for image in range(100, 104):
        Image.new("RGB", (48, 36), (2 * image, 9, 9)).save(folder / "images" / f"{image}.png")
    for number, question in enumerate(questions["questions"]):
        question |= {"image_id": 100 + number % 4}
    (folder / "test_questions.json").write_text(json.dumps(questions))

    first, second = tmp_path / "first", tmp_path / "second"
    options = ["--data", str(folder), "--root", str(tmp_path), "--epochs", "1", "--device", "cpu"]
    options += ["--set", "data.test=val", "--set", "data.picture_size=32"]
    options += ["--set", "model.hidden=16"]
    assert train.main([*options, "--out", str(first)]) == 0
    assert score(first, tmp_path, "--split", "test", "--out", tmp_path / "results.json") == 0
    assert train.main([*options, "--seed", "1", "--out", str(second)]) == 0
    assert evaluate.main([str(first), str(second), *options[2:4], "--device", "cpu"]) == 0
    assert report.main(["--examples", str(first), "--root", str(tmp_path)]) == 0


def test_answers_that_may_not_be_given_are_not_covered(
    run: Path, root: Path, other: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations = json.loads((other / "train_annotations.json").read_text())
    keep = [a for a in annotations["annotations"] if a["answers"][0]["answer"] in ("yes", "no")]
    questions = json.loads((other / "train_questions.json").read_text())
    asked = {a["question_id"] for a in keep}
    questions["questions"] = [q for q in questions["questions"] if q["question_id"] in asked]
    (other / "train_annotations.json").write_text(json.dumps({**annotations, "annotations": keep}))
    (other / "train_questions.json").write_text(json.dumps(questions))
    assert score(run, root, "--json", "--answers-of", other) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["coverage"] == pytest.approx(66.7, abs=0.1), "a third are colours"


def test_answers_of_a_data_set_whose_training_split_has_another_name(
    drawn_folder: Path, tmp_path: Path
) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(drawn_folder, data)
    for kind in ("questions", "annotations"):
        (data / f"train_{kind}.json").rename(data / f"all_{kind}.json")
    options = ["--data", str(data), "--set", "data.train=all", "--set", "data.test=val"]
    options += ["--features", "none", "--set", "model.name=question-only", "--epochs", "1"]
    assert train.main([*options, "--out", str(run), "--device", "cpu"]) == 0
    assert score(run, tmp_path, "--answers-of", drawn_folder) == 0
    own = f"{tmp_path}/./data"
    assert score(run, tmp_path, "--answers-of", own) == 0


def test_per_question(
    run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "questions.json"
    assert score(run, root, "--per-question", path, "--json") == 0
    overall = json.loads(capsys.readouterr().out)["overall"]
    values = json.loads(path.read_text())
    assert len(values) == 36 and set(values.values()) <= {0.0, 100.0}
    assert np.mean(list(values.values())) == pytest.approx(overall, abs=0.01)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["--run", "R", "--questions", "Q"], "--questions needs --results"),
        (["--results", "R", "--split", "val"], "--split needs a RUN"),
        (["--results", "R", "--out", "O"], "--out needs a RUN"),
        (["--results", "R"], "--results needs --questions and --annotations"),
        (["--run", "/proc/no"], "/proc/no"),
    ],
)
def test_options_that_exclude_each_other(given: list[str], line: str) -> None:
    with pytest.raises(UserError) as error:
        evaluate.main(given)
    assert line in str(error.value) and "\n" not in str(error.value)


def features(path: Path, left_out: set[str], made_by: dict[str, object]) -> Path:
    """Write a store with random rows for the drawn images."""
    return write_features(path, [str(n) for n in range(1, 53)], (4, 8), left_out, made_by)


def test_images_missing_from_the_features_are_not_scored(
    drawn_folder: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, run = features(tmp_path / "f.safetensors", {"1", "42"}, MADE_BY), tmp_path / "run"
    options = ["--data", str(drawn_folder), "--set", "data.test=val", "--epochs", "1"]
    options += ["--features", str(store), "--set", "model.hidden=16"]
    assert train.main([*options, "--out", str(run), "--device", "cpu"]) == 0
    capsys.readouterr()
    assert score(run, tmp_path, "--json") == 0
    output = capsys.readouterr()
    assert "note: 3 of 36 questions are not answered" in output.err
    metrics = json.loads((run / "metrics.json").read_text())
    assert json.loads(output.out)["overall"] == metrics["overall"]
    out = tmp_path / "r.json"
    with pytest.raises(UserError, match="no answer to 3 of 36 questions: 420, 421, 422"):
        score(run, tmp_path, "--data", other, "--split", "test", "--out", out)
    assert not out.exists()
    features(store, set(), {**MADE_BY, "size": 8})
    with pytest.raises(UserError, match=r"f\.safetensors: made by .*extract them that way"):
        score(run, tmp_path)
