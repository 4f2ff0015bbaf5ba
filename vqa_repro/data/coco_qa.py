"""COCO-QA: 117,684 questions generated from captions of COCO images (Ren et al., 1505.02074).

Published as a folder per split with one text file per field, a line per question.
"""

import re
from pathlib import Path

from vqa_repro.data.sources import find, find_folder
from vqa_repro.data.types import Example, Split
from vqa_repro.utils.errors import UserError

SPLITS = ("train", "test")
TYPES = ("object", "number", "color", "location")  # 0 to 3 in types.txt

_ZIP = "cocoqa-2015-05-17.zip"
_FIELDS = ("questions", "answers", "img_ids", "types")
# Training images are from COCO's train2014, test images from val2014 (HieCoAtt's released code).
_SUBSETS = {"train": "train2014", "test": "val2014"}


def load(root: Path, split: str) -> Split:
    """Read ``split`` ("train": 78,736 questions, "test": 38,948) from below ``root``.

    The zip need not be unpacked. The images are those of VQA, under the same names.
    """
    if split not in SPLITS:
        raise UserError(f"COCO-QA has no split {split!r}; there are {', '.join(SPLITS)}")
    sources = {field: find(root, f"{split}/{field}.txt", _ZIP) for field in _FIELDS}
    lines = {field: source.lines() for field, source in sources.items()}
    counts = {field: len(values) for field, values in lines.items()}
    if len(set(counts.values())) > 1 or not lines["questions"]:
        listed = ", ".join(f"{field}.txt {count:,}" for field, count in counts.items())
        raise UserError(f"{sources['questions']}: the files of {split} differ in length: {listed}")

    subset = _SUBSETS[split]
    examples = []
    columns = (lines[field] for field in _FIELDS)
    for number, (question, answer, image_id, kind) in enumerate(zip(*columns, strict=True)):
        for field, value in (("questions", question), ("answers", answer)):
            if not value.strip():
                raise UserError(f"{sources[field]}: line {number + 1} is empty")
        if not re.fullmatch("[0-9]{1,12}", image_id.strip()):
            raise UserError(
                f"{sources['img_ids']}: line {number + 1}: not a COCO id: {image_id!r:.40}"
            )
        if kind.strip() not in ("0", "1", "2", "3"):
            raise UserError(
                f"{sources['types']}: line {number + 1}: not a type from 0 to 3: {kind!r}"
            )
        examples.append(
            Example(
                question_id=number,
                image=f"COCO_{subset}_{int(image_id):012d}",
                question=question.strip(),
                answers=(answer.strip(),),
                answer=answer.strip(),
                answer_type=TYPES[int(kind)],
            )
        )
    folder = find_folder(root, subset) or root / subset
    images = {example.image: folder / f"{example.image}.jpg" for example in examples}
    return Split("coco-qa", split, examples, images)
