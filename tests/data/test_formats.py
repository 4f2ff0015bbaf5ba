"""Question files of other formats, on made-up files of a record or two."""

import json
from pathlib import Path

import pytest

from vqa_repro.data.folder import load_folder
from vqa_repro.utils.errors import UserError

ASKED = {"question": "What is it?"}


def make(folder: Path, name: str, content: object, image: str) -> None:
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    (folder / image).parent.mkdir(parents=True, exist_ok=True)
    (folder / image).touch()


TEN = [{"answer": "Red"}] * 6 + [{"answer": "pink"}] * 4
LAYOUTS = [
    ("train.csv", "Image,Question,Answer\na.png,What is it?,Red \n", "images/a.png"),
    ("train.csv", 'img_name;query;label\nx/a.png;"What is it?";Red\n', "images/x/a.png"),
    ("Train.CSV", "Image,Question,Answer\na.png,What is it?,Red\n", "images/a.png"),
    (
        "train.csv",
        "image,question,answer\na.png,What is it?,\"['Red' 'red'\n 'x']\"\n",
        "images/a.png",
    ),
    (
        "train.csv",
        'image;question;answer\na.png;What is it?;"[""Red"", ""red""]"\n',
        "images/a.png",
    ),
    ("train.jsonl", json.dumps({"image": "a.png", "answer": "Red", **ASKED}), "images/a.png"),
    (
        "VQA_RAD Dataset Public.json",
        [
            {"image_name": "s.jpg", "answer": "RED\t", "phrase_type": "freeform", **ASKED},
            {"image_name": "s.jpg", "answer": 2, "phrase_type": "test_freeform", **ASKED},
        ],
        "VQA_RAD Image Folder/s.jpg",
    ),
    (
        "train.json",
        [
            {"img_name": "x1/source.jpg", "answer": "Red", "q_lang": "en", **ASKED},
            {"img_name": "x1/source.jpg", "answer": "?", "q_lang": "zh", **ASKED},
        ],
        "imgs/x1/source.jpg",
    ),
    ("train.json", [{"image": "V_0.jpg", "answers": TEN, **ASKED}], "train/V_0.jpg"),
    ("train.json", [{"image": "a.jpg", "answer": "Red", "answers": TEN, **ASKED}], "a.jpg"),
    (
        "train.json",  # CLEVR's fields
        {"info": {}, "questions": [{"image_filename": "a.png", "answer": "red", **ASKED}]},
        "images/a.png",
    ),
    (
        "TextVQA_0.5.1_train.json",
        {"data": [{"image_id": "0054c", "answers": ["Red", "red", "x"], **ASKED}]},
        "train_images/0054c.jpg",
    ),
    (
        "train_balanced_questions.json",
        {"07": {"imageId": "23", "answer": "red", **ASKED}},
        "images/23.jpg",
    ),
]


@pytest.mark.parametrize(("name", "content", "image"), LAYOUTS)
def test_layouts_are_read(tmp_path: Path, name: str, content: object, image: str) -> None:
    make(tmp_path, name, content, image)
    split = load_folder(tmp_path, "train")
    (example,) = split.examples
    assert (example.question, example.answer) == ("What is it?", "red")
    assert split.images[example.image] == tmp_path / image


def test_ok_vqa_in_its_own_folder(tmp_path: Path) -> None:
    asked = {"questions": [{"question_id": 1, "image_id": 9, **ASKED}]}
    given = {"annotations": [{"question_id": 1, "image_id": 9, "answers": TEN}]}
    image = "train2014/COCO_train2014_000000000009.jpg"
    make(tmp_path, "OpenEnded_mscoco_train2014_questions.json", asked, image)
    make(tmp_path, "mscoco_train2014_annotations.json", given, image)
    split = load_folder(tmp_path, "train")
    assert split.examples[0].answer == "red" and len(split.examples[0].answers) == 10
    assert list(split.images.values()) == [tmp_path / image]


@pytest.mark.parametrize(
    ("name", "content", "facts"),
    [
        ("train.csv", "picture,question\n", ["train.csv", "line 1", "image"]),
        (
            "train.csv",
            "image,question,answer\na.png,what?,\"[{'answer': 'red'}]\"\n",
            ["line 2", '["red", "pink"]'],
        ),
        ("train.jsonl", '[{"image": "a.png",\n', ["line 1", "NAME.json"]),
        ("train.csv", "image,question,answer,answer\na,what?,b,c\n", ["line 1", '"answer"']),
        ("train.csv", "image,question,reply\na.png,what?,b\n", ["answer", "reply"]),
        ("train.csv", 'image,question,answer\na,what?,b\na,"what?,b\n', ["line 3"]),
        ("train.jsonl", '{"image": "a", "question": "q", "answer": NaN}', ["line 1", "no answer"]),
        ("train.json", [{"image": ["a.png"], "answer": "b", **ASKED}], ["record 1", "['a.png']"]),
        (
            "train.json",
            [{"image": "iVBO" * 99, "answer": "b", **ASKED}],
            ["record 1", "image name", "iVBO"],
        ),
        ("train.json", [{"image": "a", "conversations": []}], ["record 1", "conversations"]),
        ("train.json", [{"image": "a", "answers": {"red": 1.0}, **ASKED}], ["{'red': 1.0}"]),
        ("train.json", {"rows": []}, ["train.json", "rows"]),
        ("train.csv", "image,question,answer\na.png,what?,\n", ["train.csv", "line 2", "answer"]),
        ("train.csv", "image,question,answer\n../a,what?,b\n", ["train.csv", "line 2", "../a"]),
        ("train.jsonl", '{"image": 1\n', ["train.jsonl", "line 1"]),
        ("train.json", [{"image": "a"}], ["train.json", "record 1", "question"]),
        ("data.parquet", "x", ["data.parquet", "PathVQA", "train.csv"]),
    ],
)
def test_errors_name_file_and_record(
    tmp_path: Path, name: str, content: object, facts: list[str]
) -> None:
    make(tmp_path, name, content, "images/a.png")
    with pytest.raises(UserError) as error:
        load_folder(tmp_path, "train")
    assert all(fact in str(error.value) for fact in facts)


def test_numbers_are_answers_and_the_label_may_be_one_of_several(tmp_path: Path) -> None:
    records = [{"answers": [3, 3.5, 3]}, {"answer": "no", "answers": ["yes", "yes", "no"]}]
    make(tmp_path, "train.json", [{"image": "a", **ASKED, **r} for r in records], "images/a.png")
    first, second = load_folder(tmp_path, "train").examples
    assert (first.answers, first.answer) == (("3", "3.5", "3"), "3")
    assert (second.answers, second.answer) == (("yes", "yes", "no"), "no")


def test_other_splits(tmp_path: Path) -> None:
    make(tmp_path, "validate.json", [{"image": "a.png", "answer": "b", **ASKED}], "images/a.png")
    make(tmp_path, "test.jsonl", json.dumps({"image": "a.png", **ASKED}), "images/a.png")
    assert load_folder(tmp_path, "val").examples[0].answer == "b"
    assert load_folder(tmp_path, "test").hidden


def test_text_of_other_encodings(tmp_path: Path) -> None:
    text = "image\tquestion\tanswer\na.png\tWhat is it?\trosé\n"
    make(tmp_path, "train.csv", text, "images/a.png")
    (tmp_path / "train.csv").write_bytes(text.encode("utf-16"))  # as Excel saves "Unicode text"
    assert load_folder(tmp_path, "train").examples[0].answer == "rosé"
    (tmp_path / "train.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="save it as UTF-8"):
        load_folder(tmp_path, "train")
    (tmp_path / "train.csv").write_bytes(b"PK\x03\x04\x14\x00\xff")
    with pytest.raises(UserError, match="Excel"):
        load_folder(tmp_path, "train")


def test_a_missing_split_names_the_files_that_are_there(tmp_path: Path) -> None:
    make(tmp_path, "train.ndjson", "", "images/a.png")
    with pytest.raises(UserError, match=r"no train_questions\.json.*train\.ndjson"):
        load_folder(tmp_path, "train")
    (tmp_path / "train.xlsx").touch()
    with pytest.raises(UserError, match=r"train\.xlsx: .*convert it to train\.csv"):
        load_folder(tmp_path, "train")
