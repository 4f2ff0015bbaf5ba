"""DAQUAR as published: pairs of lines, image numbers, the two variants."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from vqa_repro.data import daquar
from vqa_repro.data.types import Split
from vqa_repro.utils.errors import UserError

SHARED = Path(__file__).parents[3] / "shared" / "data"

LINES = [
    "what is on the right side of the black telephone in the image3 ?",
    "desk",
    "what is in front of the table in the image7 ?",
    "chair, garbage_bin",
    "what is on the right side of the image3 ?",
    "door",
    "what is to the left of the image3 in the image3 ?",
    "lamp",
    "how many chairs are there in this image3 ?",
    "2",
    "how many drawers are visible in th eimage9 ?",
    "1",
]


def write(folder: Path, lines: list[str], name: str = "qa.894.raw.train.txt") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return path


def test_questions_and_answers(tmp_path: Path) -> None:
    write(tmp_path / "daquar", LINES)
    split = daquar.load(tmp_path, "train")
    assert (split.data, split.name) == ("daquar", "train")
    assert [(e.question_id, e.image, e.question, e.answer) for e in split.examples] == [
        (0, "image3", "what is on the right side of the black telephone ?", "desk"),
        (1, "image7", "what is in front of the table ?", "chair, garbage_bin"),
        (2, "image3", "what is on the right side of the image ?", "door"),
        (3, "image3", "what is to the left of the image ?", "lamp"),
        (4, "image3", "how many chairs are there ?", "2"),
        (5, "image9", "how many drawers are visible in th eimage ?", "1"),
    ]
    assert all(example.answers == (example.answer,) for example in split.examples)


def test_single_answers(tmp_path: Path) -> None:
    write(tmp_path, LINES)
    kept = daquar.single_answers(daquar.load(tmp_path, "train"))
    assert [example.question_id for example in kept.examples] == [0, 2, 3, 4, 5]
    assert kept.images.keys() == {"image3", "image9"}


def test_images_next_to_the_questions(tmp_path: Path) -> None:
    write(tmp_path / "daquar", LINES)
    images = tmp_path / "daquar" / "images"
    images.mkdir()
    (images / "image3.jpg").touch()
    assert daquar.load(tmp_path, "train").images == {
        "image3": images / "image3.jpg",
        "image7": images / "image7.png",  # the published layout, without files
        "image9": images / "image9.png",
    }


def test_images_as_the_archive_unpacks(tmp_path: Path) -> None:
    write(tmp_path / "text", LINES)
    images = tmp_path / "pictures" / "nyu_depth_images"
    images.mkdir(parents=True)
    assert daquar.load(tmp_path, "train").images["image3"] == images / "image3.png"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (LINES[:-1], "11 lines, which are no pairs of question and answer"),
        ([], "0 lines"),
        ([*LINES[:2], "what is there ?", "sofa"], "line 3: the question names no picture"),
        ([*LINES[:2], "is image3 like image4 ?", "no"], "line 3: the question names 2 pictures"),
        (["what in the image3 ?", "", "what in the image4 ?", "bed"], "line 2 is empty"),
        (["desk", "what in the image3 ?"], "line 1: the question names no picture"),
    ],
)
def test_structure_is_checked(tmp_path: Path, lines: list[str], message: str) -> None:
    path = write(tmp_path, lines)
    with pytest.raises(UserError) as error:
        daquar.load(tmp_path, "train")
    assert message in str(error.value) and str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no qa\.37\.raw\.reduced\.test\.txt"):
        daquar.load_reduced(tmp_path, "test")
    with pytest.raises(UserError, match="no split 'val'; there are train, test"):
        daquar.load(tmp_path, "val")


@pytest.mark.skipif(not SHARED.is_dir(), reason="DAQUAR is not there")
@pytest.mark.parametrize(
    ("load", "name", "questions", "pictures", "single"),
    [
        (daquar.load, "train", 6795, 794, 6149),
        (daquar.load, "test", 5673, 653, 5076),
        (daquar.load_reduced, "train", 3876, 781, 3825),
        (daquar.load_reduced, "test", 297, 25, 290),
    ],
)
def test_published_sizes(
    load: Callable[[Path, str], Split], name: str, questions: int, pictures: int, single: int
) -> None:
    split = load(SHARED, name)
    assert len(split.examples) == questions
    assert len(split.images) == pictures
    assert all(path.is_file() for path in split.images.values())
    assert not any(re.search(r"image\s*\d", example.question) for example in split.examples)
    assert len(daquar.single_answers(split).examples) == single
