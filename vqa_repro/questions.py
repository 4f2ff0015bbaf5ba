"""Examples as arrays: all that training reads besides the features."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vqa_repro.example import Example
from vqa_repro.vocab import PADDING, Vocabulary

HELD_RUN = 16  # pictures

Target = Literal["label", "sampled", "soft"]


@dataclass(frozen=True)
class Questions:
    """N questions, those about one picture next to each other."""

    question_id: Tensor  # (N,) int64
    tokens: Tensor  # (N, T) int64, 0 at the right of a question
    lengths: Tensor  # (N,) int64, at least 1
    row: Tensor  # (N,) int64: the picture's row in the feature store
    label: Tensor  # (N,) int64: the answer's class, or -1 if the model cannot give it
    answers: Tensor  # (N, A) int64: classes of the human answers; -1 if the model cannot give one

    def __len__(self) -> int:
        return len(self.label)

    def to(self, device: torch.device) -> "Questions":
        return Questions(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))

    def trainable(self, target: Target) -> "Questions":
        """Those that can be trained on: the model can give the label, or any human answer."""
        keep = self.label >= 0 if target == "label" else (self.answers >= 0).any(dim=1)
        return Questions(*(getattr(self, name)[keep] for name in self.__dataclass_fields__))


class Batch(NamedTuple):
    """Some questions and the pictures they are about, each picture once."""

    questions: Tensor  # (B,) int64 positions in the Questions
    rows: Tensor  # (I,) int64 distinct rows of the feature store
    image_of: Tensor  # (B,) int64 positions in ``rows``, ascending


def encode(
    examples: Sequence[Example], vocabulary: Vocabulary, row_of: dict[str, int]
) -> Questions:
    """Number the words and answers of ``examples``; ``row_of`` gives each picture's row."""
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


def hold_out(examples: Sequence[Example], share: float) -> tuple[list[Example], list[Example]]:
    """(kept, held out): all questions of a fixed ``share`` of the pictures are held out.

    Pictures are held out in runs of up to HELD_RUN by their number. DAQUAR's photos of one room
    follow each other, and its test has other rooms: with a room on both sides, learning the
    training photos by heart would look like learning to answer. Which pictures are held out does
    not depend on the seed of a run, so that runs can be compared.
    """
    images = sorted({example.image for example in examples}, key=_by_number)
    wanted = round(share * len(images))
    runs = [images[i : i + HELD_RUN] for i in range(0, len(images), HELD_RUN)]
    held: set[str] = set()
    for i in np.random.default_rng(0).permutation(len(runs)):
        held.update(runs[i][: wanted - len(held)])
    return (
        [example for example in examples if example.image not in held],
        [example for example in examples if example.image in held],
    )


def _by_number(image: str) -> str:
    """A key to sort by: "image9" before "image10"."""
    return re.sub(r"\d+", lambda number: number[0].zfill(12), image)


def batches(
    questions: Questions, size: int, order: Literal["grouped", "iid", "stored"], seed: int = 0
) -> Iterator[Batch]:
    """All questions once, about ``size`` at a time, on the device the questions are on.

    grouped: whole pictures in random order, so that what depends on a picture alone is computed
    once for all its questions; batches vary a little in size. iid: single questions in random
    order. stored: as they lie, for evaluation. Equal ``seed``, equal batches.
    """
    generator = torch.Generator().manual_seed(seed)
    row = questions.row.cpu()
    if order == "iid":
        permutation = torch.randperm(len(row), generator=generator)
        chunks = list(torch.split(permutation, size))
    elif order == "stored":
        chunks = list(torch.split(torch.arange(len(row)), size))
    else:
        _, counts = torch.unique_consecutive(row, return_counts=True)
        first = counts.cumsum(0) - counts
        pictures = torch.randperm(len(counts), generator=generator)
        # Question n of the shuffled order belongs to the picture that n falls into.
        sizes = counts[pictures]
        start = torch.repeat_interleave(first[pictures] - (sizes.cumsum(0) - sizes), sizes)
        permutation = start + torch.arange(len(row))
        # A picture belongs to the batch in which its last question falls.
        batch_of = (sizes.cumsum(0) - 1) // size
        ends = torch.bincount(batch_of, weights=sizes.double()).long()
        chunks = [chunk for chunk in torch.split(permutation, ends.tolist()) if len(chunk)]
    device = questions.row.device
    for shuffled in chunks:
        # Within a batch by picture: the questions about one are next to each other.
        chunk = shuffled[row[shuffled].argsort(stable=True)]
        rows, image_of = torch.unique(row[chunk], return_inverse=True)
        yield Batch(chunk.to(device), rows.to(device), image_of.to(device))
