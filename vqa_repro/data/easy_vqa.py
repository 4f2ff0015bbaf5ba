"""easy-VQA: 5,000 synthetic 64x64 images, 48,248 questions, 13 answers, packaged as a wheel.

Source: Victor Zhou, "Easy Visual Question Answering" (2020), the ``easy-vqa`` package. Its
published baseline reaches 93.8% on the test split (see ``recipes/easy-vqa.toml``).
"""

import importlib.util
import json
from pathlib import Path

from vqa_repro.data.types import Example, Split
from vqa_repro.utils.errors import UserError

SPLITS = ("train", "test")

# The wheel has no question types; the answer implies one.
_SHAPES = {"circle", "rectangle", "triangle"}


def load(root: Path, split: str) -> Split:
    """Read ``split`` ("train": 38,575 questions, "test": 9,673) from the installed wheel.

    ``root`` is not used: the data are part of the environment.
    """
    if split not in SPLITS:
        raise UserError(f"easy-VQA has no split {split!r}; there are {', '.join(SPLITS)}")
    # Not imported: the package's code is not needed to read its files.
    spec = importlib.util.find_spec("easy_vqa")
    if spec is None or spec.origin is None:
        raise UserError("the package easy-vqa is not installed; run ./bootstrap.sh env")
    folder = Path(spec.origin).parent / "data" / split
    records = json.loads((folder / "questions.json").read_text(encoding="utf-8"))
    examples = [
        Example(
            question_id=number,
            image=f"{split}/{image}",
            question=question,
            answers=(answer,),
            answer=answer,
            answer_type=_answer_type(answer),
        )
        for number, (question, answer, image) in enumerate(records)
    ]
    images = {
        f"{split}/{image}": folder / "images" / f"{image}.png"
        for image in sorted({image for _, _, image in records})
    }
    return Split("easy-vqa", split, examples, images)


def _answer_type(answer: str) -> str:
    if answer in ("yes", "no"):
        return "yes/no"
    return "shape" if answer in _SHAPES else "color"
