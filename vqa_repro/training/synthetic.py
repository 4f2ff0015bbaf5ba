"""Synthetic features and questions of the size and statistics of VQA v2: to time and to check."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vqa_repro.data.questions import Questions


@dataclass(frozen=True)
class Sizes:
    """Sizes of a data set and of its features."""

    regions: int = 196
    channels: int = 512
    words: int = 14_770  # of the vocabulary
    answers: int = 1_000


# VQA v2, train + val.
VQA_IMAGES, VQA_QUESTIONS = 123_287, 658_111
NON_ZERO = 0.08  # share of VGG-19's pool5 that is not zero


def synthetic_data(
    images: int, device: torch.device, sizes: Sizes | None = None
) -> tuple[Tensor, Questions]:
    """Return features (images, R, C) float16 of mean square 1 and questions, on ``device``.

    As many questions for each image as in VQA v2, of 7.2 words on average; each has ten human
    answers. The same numbers on every call on a device of one type.
    """
    sizes = sizes or Sizes()
    generator = torch.Generator(device).manual_seed(0)
    shape = (images, sizes.regions, sizes.channels)
    features = torch.empty(shape, dtype=torch.float16, device=device)
    for part in torch.split(features, 1024):
        value = torch.rand(part.shape, generator=generator, device=device)
        part.copy_(torch.relu(value - (1 - NON_ZERO)) / NON_ZERO * (3 / NON_ZERO) ** 0.5)
    rng = np.random.default_rng(0)
    count = round(VQA_QUESTIONS * images / VQA_IMAGES)
    lengths = np.clip(np.rint(rng.gamma(9.0, 0.8, count)), 3, 23).astype(np.int64)
    tokens = rng.integers(2, sizes.words, (count, int(np.max(lengths))))
    tokens[np.arange(tokens.shape[1]) >= lengths[:, None]] = 0
    arrays = {
        "question_id": np.arange(count),
        "tokens": tokens,
        "lengths": lengths,
        "row": np.sort(rng.integers(0, images, count)),
        "label": rng.integers(0, sizes.answers, count),
        "answers": rng.integers(0, sizes.answers, (count, 10)),
    }
    questions = Questions(**{name: torch.from_numpy(array) for name, array in arrays.items()})
    return features, questions.to(device)
