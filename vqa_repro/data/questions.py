"""Examples as arrays: all that training reads besides the features."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vqa_repro.data.types import Example
from vqa_repro.data.vocabulary import PADDING, Vocabulary
from vqa_repro.utils.distributed import SINGLE_PROCESS, World

BLOCK = 16  # pictures

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
    """Some questions and the pictures they are about, each picture once.

    Where several processes train, one's share of a batch, which may be of no question at all.
    """

    questions: Tensor  # (B,) int64 positions in the Questions
    rows: Tensor  # (I,) int64 distinct rows of this process's features
    image_of: Tensor  # (B,) int64 positions in ``rows``, ascending
    longest: int  # words of the longest of these questions
    total: int  # questions in the whole batch, of all processes


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


def train_validation_split(
    examples: Sequence[Example], share: float
) -> tuple[list[Example], list[Example]]:
    """(kept, held out): all questions of a fixed ``share`` of the pictures are held out.

    Pictures are held out in runs of up to HELD_RUN by their number. DAQUAR's photos of one room
    follow each other, and its test has other rooms: with a room on both sides, learning the
    training photos by heart would look like learning to answer. Which pictures are held out does
    not depend on the seed of a run, so that runs can be compared.
    """
    images = sorted({example.image for example in examples}, key=_by_number)
    wanted = round(share * len(images))
    runs = [images[i : i + BLOCK] for i in range(0, len(images), BLOCK)]
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
    questions: Questions,
    size: int,
    order: Literal["grouped", "iid", "stored"],
    seed: int = 0,
    world: World = SINGLE_PROCESS,
) -> list[Batch]:
    """All questions once, about ``size`` at a time, on the device the questions are on.

    grouped: whole pictures in random order, so that what depends on a picture alone is computed
    once for all its questions; batches vary a little in size. iid: single questions in random
    order. stored: as they lie, for evaluation. Equal ``seed``, equal batches: also over several
    processes, each of which gets of every batch what is about its own pictures (``world.owns``).
    """
    row = questions.row.cpu()
    which, batch_of = _dealt(row, size, order, seed)
    totals = torch.bincount(batch_of)
    if world.size > 1:
        own = world.owns(row[which])
        which, batch_of = which[own], batch_of[own]
    # Within a batch by picture: the questions about one are next to each other.
    height = int(row.max()) + 1 if len(row) else 1
    key, group_by_image = (batch_of * height + row[which]).sort(stable=True)
    which, batch_of = which[group_by_image], batch_of[group_by_image]
    picture_key, picture = torch.unique_consecutive(key, return_inverse=True)
    sizes = torch.bincount(batch_of, minlength=len(totals))
    pictures = torch.bincount(picture_key // height, minlength=len(totals))
    image_of = picture - (pictures.cumsum(0) - pictures)[batch_of]
    longest = torch.ones_like(totals).scatter_reduce_(
        0, batch_of, questions.lengths.cpu()[which], "amax"
    )
    device = questions.row.device
    in_batches = zip(
        torch.split(which.to(device), sizes.tolist()),
        torch.split((picture_key % height // world.size).to(device), pictures.tolist()),
        torch.split(image_of.to(device), sizes.tolist()),
        longest.tolist(),
        totals.tolist(),
        strict=True,
    )
    return [Batch(*parts) for parts in in_batches]


def _dealt(row: Tensor, size: int, order: str, seed: int) -> tuple[Tensor, Tensor]:
    """(N,) positions of all questions, and the batch of each: 0 to the last, ascending."""
    generator = torch.Generator().manual_seed(seed)
    positions = torch.arange(len(row))
    if order == "stored":
        return positions, positions // size
    if order == "iid":
        return torch.randperm(len(row), generator=generator), positions // size
    _, counts = torch.unique_consecutive(row, return_counts=True)
    first = counts.cumsum(0) - counts
    pictures = torch.randperm(len(counts), generator=generator)
    # Question n of the shuffled order belongs to the picture that n falls into.
    sizes = counts[pictures]
    ends = sizes.cumsum(0)
    which = torch.repeat_interleave(first[pictures] - (ends - sizes), sizes) + positions
    # A picture belongs to the batch in which its last question falls.
    batch_of = torch.repeat_interleave((ends - 1) // size, sizes)
    return which, torch.unique_consecutive(batch_of, return_inverse=True)[1]
