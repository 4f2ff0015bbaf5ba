"""DAQUAR, ALL and REDUCED: questions about 1,449 indoor photos (Malinowski & Fritz 2014).

Read as published: pairs of lines, "what is under the table in the image3 ?" and "chair". One
answer a question; one question in ten has several ("table, chair").
"""

import re
from dataclasses import replace
from pathlib import Path

from vqa_repro.data.sources import Source, find, find_folder
from vqa_repro.data.types import Example, Split
from vqa_repro.utils.errors import UserError

SPLITS = ("train", "test")

_ALL = {"train": "qa.894.raw.train.txt", "test": "qa.894.raw.test.txt"}
_REDUCED = {"train": "qa.37.raw.train.txt", "test": "qa.37.raw.reduced.test.txt"}


def load(root: Path, split: str) -> Split:
    """Read ``split`` of DAQUAR-ALL: 6,795 questions to train on, 5,673 to test on."""
    return _load("daquar", root, split, _ALL)


def load_reduced(root: Path, split: str) -> Split:
    """Read ``split`` of DAQUAR-REDUCED (37 object classes, 25 test pictures): 3,876 and 297."""
    return _load("daquar-reduced", root, split, _REDUCED)


def single_answers(split: Split) -> Split:
    """Only the questions with one answer: the part that SAN trains and is tested on."""
    examples = [example for example in split.examples if "," not in (example.answer or "")]
    images = {example.image: split.images[example.image] for example in examples}
    return replace(split, examples=examples, images=images)


def _load(data: str, root: Path, split: str, files: dict[str, str]) -> Split:
    if split not in files:
        raise UserError(f"DAQUAR has no split {split!r}; there are {', '.join(SPLITS)}")
    source = find(root, files[split])
    examples = _examples(source)
    pictures = _picture_folder(root, source.path.parent)
    images = {}
    for image in {example.image: None for example in examples}:
        published, compressed = pictures / f"{image}.png", pictures / f"{image}.jpg"
        images[image] = compressed if compressed.exists() else published
    return Split(data, split, examples, images)


def _examples(source: Source) -> list[Example]:
    lines = source.lines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise UserError(f"{source}: line {number} is empty")
    if not lines or len(lines) % 2:
        raise UserError(
            f"{source}: {len(lines)} lines, which are no pairs of question and answer; "
            "download it again"
        )
    examples = []
    for number in range(0, len(lines), 2):
        asked, answer = lines[number].strip(), lines[number + 1].strip()
        named = set(re.findall(r"image\d+", asked))
        if len(named) != 1:
            what = f"names {len(named)} pictures" if named else 'names no picture ("image3")'
            raise UserError(f"{source}: line {number + 1}: the question {what}: {asked!r}")
        examples.append(Example(number // 2, named.pop(), _question(asked), (answer,), answer))
    return examples


def _question(asked: str) -> str:
    """The question without the picture's number, which would tell a model where it is.

    " in the image3" at the end goes; "on the right side of the image3" keeps its "image".
    """
    without_end = re.sub(r" in (the |this )?image\d+ *\?$", " ?", asked)
    return re.sub(r"image\d+", "image", without_end)


def _picture_folder(root: Path, beside: Path) -> Path:
    """``images`` beside the questions, or the folder that the published archive unpacks to."""
    if (beside / "images").is_dir():
        return beside / "images"
    return find_folder(root, "nyu_depth_images") or beside / "nyu_depth_images"
