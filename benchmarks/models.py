"""The models of the benchmark at the papers' sizes, and the arithmetic they need."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from benchmarks.plain import PlainHieCoAtt, PlainSAN
from vqa_repro.data.questions import Questions
from vqa_repro.models.hiecoatt import HieCoAtt
from vqa_repro.models.network import VQAModel
from vqa_repro.models.san import SAN
from vqa_repro.recipe import Training
from vqa_repro.training.synthetic import VQA_IMAGES, VQA_QUESTIONS, Sizes

SIZES = Sizes()
REGIONS, CHANNELS, WORDS, ANSWERS = SIZES.regions, SIZES.channels, SIZES.words, SIZES.answers
SAN_OPTIONS: dict[str, Any] = {
    "layers": 2,
    "embedding": 500,
    "hidden": 1024,
    "attention": 512,
    "dropout": 0.5,
}
HIECOATT_OPTIONS: dict[str, Any] = {"hidden": 512, "last_hidden": 1024, "dropout": 0.5}


class Macs(NamedTuple):
    """Multiply-adds of a forward pass."""

    image: float
    question: float

    def per_training_question(self) -> float:
        """Return those of a training step per question, including its share of its image's.

        The backward pass costs twice the forward pass, except for features, which need no gradient.
        """
        shared = 3 * self.image - REGIONS * CHANNELS
        return shared * VQA_IMAGES / VQA_QUESTIONS + 3 * self.question


def san_macs(
    words: float, layers: int, embedding: int, hidden: int, attention: int, **_: object
) -> Macs:
    """Return the multiply-adds of SAN's forward pass."""
    image = REGIONS * hidden * (CHANNELS + layers * attention)
    hop = hidden * attention + REGIONS * (attention + hidden)
    lstm = words * 4 * hidden * (embedding + hidden)
    return Macs(image, lstm + layers * hop + hidden * ANSWERS)


def hiecoatt_macs(words: float, hidden: int, last_hidden: int, **_: object) -> Macs:
    """Return the multiply-adds of parallel HieCoAtt's forward pass."""
    d = hidden
    image = REGIONS * d * (CHANNELS + 3 * d)
    level = words * d * (2 * d + 3 * REGIONS) + REGIONS * 2 * d + words * 2 * d
    phrases, lstm = words * d * d * 6, words * 8 * d * d
    head = d * d + 2 * d * d + 2 * d * last_hidden + last_hidden * ANSWERS
    return Macs(image, phrases + lstm + 3 * level + head)


# As in the papers' code. The learning rate is small, because the data are random.
SAN_TRAINING = Training(
    epochs=1,
    learning_rate=1e-5,
    optimizer="sgd",
    weight_decay=1e-3,
    clip=0.1,
    clip_per="tensor",
    batch_size=100,
    order="grouped",
)
HIECOATT_TRAINING = dataclasses.replace(
    SAN_TRAINING, optimizer="rmsprop", weight_decay=1e-8, clip=0.0
)


@dataclasses.dataclass(frozen=True)
class Model:
    name: str
    answerer: Callable[..., nn.Module]
    plain: Callable[..., nn.Module]
    options: dict[str, Any]
    training: Training
    macs: Callable[..., Macs]  # of the words per question and the options

    def ours(self, precision: torch.dtype) -> VQAModel:
        return VQAModel(
            None, self.answerer(WORDS, ANSWERS, CHANNELS, **self.options), 1.0, precision
        )

    def macs_per_question(self, questions: Questions) -> float:
        words = float(questions.lengths.float().mean())
        return self.macs(words, **self.options).per_training_question()


MODELS = {
    "san": Model(
        "SAN(2, LSTM)",
        SAN,
        PlainSAN,
        SAN_OPTIONS,
        SAN_TRAINING,
        san_macs,
    ),
    "hiecoatt": Model(
        "HieCoAtt (parallel)",
        HieCoAtt,
        PlainHieCoAtt,
        HIECOATT_OPTIONS,
        HIECOATT_TRAINING,
        hiecoatt_macs,
    ),
}
