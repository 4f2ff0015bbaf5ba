"""The gallery of a run: which questions it keeps, how they are written and read."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from conftest import options, run_verb
from PIL import Image

from vqa_repro import train
from vqa_repro.data.types import Example
from vqa_repro.evaluation import examples
from vqa_repro.evaluation.inference import Predictor
from vqa_repro.run import open_run
from vqa_repro.utils.errors import UserError


def numbered(count: int, *, per_picture: int = 1) -> dict[int, Example]:
    return {
        i: Example(i, f"picture {i // per_picture}", "what?", ("cat",), "cat")
        for i in range(1, count + 1)
    }


def chosen(asked: dict[int, Example], right: set[int], **given: Any) -> dict[str, list[int]]:
    flat = dict.fromkeys(asked, 0.5)
    scores = {i: float(i in right) for i in asked}
    return examples.choose(
        asked, scores, **{"confidence": flat, "label_probability": flat, **given}
    )


def test_lists_match_their_names() -> None:
    asked = numbered(400)
    right = set(range(1, 201))
    confidence = {i: i / 400 for i in asked}
    label_probability = {i: 0.0 if i in (300, 250) else i / 1000 for i in asked}
    lists = chosen(asked, right, confidence=confidence, label_probability=label_probability)
    assert set(lists) == set(examples.LISTS)
    assert lists["best"] == list(range(200, 200 - examples.TOP_K, -1))
    assert lists["confident"] == list(range(400, 400 - examples.TOP_K, -1))
    assert set(lists["worst"][:2]) == {300, 250} and lists["worst"][2] == 201
    assert len(lists["errors"]) == examples.ERRORS == len(set(lists["errors"]) - right)
    assert len(set(lists["sample"])) == examples.SAMPLE and set(lists["sample"]) & right


def test_sampling_is_repeatable_and_shared_between_runs() -> None:
    asked = numbered(300)
    one, other = chosen(asked, set(range(1, 20))), chosen(asked, set(range(10, 40)))
    assert one == chosen(asked, set(range(1, 20)))
    assert one["sample"] == other["sample"]
    assert len(set(one["errors"]) & set(other["errors"])) > examples.ERRORS / 2
    assert one["errors"] != sorted(one["errors"])


def test_an_image_appears_once_per_list_except_among_errors() -> None:
    asked = numbered(40, per_picture=10)
    lists = chosen(asked, {1, 2, 3, 4})
    for name in ("sample", "best", "worst", "confident"):
        pictures = [asked[i].image for i in lists[name]]
        assert len(pictures) == len(set(pictures)), name
    assert len(lists["errors"]) == 36


def test_partly_right_is_neither_best_nor_an_error() -> None:
    asked = numbered(3)
    flat = dict.fromkeys(asked, 0.5)
    scores = {1: 1.0, 2: 0.3, 3: 0.0}
    lists = examples.choose(asked, scores, confidence=flat, label_probability=flat)
    assert lists["best"] == [1]
    assert lists["errors"] == lists["worst"] == lists["confident"] == [3]


def test_hidden_answers_leave_a_sample_alone() -> None:
    asked = numbered(50)
    flat = dict.fromkeys(asked, 0.5)
    lists = examples.choose(asked, {}, confidence=flat, label_probability={})
    assert list(lists) == ["sample"] and len(lists["sample"]) == examples.SAMPLE


@pytest.mark.parametrize("which", ["finished", "finished_hiecoatt"])
def test_a_run_keeps_the_answers_of_predict(
    which: str, request: pytest.FixtureRequest, drawn_folder: Path
) -> None:
    folder: Path = request.getfixturevalue(which)
    kept = examples.read(folder)
    assert kept is not None and kept.lists["sample"]
    results = {r["question_id"]: r for r in json.loads((folder / "results.json").read_text())}
    annotations = json.loads((drawn_folder / "val_annotations.json").read_text())["annotations"]
    truth = {a["question_id"]: a["answers"][0]["answer"] for a in annotations}
    predictor = Predictor(open_run(folder), torch.device("cpu"))
    for asked in kept.records[:4]:
        assert asked.answers[0][0] == results[asked.question_id]["answer"]
        assert asked.label == truth[asked.question_id] and asked.human == [asked.label]
        assert asked.accuracy == float(asked.answers[0][0] == asked.label)
        prediction = predictor.predict(
            drawn_folder / "images" / f"{asked.question_id // 10}.png", asked.question
        )
        assert asked.words == prediction.words
        assert [text for text, _ in asked.answers] == [text for text, _ in prediction.answers]
        assert dict(asked.answers)[asked.label] == asked.label_probability
        for (_, p), (_, q) in zip(asked.answers, prediction.answers, strict=True):
            assert p == pytest.approx(q, abs=1e-3)
        assert set(asked.attention) == set(prediction.attention)
        for name, weights in prediction.attention.items():
            assert asked.attention[name] == pytest.approx(weights.tolist(), abs=1e-3)


def test_images_are_small_and_keep_their_aspect_ratio(finished: Path) -> None:
    kept = examples.read(finished)
    assert kept is not None and len(kept.images) == 12
    for picture in kept.images.values():
        with Image.open(io.BytesIO(picture)) as image:
            assert image.size == (examples.SIDE, examples.SIDE * 36 // 48)


def test_the_verb_rebuilds_the_gallery_of_an_old_run(
    finished: Path, place: Path, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    shutil.copytree(finished, old)
    (old / "gallery.json").unlink()
    shutil.rmtree(old / "gallery")
    assert examples.read(old) is None
    done = run_verb(
        "report", "--examples", old, "--root", place / "resources", "--device", "cpu", cwd=place
    )
    assert done.returncode == 0, done.stderr
    made, before = examples.read(old), examples.read(finished)
    assert made is not None and before is not None
    assert made.lists == before.lists and made.images == before.images


def test_missing_images_are_reported_and_the_run_finishes(
    drawn_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(drawn_folder, tmp_path / "data")
    given = options(tmp_path / "data", tmp_path / "first", 1)
    assert train.main(given) == 0  # extracts the features
    shutil.rmtree(tmp_path / "data" / "images")
    assert train.main(options(tmp_path / "data", tmp_path / "run", 1)) == 0
    assert "no examples for the report" in capsys.readouterr().out
    assert open_run(tmp_path / "run").finished and examples.read(tmp_path / "run") is None


def test_a_question_only_model_keeps_the_questions(
    drawn_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(drawn_folder, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "images")
    (tmp_path / "blind.toml").write_text(
        'title = "blind"\n[data]\nname = "data"\ntest = "val"\nfeatures = "none"\n'
        '[model]\nname = "question-only"\n[training]\nepochs = 2\nlearning_rate = 3e-3\n'
    )
    assert train.main(["--recipe", "blind.toml", "--out", "run"]) == 0
    kept = examples.read(tmp_path / "run")
    assert kept is not None and kept.records and not kept.images
    assert all(a.picture is None and not a.attention for a in kept.records)


def write(folder: Path, **changes: object) -> None:
    """Return a gallery of one question with ``changes`` to that question."""
    asked = examples.ExampleRecord(
        1, "what?", ["what", "?"], ["cat"], "cat", 1.0, 0.9, [("cat", 0.9)],
        {"hop 1": [0.25] * 4, "word/question": [0.5, 0.5]}, "1.jpg",
    )  # fmt: skip
    content = {
        "lists": {"sample": [0]},
        "wrong": 0,
        "asked": [msgspec.to_builtins(asked) | changes],
    }
    (folder / "gallery.json").write_text(json.dumps(content))
    (folder / "gallery").mkdir(exist_ok=True)
    Image.new("RGB", (8, 6)).save(folder / "gallery" / "1.jpg")


def test_hand_written_galleries_are_read(tmp_path: Path) -> None:
    write(tmp_path)
    kept = examples.read(tmp_path)
    assert kept is not None and kept.records[0].answers == [("cat", 0.9)]


@pytest.mark.parametrize(
    "changes",
    [
        {"picture": "../1.jpg"},
        {"picture": "/etc/passwd"},
        {"picture": "1.jpg\n"},
        {"picture": "1.svg"},
        {"picture": 1},
        {"question": 5},
        {"question": "x" * 2000},
        {"question_id": "1"},
        {"words": "what"},
        {"words": ["what"]},
        {"human": {"cat": 1}},
        {"answers": [["cat"]]},
        {"answers": [["cat", "1"]]},
        {"answers": [["cat", 1.5]]},
        {"answers": 3},
        {"answers": []},
        {"accuracy": True},
        {"of_label": float("nan")},
        {"attention": {"hop 1": [0.2] * 5}},
        {"attention": {"hop 1": [float("inf")] * 4}},
        {"attention": {"hop 1": []}},
        {"attention": {"hop 1": [0.0] * 129**2}},
        {"attention": [1]},
        {"more": 1},
    ],
)
def test_an_untrusted_gallery_is_checked(tmp_path: Path, changes: dict[str, object]) -> None:
    write(tmp_path, **changes)
    with pytest.raises(UserError, match=r"gallery\.json: damaged") as error:
        examples.read(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "[" * 100_000,
        '{"lists": {"sample": [7]}, "wrong": 0, "asked": []}',
        '{"lists": {"<b>": []}, "wrong": 0, "asked": []}',
        '{"lists": {"sample": [-1]}, "wrong": 0, "asked": []}',
        '{"lists": {}, "wrong": -1, "asked": []}',
    ],
)
def test_files_that_are_not_galleries_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "gallery.json").write_text(text)
    with pytest.raises(UserError, match=r"gallery\.json: damaged"):
        examples.read(tmp_path)


def test_untrusted_images_are_checked(tmp_path: Path) -> None:
    write(tmp_path)
    picture = tmp_path / "gallery" / "1.jpg"
    picture.unlink()
    with pytest.raises(UserError, match=r"1\.jpg: cannot be read"):
        examples.read(tmp_path)
    picture.write_text("<svg onload='alert(1)'/>")
    with pytest.raises(UserError, match=r"1\.jpg: not a JPEG"):
        examples.read(tmp_path)
    Image.new("RGB", (8, 6)).save(picture, "PNG")
    with pytest.raises(UserError, match=r"1\.jpg: not a JPEG"):
        examples.read(tmp_path)
    Image.new("RGB", (4000, 6)).save(picture)
    with pytest.raises(UserError, match=r"1\.jpg: 4000x6 pixels"):
        examples.read(tmp_path)
    picture.write_bytes(b"\xff" * (examples.MAX_IMAGE + 1))
    with pytest.raises(UserError, match=r"1\.jpg: more than"):
        examples.read(tmp_path)
    picture.unlink()
    picture.symlink_to("/etc/passwd")
    with pytest.raises(UserError, match=r"1\.jpg: not a JPEG"):
        examples.read(tmp_path)


def test_a_gallery_that_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    def written(regions: int, question: str) -> bool:
        record = examples.ExampleRecord(
            question_id=1,
            question=question,
            words=["what"],
            human=["a"],
            label="a",
            accuracy=1.0,
            label_probability=1.0,
            answers=[("a", 1.0)],
            attention={f"hop {hop}": [0.0] * regions for hop in range(17)},
            picture=None,
        )
        examples._write(tmp_path, examples.Gallery({"sample": [0]}, [record], 0, {}, ""))
        return examples.read(tmp_path) is not None

    assert written(65**2, "what?"), "a picture_size of 520, 17 layers"
    kept = (tmp_path / "gallery.json").read_text()
    for regions, question in ((50, "what?"), (4, "what " * 201)):
        with pytest.raises(UserError, match=r"gallery\.json: not written"):
            written(regions, question)
    assert (tmp_path / "gallery.json").read_text() == kept
