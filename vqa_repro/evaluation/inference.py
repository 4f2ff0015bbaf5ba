"""Inference: a network's predictions for many questions, a run's prediction for one."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vqa_repro.data.batching import Batch, plan_batches
from vqa_repro.data.images import ImageSource, read_image
from vqa_repro.data.questions import Questions
from vqa_repro.data.vocabulary import tokenize
from vqa_repro.evaluation import familiarity
from vqa_repro.features.backbones import FrozenBackbone
from vqa_repro.features.loader import FeatureLoader
from vqa_repro.features.provider import NO_IMAGE
from vqa_repro.models.cnn import SmallCNN
from vqa_repro.models.common import ModelOutput
from vqa_repro.models.network import VQAModel, load_model
from vqa_repro.run import Run
from vqa_repro.utils.distributed import SINGLE_PROCESS, World
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.memory import explain_out_of_memory

BATCH = 1024  # questions
TOP = 5  # answers of a Prediction
SIZES = range(8, 4097)  # pixels a side of input images: runs may be untrusted


class Predictions(NamedTuple):
    """A network's answers to N questions, on the CPU."""

    answer: Tensor  # (N,) int64: the most probable class
    confidence: Tensor  # (N,) its probability
    label_probability: Tensor  # (N,) the probability of the label; 0 where it is not a class
    # (T, N) the same with the logits divided by each of the temperatures that were asked for
    tempered: Tensor


def forward(network: VQAModel, batch: Batch) -> ModelOutput:
    """Return the network's output for ``batch``."""
    output: ModelOutput = network(batch.features, batch.tokens, batch.lengths, batch.image_index)
    return output


def outputs(
    network: VQAModel, loader: FeatureLoader, questions: Questions, world: World = SINGLE_PROCESS
) -> Iterator[tuple[Batch, ModelOutput]]:
    """Yield every batch of this process's share of ``questions`` and the network's output.

    Exhaust or close it: the network is in evaluation mode until then.
    """
    training = network.training
    network.eval()
    try:
        for batch in loader.epoch(questions, plan_batches(questions, BATCH, "stored", world=world)):
            if len(batch):
                with torch.inference_mode():
                    output = forward(network, batch)
                yield batch, output
    finally:
        network.train(training)


def predict_all(
    network: VQAModel,
    loader: FeatureLoader,
    questions: Questions,
    world: World = SINGLE_PROCESS,
    temperatures: Sequence[float] = (),
) -> Predictions:
    """Answer every question once, as ``collect`` returns it."""
    found = outputs(network, loader, questions, world)
    return collect(found, questions, world, temperatures)


def collect(
    found: Iterable[tuple[Batch, ModelOutput]],
    questions: Questions,
    world: World = SINGLE_PROCESS,
    temperatures: Sequence[float] = (),
) -> Predictions:
    """Return the answers in ``found``, batches of ``questions``. Attention maps are not kept.

    With several processes each question is answered by one of them, and all return all answers.
    """
    probabilities = torch.zeros(
        2 + len(temperatures), len(questions), device=questions.label.device
    )
    classes = torch.zeros_like(questions.label)
    for batch, output in found:
        logits = output.logits.float()
        best, label = logits.argmax(1), batch.label.clamp(min=0)[:, None]
        classes[batch.positions] = best
        probability = logits.softmax(1)
        probabilities[0, batch.positions] = probability.gather(1, best[:, None])[:, 0]
        probabilities[1, batch.positions] = probability.gather(1, label)[:, 0]
        for row, temperature in enumerate(temperatures, start=2):
            probability = (logits / temperature).softmax(1)
            probabilities[row, batch.positions] = probability.gather(1, label)[:, 0]
    probabilities[1:] *= questions.label >= 0
    totals = world.all_reduce(probabilities.cpu())
    return Predictions(world.all_reduce(classes.cpu()), totals[0], totals[1], totals[2:])


def answers_by_id(
    predictions: Predictions, questions: Questions, classes: Sequence[str]
) -> dict[int, str]:
    """Return question id -> the text of the predicted answer."""
    ids = questions.question_id.tolist()
    return {i: classes[c] for i, c in zip(ids, predictions.answer.tolist(), strict=True)}


@dataclass(frozen=True)
class Prediction:
    """A model's answer to one question.

    Attention over regions goes row by row over a square grid from the upper left corner; names
    that end in "/question" are attention over ``words``.
    """

    question: str
    answers: list[tuple[str, float]]  # (text, probability), most probable first
    attention: dict[str, npt.NDArray[np.float32]]  # (regions,) or (words,), summing to 1
    words: list[str]  # the question as the model read it
    unknown_words: list[str]  # out-of-vocabulary words
    # How unlike the training images the image is; above 1, more than 99% of them. None: unknown.
    image_distance: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "question": self.question,
            "answers": [{"answer": text, "probability": p} for text, p in self.answers],
            "attention": {name: weights.tolist() for name, weights in self.attention.items()},
            "words": self.words,
            "unknown_words": self.unknown_words,
            "image_distance": self.image_distance,
        }


class Predictor:
    """A trained run, loaded once, that answers many questions.

    ``network`` is the model itself, in evaluation mode, with the run's weights.
    """

    @explain_out_of_memory()
    def __init__(self, run: Run, device: torch.device, weights: Path | None = None) -> None:
        self.run = run
        self.device = device
        self.network = load_model(run, device)
        self._made_by = run.features["made_by"]
        size = self._made_by.get("size")
        if self._made_by != NO_IMAGE and (type(size) is not int or size not in SIZES):
            raise UserError(f"{run.folder / 'features.json'}: images of {size!r} pixels a side")
        self._weights = weights
        cnn = self.network.cnn
        channels = cnn.channels if isinstance(cnn, SmallCNN) else run.features["channels"]
        self._statistics = familiarity.read_statistics(run.folder, channels)

    @cached_property
    def _frozen(self) -> FrozenBackbone | None:
        if self._made_by["backbone"] == "none":
            return None
        return FrozenBackbone.like(self._made_by, self._weights, self.device)

    def predict(self, image: ImageSource, question: str) -> Prediction:
        """Answer ``question`` about ``image``: a path, the content of a file, or pixels.

        Raise UserError for an image that cannot be read, and for an empty question.
        """
        return self.answer(self.extract(image), question)

    @explain_out_of_memory()
    def extract(self, image: ImageSource) -> Tensor:
        """Return the features of ``image`` as a row (1, ...) of a feature store, for ``answer``.

        This is the slow part of a prediction.
        """
        if self._made_by == NO_IMAGE:
            return torch.zeros(1, 1, 1, device=self.device)
        pixels = read_image(image, self._made_by["size"])
        row = torch.from_numpy(pixels)[None].to(self.device)
        if self._frozen:
            with torch.inference_mode():
                row = self._frozen(row)
            if row.shape[2] != self.run.features["channels"]:
                raise UserError(
                    f"{self.run.folder / 'features.json'}: not the {row.shape[2]} channels of "
                    f"{self._made_by['backbone']}"
                )
        return row

    @explain_out_of_memory()
    def answer(self, row: Tensor, question: str) -> Prediction:
        """Answer ``question`` about the image whose features are ``row`` (1, ...).

        A model whose training questions have no question mark does not see this one's, either.
        """
        if not question.strip():
            raise UserError("the question is empty; try, for example, 'what is it?'")
        vocabulary = self.run.vocabulary
        asked = question
        if vocabulary.unknown_words("?"):
            asked = question.rstrip("? ") or question
        tokens = torch.tensor([vocabulary.encode(asked)], device=self.device)
        words = tokenize(asked)[: tokens.shape[1]] or [question.strip()]
        lengths = torch.tensor([tokens.shape[1]], device=self.device)
        with torch.inference_mode():
            logits, attention = self.network(row, tokens, lengths)
            values, classes = logits[0].float().softmax(0).topk(min(TOP, logits.shape[1]))
        answers = [
            (vocabulary.answers[c], p)
            for c, p in zip(classes.tolist(), values.tolist(), strict=True)
        ]
        maps = {name: weights[0].float().cpu().numpy() for name, weights in attention.items()}
        unknown = vocabulary.unknown_words(asked)
        return Prediction(question, answers, maps, words, unknown, self.distance(row))

    def distance(self, row: Tensor) -> float | None:
        """Return how unlike the training images the image of ``row`` (1, ...) is.

        Above 1, it is farther from their mean than 99% of them. None if that is not known.
        """
        if self._statistics is None:
            return None
        return self._statistics.distance(familiarity.averaged(self.network, row)[0])
