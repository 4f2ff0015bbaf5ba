"""The report on a data set, tokens of other alphabets, and folders in their usual layouts."""

import json
import random
import re
from pathlib import Path

import pytest
from PIL import Image

from vqa_repro import check
from vqa_repro.data import vqa
from vqa_repro.data.check import data_notes, report_lines, survey
from vqa_repro.data.folder import load_folder
from vqa_repro.data.types import Example, Split
from vqa_repro.data.vocabulary import tokenize
from vqa_repro.utils.errors import UserError


def write(folder: Path, split: str, ids: list[object], answers: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    asked = [{"question_id": n, "image_id": i, "question": "what?"} for n, i in enumerate(ids)]
    given = [{"question_id": n, "answers": [a]} for n, a in enumerate(answers)]
    (folder / f"{split}_questions.json").write_text(json.dumps({"questions": asked}))
    (folder / f"{split}_annotations.json").write_text(json.dumps({"annotations": given}))


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9)).save(folder / name, "PNG")


def test_ascii_text_keeps_its_tokens() -> None:
    before = re.compile(r"[a-z0-9]+(?:'[a-z]+)?|[^\sa-z0-9]")
    rng = random.Random(0)
    for _ in range(2000):
        text = "".join(chr(rng.randrange(32, 127)) for _ in range(40))
        assert tokenize(text) == before.findall(text.lower())


def test_words_of_every_alphabet_are_words() -> None:
    assert tokenize("Какого цвета café?") == ["какого", "цвета", "café", "?"]
    assert tokenize("这是什么 3D") == ["这", "是", "什", "么", "3d"]
    assert tokenize("यह क्या है") == ["यह", "क्या", "है"]
    assert tokenize("모자 색깔") == ["모자", "색깔"]


@pytest.mark.parametrize(
    ("image_id", "name"),
    [
        (28940, "abstract_v002_val2015_000000028940.png"),
        ("synpic7.jpg", "synpic7.jpg"),
        (7, "0007.png"),
        ("0007", "0007.png"),
        (7, "image7.jfif"),
        (7, "images/7.JPE"),
        ("Scan.PNG", "scan.png"),
        ("images/a b.png", "a b.png"),
        (".\\a\\b.png", "a/b.png"),
        ("caf\u00e9.png", "cafe\u0301.png"),  # as a Mac stores it
        (7, "7.heic"),  # so that the report names it, and what to convert it to
    ],
)
def test_an_image_is_found_by_its_name(tmp_path: Path, image_id: object, name: str) -> None:
    write(tmp_path, "train", [image_id], ["a"])
    touch(tmp_path / "images", name)
    (path,) = load_folder(tmp_path, "train").images.values()
    assert path == tmp_path / "images" / name


def test_the_field_image_names_a_file_as_an_image_id_does(tmp_path: Path) -> None:
    asked = [{"question_id": 1, "image_id": 1, "image": "A.PNG", "question": "what?"}]
    write(tmp_path, "train", [1], ["a"])
    (tmp_path / "test_questions.json").write_text(json.dumps({"questions": asked}))
    touch(tmp_path / "images", "x/a.png", "1.png")
    (path,) = load_folder(tmp_path, "test").images.values()
    assert path == tmp_path / "images/x/a.png"


def test_images_of_one_name_are_told_apart(tmp_path: Path) -> None:
    write(tmp_path, "train", [1], ["a"])
    touch(tmp_path / "images", "a/1.png", "b/1.png")
    with pytest.raises(UserError, match=r"image 1 exists 2 times: a/1\.png, b/1\.png; keep one"):
        load_folder(tmp_path, "train")


def test_fields_that_may_be_absent_may_be_null(tmp_path: Path) -> None:
    write(tmp_path, "train", [1], ["a"])
    given = {"question_id": 0, "answers": ["a"], "multiple_choice_answer": None}
    annotations = {"annotations": [{**given, "answer_type": None}]}
    (tmp_path / "train_annotations.json").write_text(json.dumps(annotations))
    assert load_folder(tmp_path, "train").examples[0].answer == "a"


def test_swapped_files_are_called_so(tmp_path: Path) -> None:
    write(tmp_path, "train", [1], ["a"])
    (tmp_path / "train_questions.json").rename(tmp_path / "other")
    (tmp_path / "train_annotations.json").rename(tmp_path / "train_questions.json")
    (tmp_path / "other").rename(tmp_path / "train_annotations.json")
    with pytest.raises(UserError, match="swapped"):
        load_folder(tmp_path, "train")


def test_every_split_may_number_its_images(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write(tmp_path, split, [1], ["a"])
        touch(tmp_path / "images", f"{split}/1.png")
    train, val = (load_folder(tmp_path, split) for split in ("train", "val"))
    assert train.images == {"train/1.png": tmp_path / "images/train/1.png"}
    assert val.images == {"val/1.png": tmp_path / "images/val/1.png"}


@pytest.mark.parametrize(
    ("questions", "annotations"),
    [
        ("Questions/train_questions.json", "Annotations/train_annotations.json"),
        ("train/questions.json", "train/annotations.json"),
        ("train/train_questions.json", "train/train_annotations.json"),
        ("Training_Questions.JSON", "Training_Annotations.JSON"),
    ],
)
def test_question_files_are_found_as_people_keep_them(
    tmp_path: Path, questions: str, annotations: str
) -> None:
    write(tmp_path / "made", "train", [1], ["a"])
    touch(tmp_path / "mine/images", "1.png")
    for name, place in (("questions", questions), ("annotations", annotations)):
        path = tmp_path / "mine" / place
        path.parent.mkdir(exist_ok=True)
        (tmp_path / f"made/train_{name}.json").rename(path)
    assert len(load_folder(tmp_path / "mine", "train").examples) == 1


@pytest.mark.parametrize("name", ["images", "train_questions.json"])
def test_a_link_that_leads_nowhere_is_named(tmp_path: Path, name: str) -> None:
    write(tmp_path, "train", [1], ["a"])
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).symlink_to("/scratch/that/was/purged")
    with pytest.raises(UserError, match=rf"{name}: .*/scratch/that/was/purged, which is missing"):
        load_folder(tmp_path, "train")


def test_one_answer_is_enough_and_an_empty_one_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "train", [1], ["a"])
    path = tmp_path / "train_annotations.json"
    path.write_text(json.dumps({"annotations": [{"question_id": 0, "answer": "red"}]}))
    assert load_folder(tmp_path, "train").examples[0].answers == ("red",)
    path.write_text(json.dumps({"annotations": [{"question_id": 0, "answers": [" "]}]}))
    with pytest.raises(UserError, match="question 0: the answer is empty"):
        load_folder(tmp_path, "train")


def test_links_hidden_files_and_a_folder_in_its_own_name(tmp_path: Path) -> None:
    inner = tmp_path / "mine" / "mine"
    write(inner, "train", [7], ["a"])
    (inner / "._train_questions.json").write_bytes(b"\x00")
    (inner / "MultipleChoice_train_questions.json").write_text("{}")
    touch(tmp_path / "disk", "7.png")
    (tmp_path / "disk" / "._7.png").touch()
    (tmp_path / "disk" / "loop").symlink_to(tmp_path / "disk")
    (inner / "images").mkdir()
    (inner / "images" / "photos").symlink_to(tmp_path / "disk")
    images = load_folder(tmp_path / "mine", "train").images
    assert images == {"7": inner / "images" / "photos" / "7.png"}


def test_spellings_of_an_answer_are_one_class(tmp_path: Path) -> None:
    write(tmp_path, "train", [1, 2, 3], ["Yes", "yes ", "YES"])
    touch(tmp_path / "images", "1.png", "2.png", "3.png")
    assert {e.answer for e in load_folder(tmp_path, "train").examples} == {"yes"}


def test_ok_vqa_is_not_taken_for_vqa(tmp_path: Path) -> None:
    asked = [{"question_id": 1, "image_id": 9, "question": "what?"}]
    given = [{"question_id": 1, "image_id": 9, "answers": ["a"] * 10}]
    questions = tmp_path / "OpenEnded_mscoco_val2014_questions.json"
    questions.write_text(json.dumps({"questions": asked}))
    annotations = tmp_path / "mscoco_val2014_annotations.json"
    annotations.write_text(json.dumps({"annotations": given}))
    with pytest.raises(UserError, match="OK-VQA"):
        vqa.load(tmp_path, "v1", "val")


def test_counts_overlap_coverage_and_damage_are_reported(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    (tmp_path / "b.png").write_text("not an image")

    def split(name: str, question: str, answer: str) -> Split:
        images = {key: tmp_path / f"{key}.png" for key in "abc"}
        return Split("x", name, [Example(1, "a", question, (answer,), answer)], images)

    train, test = split("train", "one", "red"), split("test", "long " * 27, "blue")
    report = "\n".join(report_lines(survey(train, test)))
    assert "2 images are missing or damaged" in report and "b.png" in report and "c.png" in report
    assert " 0.0% of test" in report
    notes = data_notes(train, test)
    assert any("1 of 1 questions of test" in note for note in notes)
    assert any("has more than 26 words and is truncated" in note for note in notes)
    assert any("3 images are in both" in note for note in notes)
    assert "train: 1 question about 3 images\n" in report
    official = Split("vqa-v1", "train", train.examples, {})
    assert "248,349" in data_notes(official, official)[0]


def test_a_single_image_is_not_several(tmp_path: Path) -> None:
    image = {"a": tmp_path / "a.png"}
    train, test = (Split("x", name, [], image) for name in ("train", "test"))
    lines = report_lines(survey(train, test))
    assert "train: 0 questions about 1 image" in lines
    assert any(line.startswith("train: 1 image is missing or damaged: ") for line in lines)
    assert "1 image is in both train and test" in lines


def test_a_folder_to_train_on_by_folds_needs_no_test_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "train", ["a.png", "a.png"], ["red", "blue"])
    touch(tmp_path, "images/a.png")
    assert check.main([str(tmp_path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [split["name"] for split in facts["splits"]] == ["train"]
    assert facts["shared_images"] == 0 and any("--folds" in note for note in facts["notes"])
    (tmp_path / "test.parquet").touch()  # a test split that cannot be read is not an absent one
    with pytest.raises(UserError, match=r"test\.parquet"):
        check.main([str(tmp_path)])
