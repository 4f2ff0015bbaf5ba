"""What the models share: their output, and attention pooled over padded positions."""

from typing import NamedTuple

import torch
from torch import Tensor


class Answer(NamedTuple):
    """What every model returns for N questions."""

    logits: Tensor  # (N, num_answers)
    attention: dict[str, Tensor]  # name -> (N, regions) or (N, words); rows sum to 1, padding is 0


def word_mask(tokens: Tensor, lengths: Tensor) -> Tensor:
    """(N, T) bool: True where ``tokens`` (N, T) holds a word, False on the padding at its right."""
    return torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]


def per_question(image_side: Tensor, image_of: Tensor | None) -> Tensor:
    """(I, ...) values of I images -> (N, ...) values of the N questions asked about them.

    ``image_of`` (N,) int64 names each question's row; None means one question per image. What
    depends on the image alone is computed before this gather, once per image.
    """
    return image_side if image_of is None else image_side.index_select(0, image_of)
