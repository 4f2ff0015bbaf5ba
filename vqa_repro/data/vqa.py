"""VQA v1 and v2 as published, and any folder of JSON files of the same form with pictures.

Sources: Antol et al., "VQA" (arXiv 1505.00468); Goyal et al., "Making the V in VQA Matter"
(arXiv 1612.00837).
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
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

_IMAGE_SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
}


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
    name = folder.resolve().name
    inner = folder / name  # archives are often unpacked into a folder of their own name
    if inner.is_dir() and not any(folder.glob("*.json")):
        folder = inner
    questions = _own_file(folder, "questions", split)
    if questions is None:
        there = ", ".join(sorted(path.name for path in folder.glob("*.json"))) or "none"
        raise UserError(f"{folder}: no {split}_questions.json; the JSON files there: {there}")
    annotations = _own_file(folder, "annotations", split)
    if annotations is None and not split.startswith("test"):
        raise UserError(f"{folder}: {questions.name} has no {split}_annotations.json beside it")

    pictures = folder / "images" if (folder / "images").is_dir() else folder
    by_id = _images_by_id(pictures)
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
        files = by_id.get(image_id, [pictures / f"{image_id}.jpg"])
        own = [path for path in files if _has_word(str(path.relative_to(pictures)), split)]
        if len(files) > 1 and len(own) == 1:  # every split numbers its images from 1
            image_id, files = own[0].relative_to(pictures).as_posix(), own
        if len(files) > 1:
            raise ValueError(f"image {image_id} is there {len(files)} times: {_list(files)}")
        images[image_id] = files[0]
        return image_id

    source = Source(annotations) if annotations else None
    examples = [_normalized(example) for example in _read(Source(questions), source, key)]
    return Split(name, split, examples, images)


def _normalized(example: Example) -> Example:
    """Make "Yes", "yes " and "YES" one answer, as the metric does."""

    def normal(answer: str) -> str:
        return " ".join(answer.lower().split()) or answer

    answers = tuple(map(normal, example.answers))
    label = None if example.answer is None else normal(example.answer)
    return replace(example, answers=answers, answer=label)


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
                    f"image_id {_with_kind(annotation['image_id'], image_id)}, "
                    f"but {_with_kind(image_id, annotation['image_id'])} in the question"
                )
            if official and "multiple_choice_answer" not in annotation:
                raise ValueError(
                    'no "multiple_choice_answer", which VQA has and OK-VQA lacks; '
                    "put other data sets in a folder of their own and name it with --data"
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


def _with_kind(value: object, other: object) -> str:
    """``value``, and whether it is text or a number where ``other`` is of another type."""
    if type(value) is type(other):
        return f"{value!r:.60}"
    kind = {str: "text", int: "a number"}.get(type(value), type(value).__name__)
    return f"{value!r:.60} ({kind})"


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
    files = sorted(path for path in folder.glob(f"*{what}*.json") if path.name[0] != ".")
    named = [path for path in files if _has_word(path.name, split)]
    # VQA v1 asks the same questions twice, once with answers to choose from.
    open_ended = [path for path in named if "multiplechoice" not in path.name.lower()]
    named = open_ended or named
    if not named and split == "train" and len(files) == 1:
        named = [path for path in files if path.name == f"{what}.json"]
    if len(named) > 1:
        raise UserError(f"{folder}: {len(named)} files for the {what} of {split}: {_list(named)}")
    return named[0] if named else None


def _has_word(text: str, word: str) -> bool:
    return bool(re.search(rf"(?<![a-z]){re.escape(word.lower())}(?![a-z])", text.lower()))


def _images_by_id(folder: Path) -> dict[str, list[Path]]:
    """Image id -> the files below ``folder`` that it may name.

    An id names a file by its path, its name, its name without the suffix, or by the number at the
    end of its name ("abstract_v002_val2015_000000028940.png" is 28940). The first of these that
    any file matches counts. Hidden files (a Mac's "._7.png") are ignored, links are followed.
    """
    levels: list[dict[str, list[Path]]] = [{}, {}, {}, {}]
    for path in _image_files(folder):
        number = re.search(r"\d+$", path.stem)
        names = [path.relative_to(folder).as_posix(), path.name, path.stem]
        for level, name in zip(levels, [*names, number and number[0]], strict=True):
            if name is None:
                continue
            level.setdefault(name, []).append(path)
            if level is levels[3] and (plain := name.lstrip("0") or "0") != name:
                level.setdefault(plain, []).append(path)
    merged: dict[str, list[Path]] = {}
    for level in levels:
        for name, paths in level.items():
            merged.setdefault(name, paths)
    return merged


def _image_files(folder: Path) -> list[Path]:
    """All image files below ``folder``, each folder once even where links lead round."""
    files: list[Path] = []
    visited: set[str] = set()
    for name, subfolders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(name)
        if real in visited:
            subfolders.clear()
            continue
        visited.add(real)
        subfolders[:] = [sub for sub in subfolders if sub[0] != "."]
        files += [
            Path(name, file)
            for file in names
            if file[0] != "." and os.path.splitext(file)[1].lower() in _IMAGE_SUFFIXES
        ]
    return sorted(files)


def _list(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths)
