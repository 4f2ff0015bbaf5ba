"""What the models share: their output, and attention pooled over padded positions."""

from typing import NamedTuple

import torch
from torch import Tensor


class ModelOutput(NamedTuple):
    """What every model returns for N questions."""

    logits: Tensor  # (N, num_answers)
    attention: dict[str, Tensor]  # name -> (N, regions) or (N, words); rows sum to 1, padding is 0


def word_mask(tokens: Tensor, lengths: Tensor) -> Tensor:
    """(N, T) bool: True where ``tokens`` (N, T) holds a word, False on the padding at its right."""
    return torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]


class QuestionGroups(NamedTuple):
    """N questions about I pictures by their picture: found once, for all attentions of a model."""

    image_of: Tensor | None  # (N,) int64 rows of the pictures; None: one question each, in order
    order: Tensor  # (N,) int64: the questions by picture
    in_order: bool  # whether they are known to be so already
    starts: Tensor  # (I + 1,) int64: where those about each picture begin in that order


def group_by_image(image_of: Tensor | None, grid: Tensor) -> QuestionGroups:
    """``image_of``: (N,) int64 rows of ``grid`` (I, ...), in any order; None if I == N."""
    starts = torch.arange(len(grid) + 1, device=grid.device)
    if image_of is None:
        return QuestionGroups(None, starts[:-1], True, starts)
    ascending, order = image_of.sort(stable=True)
    starts = torch.searchsorted(ascending, starts)
    # On a GPU to ask would be to wait for it.
    in_order = grid.device.type == "cpu" and torch.equal(image_of, ascending)
    return QuestionGroups(image_of, order, in_order, starts)


def per_question(image_side: Tensor, image_of: Tensor | None) -> Tensor:
    """(I, ...) values of I images -> (N, ...) values of the N questions asked about them.

    ``image_of`` (N,) int64 names each question's row; None means one question per image. What
    depends on the image alone is computed before this gather, once per image.
    """
    return image_side if image_of is None else image_side.index_select(0, image_of)
