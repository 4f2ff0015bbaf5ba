"""VQA v1 and v2 as published, and the reader of any pair of files in their format.

Sources: Antol et al., "VQA" (arXiv 1505.00468); Goyal et al., "Making the V in VQA Matter"
(arXiv 1612.00837).
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from vqa_repro.data.sources import Source, find, find_folder
from vqa_repro.data.types import Example, Split
from vqa_repro.utils.errors import UserError

ANSWERS = 10  # human answers per question of VQA v1 and v2

# Split -> its published subsets, and the half of each (None: all). SAN trains on train + one half
# of val and tests on the other (arXiv 1511.02274, section 4.1). The authors' halves are not public,
# so these are our own: val1 has the images with an even COCO id, val2 those with an odd one. The
# authors' script draws questions instead, so that both halves ask about the same images: so do
# val1-questions and val2-questions, by a hash of the question id.
Half = tuple[Literal["image", "question"], int]
_SUBSETS: dict[str, tuple[tuple[str, Half | None], ...]] = {
    "train": (("train2014", None),),
    "val": (("val2014", None),),
    "test2015": (("test2015", None),),
    "test-dev2015": (("test-dev2015", None),),
    "trainval": (("train2014", None), ("val2014", None)),
    "val1": (("val2014", ("image", 0)),),
    "val2": (("val2014", ("image", 1)),),
    "train+val1": (("train2014", None), ("val2014", ("image", 0))),
    "val1-questions": (("val2014", ("question", 0)),),
    "val2-questions": (("val2014", ("question", 1)),),
    "train+val1-questions": (("train2014", None), ("val2014", ("question", 0))),
}
SPLITS = tuple(_SUBSETS)
_ZIPS = {"train2014": "Train", "val2014": "Val", "test2015": "Test", "test-dev2015": "Test"}


def load(root: Path, version: str, split: str) -> Split:
    """Read ``split`` of VQA ``version`` ("v1", "v2") from the official files below ``root``.

    The JSON files and images have their published names
    (v2_OpenEnded_mscoco_train2014_questions.json, train2014/COCO_train2014_000000000009.jpg);
    the zips of the JSON files need not be unpacked.
    """
    examples: list[Example] = []
    images: dict[str, Path] = {}
    for subset, half in _subsets(split):
        # The images of test-dev are a subset of test2015.
        folder_name = subset.replace("-dev", "")
        folder = find_folder(root, folder_name) or root / folder_name

        def key(question: dict[str, Any], prefix: str = f"COCO_{folder_name}_") -> str:
            return f"{prefix}{question['image_id']:012d}"

        found = read_pair(*_official_files(root, version, subset), key, official=True)
        if half is not None:
            found = [example for example in found if _half_of(example, half[0]) == half[1]]
        examples += found
        images |= {example.image: folder / f"{example.image}.jpg" for example in found}
    return Split(f"vqa-{version}", split, examples, images)


def read_files(questions: Path, annotations: Path) -> list[Example]:
    """Return the questions of one file with the answers of another, to score results against.

    ``Example.image`` is only the image id; the images need not exist.
    """
    return read_pair(
        Source(questions), Source(annotations), lambda question: str(question["image_id"])
    )


def _half_of(example: Example, by: Literal["image", "question"]) -> int:
    """Return 0 or 1, always the same for an image, or a question."""
    if by == "image":
        return int(example.image[-12:]) % 2
    return hashlib.sha256(str(example.question_id).encode()).digest()[0] % 2


def _subsets(split: str) -> tuple[tuple[str, Half | None], ...]:
    if split not in _SUBSETS:
        raise UserError(f"VQA has no split {split!r}; there are {', '.join(SPLITS)}")
    return _SUBSETS[split]


def _official_files(root: Path, version: str, subset: str) -> tuple[Source, Source | None]:
    """Return the questions and the annotations; None for test sets, whose answers are hidden."""
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


def _check_image(annotation: dict[str, Any], image_id: Any) -> None:
    """Raise ValueError if the annotation is about another image than its question."""
    other = annotation.get("image_id", image_id)
    if other != image_id:
        raise ValueError(
            f"image_id {_with_kind(other, image_id)}, but {_with_kind(image_id, other)} in the "
            "question"
        )


def read_pair(
    questions: Source,
    annotations: Source | None,
    key: Callable[[dict[str, Any]], str],
    official: bool = False,
) -> list[Example]:
    """Join two files of the VQA format; the order is that of ``questions``.

    ``key`` returns the image key of a question record; its ValueError says what is wrong there.
    """
    by_id = _records(questions, "questions")
    annotation_of = _records(annotations, "annotations") if annotations else {}
    for question_id in annotation_of:
        if question_id not in by_id:
            raise UserError(f"{annotations}: question {question_id} is not in {questions}")
    examples = []
    for question_id, question in by_id.items():
        try:
            text = question.get("question")
            if not isinstance(text, str) or not text.strip():
                raise ValueError('no "question", or an empty one')
            check_text(text)
            image_id = question.get("image_id")
            if type(image_id) is not int and (official or not isinstance(image_id, str)):
                wanted = "a whole number" if official else "a whole number or text"
                found = f"image_id is {image_id!r:.60}; it must be {wanted}"
                raise ValueError('no "image_id"' if image_id is None else found)
            image = key(question)
        except ValueError as error:
            raise UserError(f"{questions}: question {question_id}: {error}") from None
        if annotations is None:
            examples.append(Example(question_id, image, text, (), None))
            continue
        annotation = annotation_of.get(question_id)
        if annotation is None:
            raise UserError(f"{questions}: question {question_id} has no answer in {annotations}")
        try:
            _check_image(annotation, image_id)
            if official and "multiple_choice_answer" not in annotation:
                raise ValueError(
                    'no "multiple_choice_answer", which OK-VQA does not have; '
                    "put other data sets in a folder of their own and name it with --data"
                )
            answers = read_answers(annotation)
            if official and len(answers) != ANSWERS:
                raise ValueError(f"{len(answers)} answers instead of {ANSWERS}")
            label = _string(annotation, "multiple_choice_answer") or most_common(answers)
            if not label.strip():
                raise ValueError("the answer is empty")
            kinds = (_string(annotation, f"{kind}_type") for kind in ("answer", "question"))
            examples.append(Example(question_id, image, text, answers, label, *kinds))
        except ValueError as error:
            raise UserError(f"{annotations}: question {question_id}: {error}") from None
    return examples


def _records(source: Source, field: str) -> dict[int, dict[str, Any]]:
    """Return the records of the list ``field`` by question id."""
    content = source.json()
    if not isinstance(content, dict) or not isinstance(content.get(field), list):
        other = {"questions": "annotations", "annotations": "questions"}[field]
        if isinstance(content, dict) and other in content:
            raise UserError(f'{source}: contains "{other}", not "{field}"; are two files swapped?')
        raise UserError(
            f'{source}: not a VQA file: no list "{field}" at its top level, but '
            f"{describe_json(content)}; docs/data.md has the file names of other formats"
        )
    records: dict[int, dict[str, Any]] = {}
    for number, record in enumerate(content[field], start=1):
        where = f"{source}: record {number} of {field}"
        try:
            question_id = read_question_id(record)
        except ValueError as error:
            raise UserError(f"{where}: {error}") from None
        if question_id in records:
            raise UserError(f"{where}: duplicate question {question_id}")
        records[question_id] = record
    if not records:
        raise UserError(f"{source}: contains no {field}")
    return records


def read_question_id(record: Any) -> int:
    """Return the question_id of a record. Raises ValueError, with the value found."""
    if not isinstance(record, dict) or record.get("question_id") is None:
        raise ValueError('no "question_id"')
    question_id = record["question_id"]
    if type(question_id) is not int:  # True would pass isinstance
        kind = {str: "text", float: "a fraction"}.get(type(question_id), "no number")
        raise ValueError(f"question_id {question_id!r:.60} is {kind}; write it as a whole number")
    if abs(question_id) >= 2**63:  # cannot go into an array
        raise ValueError(f"question_id {question_id!s:.60} is too large: it must fit in 64 bits")
    return question_id


def describe_json(content: Any) -> str:
    """Return what the top of a JSON file is, in words, with its first fields."""
    if isinstance(content, list):
        first = content[0] if content else None
        fields = f" with the fields {_fields(first)}" if isinstance(first, dict) else ""
        return f"a list of {len(content):,} records{fields}"
    if isinstance(content, dict):
        return f"an object with the fields {_fields(content)}" if content else "an empty object"
    return f"only {content!r:.60}"


def _fields(record: dict[str, Any]) -> str:
    names = [f"{name!s:.40}" for name in record]
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")


def read_answers(annotation: dict[str, Any]) -> tuple[str, ...]:
    """Return the list "answers" of an annotation, or the one "answer" it has instead.

    Raise ValueError, with the value found, if they are not text, or missing.
    """
    found = annotation.get("answers")
    if found is None and annotation.get("answer") is not None:
        found = [annotation["answer"]]
    if found is None or found == []:
        raise ValueError('no "answers"')
    if not isinstance(found, list):
        raise ValueError(f'"answers" is {found!r:.60}, not a list, such as ["red", "pink"]')
    answers = []
    for number, entry in enumerate(found, start=1):
        answer = entry.get("answer") if isinstance(entry, dict) else entry
        if not isinstance(answer, str):
            shown = entry if answer is None else answer
            raise ValueError(f"answer {number} is {shown!r:.60}, not text")
        check_text(answer)
        answers.append(answer)
    return tuple(answers)


def _with_kind(value: object, other: object) -> str:
    """Return ``value``, with its type if ``other`` is of another type."""
    if type(value) is type(other):
        return f"{value!r:.60}"
    kind = {str: "text", int: "a number"}.get(type(value), type(value).__name__)
    return f"{value!r:.60} ({kind})"


def most_common(answers: Iterable[str]) -> str:
    return Counter(answers).most_common(1)[0][0]


def _string(record: dict[str, Any], field: str) -> str:
    value = record.get(field)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f'"{field}" is {value!r}, not text')
    check_text(value)
    return value


def check_text(text: str) -> None:
    """Raise ValueError for a lone surrogate ("\\ud83d"), which cannot be written to a file."""
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"{text!r} contains half a character")
