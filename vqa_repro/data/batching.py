"""Batches of questions: planned for a whole epoch, then assembled with their features."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vqa_repro.data.questions import Questions
from vqa_repro.utils.distributed import SINGLE_PROCESS, World


class BatchIndices(NamedTuple):
    """The questions and images of a batch; each image appears once.

    With several processes this is one process's share of a batch, which may be empty.
    """

    positions: Tensor  # (B,) int64 positions in the Questions
    rows: Tensor  # (I,) int64 distinct rows of this process's features
    image_index: Tensor  # (B,) int64 positions in ``rows``, ascending
    longest: int  # words of the longest of these questions
    total: int  # questions in the whole batch, over all processes


@dataclass(frozen=True)
class Batch:
    """The input of a training step or a prediction, on its device."""

    features: Tensor  # (I, ...) of the distinct images
    image_index: Tensor  # (B,) int64: each question's position in ``features``, ascending
    tokens: Tensor  # (B, T) int64, cut to the longest question of the batch
    lengths: Tensor  # (B,) int64, at least 1
    label: Tensor  # (B,) int64: the class of the label, or -1 if it is not in the vocabulary
    answers: Tensor  # (B, A) int64: classes of the human answers, or -1
    weight: Tensor  # (B,) float32: weight of a question's loss; 0 for padding
    positions: Tensor  # (B,) int64 positions in the Questions
    total: int  # questions in the whole batch, over all processes

    def __len__(self) -> int:
        return len(self.positions)


def collate(questions: Questions, indices: BatchIndices, features: Tensor) -> Batch:
    """Return the batch ``indices`` of ``questions``; features: (I, ...) of its images."""
    positions = indices.positions
    return Batch(
        features=features,
        image_index=indices.image_index,
        tokens=questions.tokens[:, : indices.longest][positions],
        lengths=questions.lengths[positions],
        label=questions.label[positions],
        answers=questions.answers[positions],
        weight=torch.full_like(positions, 1, dtype=torch.float32) / indices.total,
        positions=positions,
        total=indices.total,
    )


def plan_batches(
    questions: Questions,
    size: int,
    order: Literal["grouped", "iid", "stored"],
    seed: int = 0,
    world: World = SINGLE_PROCESS,
) -> list[BatchIndices]:
    """Plan an epoch: every question once, about ``size`` at a time, on the questions' device.

    grouped: whole images in random order, so that what depends on an image alone is computed once
    for all its questions; batch sizes vary a little. iid: single questions in random order.
    stored: in the order of the arrays, for evaluation. The same ``seed`` gives the same batches,
    also over several processes, each of which gets the questions of every batch about its own
    images (``world.owns``).
    """
    row = questions.row.cpu()
    positions, batch_of = _assign_to_batches(row, size, order, seed)
    totals = torch.bincount(batch_of)
    if world.size > 1:
        own = world.owns(row[positions])
        positions, batch_of = positions[own], batch_of[own]
    # Sort by image within a batch: the questions about one image become adjacent.
    height = int(row.max()) + 1 if len(row) else 1
    key, by_image = (batch_of * height + row[positions]).sort(stable=True)
    positions, batch_of = positions[by_image], batch_of[by_image]
    image_key, image = torch.unique_consecutive(key, return_inverse=True)
    sizes = torch.bincount(batch_of, minlength=len(totals))
    images = torch.bincount(image_key // height, minlength=len(totals))
    image_index = image - (images.cumsum(0) - images)[batch_of]
    longest = torch.ones_like(totals).scatter_reduce_(
        0, batch_of, questions.lengths.cpu()[positions], "amax"
    )
    device = questions.row.device
    parts = zip(
        torch.split(positions.to(device), sizes.tolist()),
        torch.split((image_key % height // world.size).to(device), images.tolist()),
        torch.split(image_index.to(device), sizes.tolist()),
        longest.tolist(),
        totals.tolist(),
        strict=True,
    )
    return [BatchIndices(*part) for part in parts]


def _assign_to_batches(row: Tensor, size: int, order: str, seed: int) -> tuple[Tensor, Tensor]:
    """Return (N,) positions of all questions, and the batch of each, ascending from 0."""
    generator = torch.Generator().manual_seed(seed)
    positions = torch.arange(len(row))
    if order == "stored":
        return positions, positions // size
    if order == "iid":
        return torch.randperm(len(row), generator=generator), positions // size
    _, counts = torch.unique_consecutive(row, return_counts=True)
    first = counts.cumsum(0) - counts
    images = torch.randperm(len(counts), generator=generator)
    # Question n of the shuffled order belongs to the image whose range contains n.
    sizes = counts[images]
    ends = sizes.cumsum(0)
    shuffled = torch.repeat_interleave(first[images] - (ends - sizes), sizes) + positions
    # An image belongs to the batch that contains its last question.
    batch_of = torch.repeat_interleave((ends - 1) // size, sizes)
    return shuffled, torch.unique_consecutive(batch_of, return_inverse=True)[1]
