"""VQA v1, v2 and own folders: files that are read, and files refused with one clear line."""

import hashlib
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vqa_repro.data import sources, vqa
from vqa_repro.data.folder import load_folder
from vqa_repro.features.extraction import store_pixels
from vqa_repro.utils.errors import UserError

SHARED = Path(__file__).parents[3] / "shared" / "data"

Json = dict[str, Any]

QUESTIONS = {
    "v1": "OpenEnded_mscoco_{}_questions.json",
    "v2": "v2_OpenEnded_mscoco_{}_questions.json",
}
ANNOTATIONS = {"v1": "mscoco_{}_annotations.json", "v2": "v2_mscoco_{}_annotations.json"}


def questions(*image_ids: int) -> Json:
    return {
        "questions": [
            {"image_id": i, "question": f"What is in {i}?", "question_id": 10 * i}
            for i in image_ids
        ]
    }


def annotations(*image_ids: int, answers: int = 10) -> Json:
    return {
        "annotations": [
            {
                "image_id": i,
                "question_id": 10 * i,
                "question_type": "what is",
                "answer_type": "other",
                "multiple_choice_answer": "dog",
                "answers": [
                    {"answer": "dog" if k else "cat", "answer_id": k} for k in range(answers)
                ],
            }
            for i in image_ids
        ]
    }


def write(folder: Path, version: str, subset: str, *image_ids: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / QUESTIONS[version].format(subset)).write_text(json.dumps(questions(*image_ids)))
    if not subset.startswith("test"):
        path = folder / ANNOTATIONS[version].format(subset)
        path.write_text(json.dumps(annotations(*image_ids)))


def refusal(read: Callable[[], object]) -> str:
    with pytest.raises(UserError) as error:
        read()
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("where", [".", "vqa", "data/vqa/json"])
def test_official_files_are_found(tmp_path: Path, version: str, where: str) -> None:
    write(tmp_path / where, version, "train2014", 9, 25)
    (tmp_path / "coco" / "train2014").mkdir(parents=True)
    split = vqa.load(tmp_path, version, "train")
    assert (split.data, split.name) == (f"vqa-{version}", "train")
    first = split.examples[0]
    assert (first.question_id, first.question) == (90, "What is in 9?")
    assert first.image == "COCO_train2014_000000000009"
    assert first.answers == ("cat",) + ("dog",) * 9
    assert (first.answer, first.answer_type, first.question_type) == ("dog", "other", "what is")
    picture = tmp_path / "coco" / "train2014" / "COCO_train2014_000000000009.jpg"
    assert split.images[first.image] == picture
    assert len(split.images) == 2


def test_zips_are_read_in_place(tmp_path: Path) -> None:
    write(tmp_path / "made", "v1", "val2014", 1)
    with zipfile.ZipFile(tmp_path / "Questions_Val_mscoco.zip", "w") as archive:
        name = QUESTIONS["v1"].format("val2014")
        archive.write(tmp_path / "made" / name, name)
        archive.writestr("MultipleChoice_mscoco_val2014_questions.json", "{}")
        archive.writestr("__MACOSX/._x", "")
    with zipfile.ZipFile(tmp_path / "Annotations_Val_mscoco.zip", "w") as archive:
        name = ANNOTATIONS["v1"].format("val2014")
        archive.write(tmp_path / "made" / name, f"annotations/{name}")
    for path in (tmp_path / "made").iterdir():
        path.unlink()
    before = sorted(tmp_path.rglob("*"))
    assert [e.question_id for e in vqa.load(tmp_path, "v1", "val").examples] == [10]
    assert sorted(tmp_path.rglob("*")) == before


def test_linked_folders_are_followed(tmp_path: Path) -> None:
    write(tmp_path / "disk", "v2", "test2015", 9)
    root = tmp_path / "root"
    root.mkdir()
    (root / "vqa").symlink_to(tmp_path / "disk", target_is_directory=True)
    assert len(vqa.load(root, "v2", "test2015").examples) == 1


# Of the images 4 to 7, those whose question is in val1-questions: by the hash of its id.
VAL1 = [n for n in (4, 5, 6, 7) if hashlib.sha256(str(10 * n).encode()).digest()[0] % 2 == 0]


def test_splits(tmp_path: Path) -> None:
    write(tmp_path, "v2", "train2014", 1, 2)
    write(tmp_path, "v2", "val2014", 4, 5, 6, 7)
    write(tmp_path, "v2", "test2015", 8, 9)
    write(tmp_path, "v2", "test-dev2015", 9)
    read = {name: vqa.load(tmp_path, "v2", name) for name in vqa.SPLITS}
    ids = {name: [e.question_id // 10 for e in split.examples] for name, split in read.items()}
    assert ids == {
        "train": [1, 2],
        "val": [4, 5, 6, 7],
        "test2015": [8, 9],
        "test-dev2015": [9],
        "trainval": [1, 2, 4, 5, 6, 7],
        "val1": [4, 6],
        "val2": [5, 7],
        "train+val1": [1, 2, 4, 6],
        "val1-questions": VAL1,
        "val2-questions": [n for n in (4, 5, 6, 7) if n not in VAL1],
        "train+val1-questions": [1, 2, *VAL1],
    }
    for split in read.values():
        assert split.images.keys() == {example.image for example in split.examples}
    hidden = read["test-dev2015"].examples[0]
    assert (hidden.answers, hidden.answer) == ((), None)
    assert hidden.image == "COCO_test2015_000000000009"
    with pytest.raises(UserError, match="no split 'dev'; there are train, val"):
        vqa.load(tmp_path, "v2", "dev")


def test_missing_and_ambiguous_files_are_named(tmp_path: Path) -> None:
    missing = refusal(lambda: vqa.load(tmp_path, "v2", "train"))
    assert "v2_OpenEnded_mscoco_train2014_questions.json" in missing
    assert "v2_Questions_Train_mscoco.zip" in missing
    write(tmp_path / "a", "v2", "train2014", 1)
    write(tmp_path / "b", "v2", "train2014", 1)
    twice = refusal(lambda: vqa.load(tmp_path, "v2", "train"))
    assert "2 times" in twice and str(tmp_path / "a") in twice and str(tmp_path / "b") in twice
    assert "no such folder" in refusal(lambda: vqa.load(tmp_path / "none", "v2", "train"))


def change(records: Json, **fields: Any) -> Json:
    """Return ``records`` with fields of the second changed, or dropped where ... is given."""
    (found,) = records.values()
    for field, value in fields.items():
        if value is ...:
            del found[1][field]
        else:
            found[1][field] = value
    return records


@pytest.mark.parametrize(
    ("asked", "answered", "message"),
    [
        (change(questions(1, 2), image_id=...), None, 'question 20: no "image_id"'),
        (
            change(questions(1, 2), image_id="2"),
            None,
            "question 20: image_id is '2'",
        ),
        (change(questions(1, 2), image_id=True), None, "question 20: image_id is True"),
        (change(questions(1, 2), question=...), None, 'question 20: no "question"'),
        (change(questions(1, 2), question=" "), None, 'question 20: no "question"'),
        (change(questions(1, 2), question_id=...), None, 'questions: no "question_id"'),
        (
            change(questions(1, 2), question_id=True),
            None,
            "questions: question_id True",
        ),
        (change(questions(1, 2), question_id="20"), None, "questions: question_id '20' is text"),
        (change(questions(1, 2), question_id=2.0), None, "questions: question_id 2.0 is"),
        (change(questions(1, 2), question_id=2**63), None, f"question_id {2**63} is too large"),
        (
            change(questions(1, 2), question="\ud83d"),
            None,
            "question 20: '\\ud83d' contains half a",
        ),
        (change(questions(1, 2), question=7), None, 'question 20: no "question"'),
        (
            change(questions(1, 2), question_id=10),
            None,
            "record 2 of questions: duplicate question 10",
        ),
        ({"questions": [7]}, None, 'record 1 of questions: no "question_id"'),
        ([{"Image": 1, "Q": 2}], None, "a list of 1 records with the fields Image, Q"),
        ({"questions": []}, None, "questions.json: contains no questions"),
        ({"questions": {}}, None, 'not a VQA file: no list "questions"'),
        ([1], None, 'not a VQA file: no list "questions"'),
        (questions(1, 2, 3), None, "questions.json: question 30 has no answer in"),
        (questions(1), None, "annotations.json: question 20 is not in"),
        (None, change(annotations(1, 2), question_id=10), "annotations: duplicate question 10"),
        (None, change(annotations(1, 2), question_id="20"), "annotations: question_id '20' is"),
        (None, {"annotations": annotations(1)["annotations"]}, "question 20 has no answer in"),
        (None, change(annotations(1, 2), image_id=3), "question 20: image_id 3, but 2"),
        (None, change(annotations(1, 2), answers=...), 'question 20: no "answers"'),
        (None, change(annotations(1, 2), answers=[]), 'question 20: no "answers"'),
        (
            None,
            change(annotations(1, 2), answers="red"),
            "answers\" is 'red', not a list",
        ),
        (None, annotations(1, 2, answers=9), "question 10: 9 answers instead of 10"),
        (None, annotations(1, 2, answers=11), "question 10: 11 answers instead of 10"),
        (
            None,
            change(annotations(1, 2), answers=[{"answer": 3}] * 10),
            "question 20: answer 1 is 3, not text",
        ),
        (
            None,
            change(annotations(1, 2), answers=["yes"] * 9 + [None]),
            "question 20: answer 10 is None, not text",
        ),
        (
            None,
            change(annotations(1, 2), answers=["yes"] * 9 + ["\udc00"]),
            "question 20: '\\udc00' contains half a character",
        ),
        (
            None,
            change(annotations(1, 2), answer_type=3),
            'question 20: "answer_type" is 3, not text',
        ),
    ],
)
def test_structure_is_checked(tmp_path: Path, asked: Any, answered: Any, message: str) -> None:
    write(tmp_path, "v2", "val2014", 1, 2)
    if asked is not None:
        (tmp_path / QUESTIONS["v2"].format("val2014")).write_text(json.dumps(asked))
    if answered is not None:
        (tmp_path / ANNOTATIONS["v2"].format("val2014")).write_text(json.dumps(answered))
    error = refusal(lambda: vqa.load(tmp_path, "v2", "val"))
    assert message in error and str(tmp_path) in error


@pytest.mark.parametrize("names", [QUESTIONS, ANNOTATIONS])
def test_damaged_json(tmp_path: Path, names: dict[str, str]) -> None:
    write(tmp_path, "v2", "val2014", 1)
    path = tmp_path / names["v2"].format("val2014")
    whole = path.read_bytes()

    def error() -> str:
        return refusal(lambda: vqa.load(tmp_path, "v2", "val"))

    for size in range(len(whole)):  # a download may stop at any byte
        path.write_bytes(whole[:size])
        assert f"{path}: cut off JSON" in error() or f"{path}: broken JSON" in error()
    path.write_bytes(whole[:60])
    assert "cut off JSON" in error() and "of 60" in error()
    path.write_bytes(whole[:50] + b"\xff" + whole[51:])
    assert f"{path}: not UTF-8 text: byte 50" in error()
    path.write_text("[" * 100_000)
    assert "nested too deep" in error() or "cut off" in error()
    path.write_text('{"questions": ' + "1" * 5000 + "}")
    assert f"{path}: not a data set: Exceeds the limit" in error()
    path.write_bytes(b"\xef\xbb\xbf" + whole)  # as saved by Windows editors
    assert len(vqa.load(tmp_path, "v2", "val").examples) == 1


def test_damaged_zip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = QUESTIONS["v2"].format("test2015")
    path = tmp_path / "v2_Questions_Test_mscoco.zip"
    content = json.dumps(questions(*range(1, 500)))

    def make(*members: tuple[str, str]) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, text in members:
                archive.writestr(member, text)

    def error() -> str:
        message = refusal(lambda: vqa.load(tmp_path, "v2", "test2015"))
        assert str(path) in message
        return message

    make((name, content))
    whole = path.read_bytes()
    for size in (30, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert f"the zip is cut off (after {size:,} bytes)" in error()
    path.write_bytes(b"")
    assert "not a zip" in error()
    path.write_text("<html>404</html>")
    assert "not a zip" in error()
    path.write_bytes(whole[:200] + bytes(50) + whole[250:])
    assert "damaged" in error()
    at = whole.rindex(b"PK\x01\x02") + 8  # general purpose flags: bit 0, encrypted
    path.write_bytes(whole[:at] + struct.pack("<H", 1) + whole[at + 2 :])
    assert "encrypted" in error()
    for at in range(len(whole) - 200, len(whole)):  # the central directory at its end
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            assert len(vqa.load(tmp_path, "v2", "test2015").examples) == 499
        except UserError as raised:
            assert str(path) in str(raised) and "\n" not in str(raised)
    make(("readme.txt", ""))
    assert f"0 files called {name}" in error()
    make((name, content), (f"copy/{name}", content))
    assert "2 files called" in error()
    for unsafe in (f"../{name}", f"/{name}", f"a/../../{name}", f"..\\{name}"):
        make((unsafe, content))
        assert "unsafe name in the zip" in error()
    make((name, content))
    monkeypatch.setattr(sources, "MAX_BYTES", 1000)
    assert "more than 1,000" in error()
    assert not list(tmp_path.glob("**/*.json"))


def own(folder: Path, split: str, asked: Json, answered: Json | None) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{split}_questions.json").write_text(json.dumps(asked))
    if answered is not None:
        (folder / f"{split}_annotations.json").write_text(json.dumps(answered))


def test_folder_of_own_data(tmp_path: Path) -> None:
    asked = questions(1, 2, 3, 4)
    asked["questions"][1]["image"] = "sub/b.png"
    asked["questions"][3]["image_id"] = "photo-4"
    answered = annotations(1, 2, 3, 4, answers=1)
    answered["annotations"][1] |= {"answers": ["red", "blue", "blue"]}
    answered["annotations"][3]["image_id"] = "photo-4"
    for record in answered["annotations"][1:]:
        del record["multiple_choice_answer"]
    own(tmp_path, "train", asked, answered)
    own(tmp_path, "val", questions(1), annotations(1))
    own(tmp_path, "test", questions(1), None)
    images = tmp_path / "images"
    (images / "sub").mkdir(parents=True)
    for name in ("1.webp", "sub/b.png", "COCO_val2014_000000000003.jpg", "photo-4.JPG", "2.txt"):
        (images / name).touch()

    split = load_folder(tmp_path, "train")
    assert split.data == tmp_path.name
    assert [(e.image, e.answer) for e in split.examples] == [
        ("1", "dog"),
        ("sub/b.png", "blue"),
        ("3", "cat"),
        ("photo-4", "cat"),
    ]
    assert split.examples[1].answers == ("red", "blue", "blue")
    assert {key: path.relative_to(images).as_posix() for key, path in split.images.items()} == {
        "1": "1.webp",
        "sub/b.png": "sub/b.png",
        "3": "COCO_val2014_000000000003.jpg",
        "photo-4": "photo-4.JPG",
    }
    assert len(load_folder(tmp_path, "val").examples) == 1
    assert load_folder(tmp_path, "test").examples[0].answer is None
    (images / "1.webp").unlink()
    assert load_folder(tmp_path, "val").images == {"1": images / "1.jpg"}


def test_own_images_of_any_size_and_missing_ones(tmp_path: Path) -> None:
    own(tmp_path, "train", questions(1, 2, 3), annotations(1, 2, 3, answers=1))
    (tmp_path / "images").mkdir()
    for number, size in ((1, (1, 1)), (2, (900, 7))):
        Image.new("RGB", size, "red").save(tmp_path / "images" / f"{number}.png")
    images = load_folder(tmp_path, "train").images
    absent = f"1 of 3 images is missing or damaged: {tmp_path / 'images' / '3.jpg'} (missing)"
    assert absent in refusal(lambda: store_pixels(images, tmp_path / "p.safetensors", 8))
    Image.new("RGB", (50, 3000)).save(tmp_path / "images" / "3.webp")
    images = load_folder(tmp_path, "train").images
    assert store_pixels(images, tmp_path / "p.safetensors", 8).rows.shape == (3, 8, 8, 3)


def test_a_lone_pair_is_train(tmp_path: Path) -> None:
    (tmp_path / "questions.json").write_text(json.dumps(questions(1)))
    (tmp_path / "annotations.json").write_text(json.dumps(annotations(1)))
    (tmp_path / "1.png").touch()
    split = load_folder(tmp_path, "train")
    assert split.images == {"1": tmp_path / "1.png"}
    error = refusal(lambda: load_folder(tmp_path, "val"))
    assert "no val_questions.json" in error and "annotations.json, questions.json" in error


def test_official_names_make_a_folder_too(tmp_path: Path) -> None:
    write(tmp_path, "v2", "train2014", 1)
    write(tmp_path, "v2", "val2014", 2, 3)
    assert len(load_folder(tmp_path, "train").examples) == 1
    assert len(load_folder(tmp_path, "val").examples) == 2


def test_bad_folder(tmp_path: Path) -> None:
    def error() -> str:
        return refusal(lambda: load_folder(tmp_path, "train"))

    assert "no train_questions.json" in error() and str(tmp_path) in error()
    own(tmp_path, "train", questions(1), None)
    assert "train_questions.json has no train_annotations.json next to it" in error()
    for name in ("../x.png", "/x.png", "", 7):
        asked = questions(1)
        asked["questions"][0]["image"] = name
        own(tmp_path, "train", asked, annotations(1))
        assert f'question 10: "image" is {name!r}, not a file name below' in error()
    own(tmp_path, "train", questions(1), annotations(1))
    (tmp_path / "1.png").touch()
    (tmp_path / "1.jpg").touch()
    assert "question 10: image 1 exists 2 times: 1.jpg, 1.png" in error()
    (tmp_path / "my_train_questions.json").touch()
    assert "2 files for the questions of train" in error()
    assert "no such folder" in refusal(lambda: load_folder(tmp_path / "no", "train"))


def test_read_files(tmp_path: Path) -> None:
    own(tmp_path, "x", questions(1, 2), annotations(1, 2, answers=2))
    asked, answered = tmp_path / "x_questions.json", tmp_path / "x_annotations.json"
    examples = vqa.read_files(asked, answered)
    assert [example.answers for example in examples] == [("cat", "dog")] * 2
    missing = refusal(lambda: vqa.read_files(tmp_path / "no.json", answered))
    assert missing == f"{tmp_path / 'no.json'}: cannot be read: No such file or directory"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the VQA v2 subset is not there")
def test_real_questions() -> None:
    val = vqa.load(SHARED, "v2", "val")
    assert len(val.examples) == 8977 and len(val.images) == 8260
    halves = [vqa.load(SHARED, "v2", name).examples for name in ("val1", "val2")]
    assert [len(half) for half in halves] == [4498, 4479]
    assert {e.image for e in halves[0]}.isdisjoint(e.image for e in halves[1])
    drawn = [vqa.load(SHARED, "v2", f"val{n}-questions").examples for n in (1, 2)]
    ids = [{e.question_id for e in half} for half in drawn]
    assert ids[0].isdisjoint(ids[1]) and len(ids[0] | ids[1]) == 8977
    assert abs(len(ids[0]) - len(ids[1])) < 500
    assert {e.image for e in drawn[0]} & {e.image for e in drawn[1]}


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the VQA v2 subset is not there")
def test_real_training_questions() -> None:
    assert len(vqa.load(SHARED, "v2", "train").examples) == 48061
