"""VQA v1 and v2 as published, and any folder of JSON files of the same form with pictures.

Sources: Antol et al., "VQA" (arXiv 1505.00468); Goyal et al., "Making the V in VQA Matter"
(arXiv 1612.00837).
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from vqa_repro.data.sources import Source, find, find_folder
from vqa_repro.data.types import Example, Split
from vqa_repro.utils.errors import UserError

VERSIONS = ("v1", "v2")
ANSWERS = 10  # people asked per question of VQA v1 and v2

# Split -> its published subsets, and which pictures of each by the parity of the COCO id
# (None: all). SAN trains on train + one half of val and tests on the other (arXiv 1511.02274,
# section 4.1). Its files of the halves are not to be had, so the halves here are our own: val1
# has the pictures with an even COCO id, val2 those with an odd one.
_SUBSETS: dict[str, tuple[tuple[str, int | None], ...]] = {
    "train": (("train2014", None),),
    "val": (("val2014", None),),
    "test2015": (("test2015", None),),
    "test-dev2015": (("test-dev2015", None),),
    "trainval": (("train2014", None), ("val2014", None)),
    "val1": (("val2014", 0),),
    "val2": (("val2014", 1),),
    "train+val1": (("train2014", None), ("val2014", 0)),
}
SPLITS = tuple(_SUBSETS)
_ZIPS = {"train2014": "Train", "val2014": "Val", "test2015": "Test", "test-dev2015": "Test"}

_PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def load(root: Path, version: str, split: str) -> Split:
    """Read ``split`` of VQA ``version`` ("v1", "v2") from the official files below ``root``.

    The JSON files and pictures have the names they were published under
    (v2_OpenEnded_mscoco_train2014_questions.json, train2014/COCO_train2014_000000000009.jpg);
    the zips of the JSON files need not be unpacked.
    """
    examples: list[Example] = []
    images: dict[str, Path] = {}
    for subset, parity in _subsets(split):
        # test-dev asks about a part of the pictures of test2015.
        folder_name = subset.replace("-dev", "")
        pictures = find_folder(root, folder_name) or root / folder_name

        def key(question: dict[str, Any], prefix: str = f"COCO_{folder_name}_") -> str:
            return f"{prefix}{question['image_id']:012d}"

        found = _read(*_official_files(root, version, subset), key, official=True)
        if parity is not None:
            found = [example for example in found if int(example.image[-12:]) % 2 == parity]
        examples += found
        images |= {example.image: pictures / f"{example.image}.jpg" for example in found}
    return Split(f"vqa-{version}", split, examples, images)


def load_folder(folder: Path, split: str) -> Split:
    """Read ``split`` from a folder of one's own: VQA-format JSON files and pictures.

    The files are called by the split and by what they hold, in any order and with anything
    around it: ``train_questions.json`` and ``train_annotations.json``. A lone pair that names
    no split is the split "train". Annotations may be absent for a split whose name begins with
    "test". Every question has one answer or more, as a list of strings or of VQA's
    ``{"answer": ...}``; the label is ``multiple_choice_answer`` or, without it, the answer
    given most often.

    The pictures lie in ``folder/images`` at any depth (or in ``folder``, without one). The
    picture of a question is the file named by its field "image" or, without that, the one
    called by its image id: ``9.png``, ``000000000009.jpg``, ``COCO_val2014_000000000009.jpg``.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    questions = _own_file(folder, "questions", split)
    if questions is None:
        there = ", ".join(sorted(path.name for path in folder.glob("*.json"))) or "none"
        raise UserError(f"{folder}: no {split}_questions.json; the JSON files there: {there}")
    annotations = _own_file(folder, "annotations", split)
    if annotations is None and not split.startswith("test"):
        raise UserError(f"{folder}: {questions.name} has no {split}_annotations.json beside it")

    pictures = folder / "images" if (folder / "images").is_dir() else folder
    by_id = _pictures_by_id(pictures)
    images: dict[str, Path] = {}

    def key(question: dict[str, Any]) -> str:
        name = question.get("image")
        if name is not None:
            path = PurePosixPath(name) if isinstance(name, str) else None
            if path is None or path.is_absolute() or ".." in path.parts or not path.name:
                raise ValueError(f'"image" is {name!r}, not a file name below {pictures}')
            images[str(path)] = pictures / path
            return str(path)
        image_id = str(question["image_id"])
        found = by_id.get(image_id, [pictures / f"{image_id}.jpg"])
        if len(found) > 1:
            raise ValueError(f"image {image_id} is there {len(found)} times: {_list(found)}")
        images[image_id] = found[0]
        return image_id

    source = Source(annotations) if annotations else None
    examples = _read(Source(questions), source, key)
    return Split(folder.resolve().name, split, examples, images)


def read_files(questions: Path, annotations: Path) -> list[Example]:
    """The questions of one file with the answers of another, to score results against.

    ``Example.image`` is the image id alone: no picture is looked for.
    """
    return _read(Source(questions), Source(annotations), lambda question: str(question["image_id"]))


def _subsets(split: str) -> tuple[tuple[str, int | None], ...]:
    if split not in _SUBSETS:
        raise UserError(f"VQA has no split {split!r}; there are {', '.join(SPLITS)}")
    return _SUBSETS[split]


def _official_files(root: Path, version: str, subset: str) -> tuple[Source, Source | None]:
    """The questions, and the annotations but for the test sets, whose answers are hidden."""
    prefix = {"v1": "", "v2": "v2_"}[version]
    part = _ZIPS[subset]
    questions = find(
        root,
        f"{prefix}OpenEnded_mscoco_{subset}_questions.json",
        f"{prefix}Questions_{part}_mscoco.zip",
    )
    if part == "Test":
        return questions, None
    return questions, find(
        root,
        f"{prefix}mscoco_{subset}_annotations.json",
        f"{prefix}Annotations_{part}_mscoco.zip",
    )


def _read(
    questions: Source,
    annotations: Source | None,
    key: Callable[[dict[str, Any]], str],
    official: bool = False,
) -> list[Example]:
    """Join two files of the VQA format; the order is that of ``questions``.

    ``key`` names the picture of a question record; its ``ValueError`` says what is wrong there.
    """
    asked = _records(questions, "questions")
    answered = _records(annotations, "annotations") if annotations else {}
    for question_id in answered:
        if question_id not in asked:
            raise UserError(f"{annotations}: question {question_id} is not in {questions}")
    examples = []
    for question_id, question in asked.items():
        try:
            text = question.get("question")
            if not isinstance(text, str) or not text.strip():
                raise ValueError('no "question", or an empty one')
            _check_text(text)
            image_id = question.get("image_id")
            if type(image_id) is not int and (official or not isinstance(image_id, str)):
                raise ValueError('no "image_id"' if image_id is None else f"image_id {image_id!r}")
            image = key(question)
        except ValueError as error:
            raise UserError(f"{questions}: question {question_id}: {error}") from None
        if annotations is None:
            examples.append(Example(question_id, image, text, (), None))
            continue
        annotation = answered.get(question_id)
        if annotation is None:
            raise UserError(f"{questions}: question {question_id} has no answer in {annotations}")
        try:
            if annotation.get("image_id", image_id) != image_id:
                raise ValueError(
                    f"image_id {annotation['image_id']}, but {image_id} in the question"
                )
            answers = _answers(annotation)
            if official and len(answers) != ANSWERS:
                raise ValueError(f"{len(answers)} answers instead of {ANSWERS}")
            examples.append(
                Example(
                    question_id,
                    image,
                    text,
                    answers,
                    _string(annotation, "multiple_choice_answer") or _most_common(answers),
                    _string(annotation, "answer_type"),
                    _string(annotation, "question_type"),
                )
            )
        except ValueError as error:
            raise UserError(f"{annotations}: question {question_id}: {error}") from None
    return examples


def _records(source: Source, field: str) -> dict[int, dict[str, Any]]:
    """The records of the list ``field``, by their question id."""
    content = source.json()
    if not isinstance(content, dict) or not isinstance(content.get(field), list):
        raise UserError(f'{source}: not a VQA file: no list called "{field}" at its top')
    records: dict[int, dict[str, Any]] = {}
    for number, record in enumerate(content[field], start=1):
        question_id = record.get("question_id") if isinstance(record, dict) else None
        # True would pass isinstance; what does not fit 64 bits cannot go into an array.
        if type(question_id) is not int or abs(question_id) >= 2**63:
            raise UserError(f"{source}: record {number} of {field}: no whole number question_id")
        if question_id in records:
            raise UserError(f"{source}: record {number} of {field}: question {question_id} again")
        records[question_id] = record
    if not records:
        raise UserError(f"{source}: no {field} in it")
    return records


def _answers(annotation: dict[str, Any]) -> tuple[str, ...]:
    found = annotation.get("answers")
    if not isinstance(found, list) or not found:
        raise ValueError('no "answers"')
    answers = []
    for number, entry in enumerate(found, start=1):
        answer = entry.get("answer") if isinstance(entry, dict) else entry
        if not isinstance(answer, str):
            raise ValueError(f"answer {number} is {answer!r}, not text")
        _check_text(answer)
        answers.append(answer)
    return tuple(answers)


def _most_common(answers: Iterable[str]) -> str:
    return Counter(answers).most_common(1)[0][0]


def _string(record: dict[str, Any], field: str) -> str:
    value = record.get(field, "")
    if not isinstance(value, str):
        raise ValueError(f'"{field}" is {value!r}, not text')
    _check_text(value)
    return value


def _check_text(text: str) -> None:
    """JSON can hold halves of a character ("\\ud83d"), which no file can be written with."""
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"{text!r} holds half a character")


def _own_file(folder: Path, what: str, split: str) -> Path | None:
    """The JSON file of ``folder`` whose name has ``what`` and the word ``split`` in it.

    "train2014" holds the word "train", "trainval" does not.
    """
    files = sorted(folder.glob(f"*{what}*.json"))
    word = re.compile(rf"(?<![a-z]){re.escape(split.lower())}(?![a-z])")
    named = [path for path in files if word.search(path.name.lower())]
    if not named and split == "train" and len(files) == 1:
        named = [path for path in files if path.name == f"{what}.json"]
    if len(named) > 1:
        raise UserError(f"{folder}: {len(named)} files for the {what} of {split}: {_list(named)}")
    return named[0] if named else None


def _pictures_by_id(folder: Path) -> dict[str, list[Path]]:
    """Image id -> the pictures below ``folder`` called by it."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in _PICTURE_SUFFIXES:
            padded = re.fullmatch(r"(?:COCO_\w+_)?(\d{12})", path.stem)
            image_id = str(int(padded[1])) if padded else path.stem
            found.setdefault(image_id, []).append(path)
    return found


def _list(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths)
