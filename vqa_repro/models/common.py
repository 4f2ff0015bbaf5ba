"""Parts that the models share: output type, masks, questions grouped by image, dropout, softmax."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ModelOutput(NamedTuple):
    """Output of every model for N questions."""

    logits: Tensor  # (N, num_answers)
    attention: dict[str, Tensor]  # name -> (N, regions) or (N, words); rows sum to 1, padding is 0


def word_mask(tokens: Tensor, lengths: Tensor) -> Tensor:
    """Return (N, T) bool: True where ``tokens`` (N, T) holds a word, False on its right padding."""
    return torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]


class QuestionGroups(NamedTuple):
    """N questions grouped by their I images, computed once for all attention layers of a model."""

    image_index: Tensor | None  # (N,) int64: each question's image; None: one question per image
    order: Tensor  # (N,) int64: permutation that sorts the questions by image
    sorted: bool  # whether the questions are known to be sorted by image already
    starts: Tensor  # (I + 1,) int64: offsets of each image's questions in that order


def group_by_image(image_index: Tensor | None, grid: Tensor) -> QuestionGroups:
    """Group questions by image.

    image_index: (N,) int64 rows of ``grid`` (I, ...), in any order; None if I == N.
    """
    # Here and in the encoders not len(): torch.export would take the number as a constant.
    starts = torch.arange(grid.shape[0] + 1, device=grid.device)
    if image_index is None:
        return QuestionGroups(None, starts[:-1], True, starts)
    ascending, order = image_index.sort(stable=True)
    starts = torch.searchsorted(ascending, starts)
    # On a GPU this comparison would synchronise.
    is_sorted = grid.device.type == "cpu" and torch.equal(image_index, ascending)
    return QuestionGroups(image_index, order, is_sorted, starts)


def per_question(values: Tensor, image_index: Tensor | None) -> Tensor:
    """Gather per-image ``values`` (I, ...) into one row per question, (N, ...).

    ``image_index`` (N,) int64 names each question's row; None means one question per image.
    Compute whatever depends on the image alone before this gather, once per image.
    """
    return values if image_index is None else values.index_select(0, image_index)


def softmax(scores: Tensor) -> Tensor:
    """Return the softmax over the last dimension, computed in float32 or wider."""
    return torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))


class DropoutMask:
    """Dropout mask from one random byte per element; the probability is rounded to 1/256.

    ``bernoulli_`` takes twenty times as long, longer than the rest of the attention. ``scale`` is
    the factor of the remaining elements.
    """

    def __init__(self, shape: tuple[int, ...], dropout: float) -> None:
        size, self._threshold = torch.Size(shape).numel(), round(256 * dropout)
        numbers = torch.randint(-(2**63), 2**63 - 1, (-(-size // 8),))
        self._bytes = numbers.view(torch.uint8)[:size].view(shape)
        self.scale = 256 / (256 - self._threshold)

    def write(self, rows: slice, out: Tensor) -> Tensor:
        """Fill ``out`` with 1 where an element of ``rows`` remains, and 0 where it is dropped.

        Numbers rather than booleans: multiplying by those takes five times as long.
        """
        return torch.ge(self._bytes[rows], self._threshold, out=out)


class Dropout(nn.Dropout):
    """``nn.Dropout`` with faster random numbers on the CPU."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or x.device.type != "cpu":
            return F.dropout(x, self.p, self.training)
        if not self.p:
            return x
        mask = DropoutMask(tuple(x.shape), self.p)
        return x * mask.write(slice(None), torch.empty_like(x)).mul_(mask.scale)
