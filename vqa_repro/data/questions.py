"""Encode examples as arrays: everything that training reads besides the features."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vqa_repro.data.types import Example
from vqa_repro.data.vocabulary import PADDING, Vocabulary

BLOCK = 16  # images

Target = Literal["label", "sampled", "soft"]


@dataclass(frozen=True)
class Questions:
    """N questions; those about one image are adjacent."""

    question_id: Tensor  # (N,) int64
    tokens: Tensor  # (N, T) int64, 0 at the right of a question
    lengths: Tensor  # (N,) int64, at least 1
    row: Tensor  # (N,) int64: the image's row in the feature store
    label: Tensor  # (N,) int64: the class of the label, or -1 if it is not in the answer vocabulary
    answers: Tensor  # (N, A) int64: classes of the human answers, or -1 as above

    def __len__(self) -> int:
        return len(self.label)

    def to(self, device: torch.device) -> "Questions":
        return Questions(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))

    def digest(self) -> str:
        """Return a SHA-256 of everything, to tell whether these are the same questions."""
        total = hashlib.sha256()
        for name in self.__dataclass_fields__:
            array = getattr(self, name).cpu().numpy()
            total.update(str(array.shape).encode() + array.tobytes())
        return total.hexdigest()

    def trainable(self, target: Target) -> "Questions":
        """Return the questions whose label, or any human answer, is in the answer vocabulary."""
        keep = self.label >= 0 if target == "label" else (self.answers >= 0).any(dim=1)
        return Questions(*(getattr(self, name)[keep] for name in self.__dataclass_fields__))


def encode(
    examples: Sequence[Example], vocabulary: Vocabulary, row_of: dict[str, int]
) -> Questions:
    """Encode the words and answers of ``examples``; ``row_of`` maps each image to its row."""
    ordered = sorted(examples, key=lambda example: row_of[example.image])
    words = [vocabulary.encode(example.question) for example in ordered]
    lengths = np.array([len(ids) for ids in words], np.int64)
    tokens = np.full((len(words), int(np.max(lengths, initial=1))), PADDING, np.int64)
    tokens[np.arange(tokens.shape[1]) < lengths[:, None]] = [i for ids in words for i in ids]
    most = max((len(example.answers) for example in ordered), default=0)
    answers = np.full((len(ordered), most), -1, np.int64)
    for row, example in enumerate(ordered):
        answers[row, : len(example.answers)] = [vocabulary.answer_id(a) for a in example.answers]
    return Questions(
        torch.tensor([example.question_id for example in ordered]),
        torch.from_numpy(tokens),
        torch.from_numpy(lengths),
        torch.tensor([row_of[example.image] for example in ordered]),
        torch.tensor([vocabulary.answer_id(example.answer) for example in ordered]),
        torch.from_numpy(answers),
    )


def train_validation_split(
    examples: Sequence[Example], share: float
) -> tuple[list[Example], list[Example]]:
    """Return training and validation examples: the latter are about a ``share`` of the images.

    Images are held out in blocks of up to BLOCK consecutive numbers. DAQUAR's photos of one place
    are consecutive, and its test photos are from other places: with the same place on both sides,
    memorising the training photos would look like learning to answer. The split does not depend on
    the seed of a run, so that runs can be compared.
    """
    images = sorted({example.image for example in examples}, key=_by_number)
    count = round(share * len(images))
    blocks = [images[i : i + BLOCK] for i in range(0, len(images), BLOCK)]
    validation: set[str] = set()
    for i in np.random.default_rng(0).permutation(len(blocks)):
        validation.update(blocks[i][: count - len(validation)])
    return (
        [example for example in examples if example.image not in validation],
        [example for example in examples if example.image in validation],
    )


def _by_number(image: str) -> str:
    """Return a sort key that puts "image9" before "image10"."""
    return re.sub(r"\d+", lambda number: number[0].zfill(12), image)
