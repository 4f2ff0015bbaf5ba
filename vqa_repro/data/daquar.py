"""DAQUAR, ALL and REDUCED: questions about 1,449 indoor photos (Malinowski & Fritz 2014).

Published as pairs of lines, "what is under the table in the image3 ?" and "chair". Each question
has one answer; in one of ten questions it is a list ("table, chair").
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
    """Read ``split`` of DAQUAR-ALL: 6,795 training and 5,673 test questions."""
    return _load("daquar", root, split, _ALL)


def load_reduced(root: Path, split: str) -> Split:
    """Read ``split`` of DAQUAR-REDUCED (37 object classes, 25 test images): 3,876 and 297."""
    return _load("daquar-reduced", root, split, _REDUCED)


def single_answers(split: Split) -> Split:
    """Return only the questions with a single answer, which SAN is trained and tested on."""
    examples = [example for example in split.examples if "," not in (example.answer or "")]
    images = {example.image: split.images[example.image] for example in examples}
    return replace(split, examples=examples, images=images)


def _load(data: str, root: Path, split: str, files: dict[str, str]) -> Split:
    if split not in files:
        raise UserError(f"DAQUAR has no split {split!r}; there are {', '.join(SPLITS)}")
    source = find(root, files[split])
    examples = _examples(source)
    folder = _image_folder(root, source.path.parent)
    images = {}
    for image in {example.image: None for example in examples}:
        published, compressed = folder / f"{image}.png", folder / f"{image}.jpg"
        images[image] = compressed if compressed.exists() else published
    return Split(data, split, examples, images)


def _examples(source: Source) -> list[Example]:
    lines = source.lines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise UserError(f"{source}: line {number} is empty")
    if not lines or len(lines) % 2:
        raise UserError(
            f"{source}: {len(lines)} lines, which are not pairs of question and answer; "
            "download it again"
        )
    examples = []
    for number in range(0, len(lines), 2):
        text, answer = lines[number].strip(), lines[number + 1].strip()
        named = set(re.findall(r"image\d+", text))
        if len(named) != 1:
            what = f"names {len(named)} images" if named else 'names no image ("image3")'
            raise UserError(f"{source}: line {number + 1}: the question {what}: {text!r}")
        examples.append(Example(number // 2, named.pop(), _question(text), (answer,), answer))
    return examples


def _question(text: str) -> str:
    """Return the question without the image's number, which would reveal where it was taken.

    " in the image3" at the end is removed; "on the right side of the image3" keeps its "image".
    """
    without_end = re.sub(r" in (the |this )?image\d+ *\?$", " ?", text)
    return re.sub(r"image\d+", "image", without_end)


def _image_folder(root: Path, folder: Path) -> Path:
    """Return ``folder``/images, or the folder that the published archive unpacks to."""
    if (folder / "images").is_dir():
        return folder / "images"
    return find_folder(root, "nyu_depth_images") or folder / "nyu_depth_images"
