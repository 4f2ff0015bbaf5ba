"""COCO-QA as published: four text files per split, in the zip or unpacked."""

import zipfile
from pathlib import Path

import pytest

from vqa_repro.data import coco_qa
from vqa_repro.evaluation.vqa_accuracy import score
from vqa_repro.utils.errors import UserError

FIELDS = {
    "questions": ["what is on the grass", "how many dogs", "what is the color of the cat", "where"],
    "answers": ["dog", "two", "black", "room"],
    "img_ids": ["9", "25", "9", "581929"],
    "types": ["0", "1", "2", "3"],
}


def write(root: Path, split: str, **fields: list[str]) -> Path:
    folder = root / split
    folder.mkdir(parents=True, exist_ok=True)
    for field, lines in (FIELDS | fields).items():
        (folder / f"{field}.txt").write_text("\n".join(lines) + "\n")
    return folder


def test_unpacked(tmp_path: Path) -> None:
    write(tmp_path / "cocoqa", "train")
    (tmp_path / "train2014").mkdir()
    split = coco_qa.load(tmp_path, "train")
    assert (split.data, split.name) == ("coco-qa", "train")
    assert [(e.question_id, e.question, e.answers, e.answer_type) for e in split.examples] == [
        (0, "what is on the grass", ("dog",), "object"),
        (1, "how many dogs", ("two",), "number"),
        (2, "what is the color of the cat", ("black",), "color"),
        (3, "where", ("room",), "location"),
    ]
    assert [e.answer for e in split.examples] == FIELDS["answers"]
    image = "COCO_train2014_000000581929"
    assert split.examples[3].image == image
    assert split.images[image] == tmp_path / "train2014" / f"{image}.jpg"
    assert len(split.images) == 3


@pytest.mark.parametrize("inside", ["", "cocoqa/"])
def test_zipped(tmp_path: Path, inside: str) -> None:
    made = write(tmp_path / "made", "test")
    root = tmp_path / "root"
    root.mkdir()
    with zipfile.ZipFile(root / "cocoqa-2015-05-17.zip", "w") as archive:
        for path in made.iterdir():
            archive.write(path, f"{inside}test/{path.name}")
            archive.writestr(f"{inside}train/{path.name}", "other")
    split = coco_qa.load(root, "test")
    assert len(split.examples) == 4
    assert split.examples[0].image == "COCO_val2014_000000000009"


def test_accuracy_per_class(tmp_path: Path) -> None:
    write(tmp_path, "test")
    examples = coco_qa.load(tmp_path, "test").examples
    assert score({0: "dog", 1: "one", 2: "Black", 3: "rooms"}, examples) == {
        "overall": 50.0,
        "per_answer_type": {"object": 100.0, "number": 0.0, "color": 100.0, "location": 0.0},
        "per_question_type": {},
    }


@pytest.mark.parametrize(
    ("field", "lines", "message"),
    [
        (
            "answers",
            ["dog", "two", "black"],
            "differ in length: questions.txt 4, answers.txt 3",
        ),
        ("types", ["0"] * 5, "img_ids.txt 4, types.txt 5"),
        ("types", ["0", "1", "4", "3"], "types.txt: line 3: not a type from 0 to 3: '4'"),
        ("types", ["0", "1", "x", "3"], "types.txt: line 3: not a type from 0 to 3: 'x'"),
        ("img_ids", ["9", "a.jpg", "9", "9"], "img_ids.txt: line 2: not a COCO id: 'a.jpg'"),
        ("answers", ["dog", "", "black", "room"], "answers.txt: line 2 is empty"),
        ("questions", ["", "b", "c", "d"], "questions.txt: line 1 is empty"),
    ],
)
def test_structure_is_checked(tmp_path: Path, field: str, lines: list[str], message: str) -> None:
    folder = write(tmp_path, "train", **{field: lines})
    with pytest.raises(UserError) as error:
        coco_qa.load(tmp_path, "train")
    assert message in str(error.value) and str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_empty_files(tmp_path: Path) -> None:
    write(tmp_path, "train", questions=[], answers=[], img_ids=[], types=[])
    with pytest.raises(UserError, match=r"questions\.txt 0, answers\.txt 0"):
        coco_qa.load(tmp_path, "train")


def test_damaged_zip(tmp_path: Path) -> None:
    made, path = write(tmp_path / "made", "test"), tmp_path / "root" / "cocoqa-2015-05-17.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        for file in made.iterdir():
            archive.write(file, f"test/{file.name}")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cocoqa-2015-05-17\.zip: the zip is cut off"):
        coco_qa.load(path.parent, "test")
    path.write_bytes(whole.replace(b"how many dogs", b"how many cats"))
    with pytest.raises(UserError, match=r"test/questions\.txt: damaged: Bad CRC-32"):
        coco_qa.load(path.parent, "test")


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no train/questions\.txt nor cocoqa-2015-05-17\.zip"):
        coco_qa.load(tmp_path, "train")
    with pytest.raises(UserError, match="no split 'val'; there are train, test"):
        coco_qa.load(tmp_path, "val")
