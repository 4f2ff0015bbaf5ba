"""A network's answers to many questions."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from vqa_repro.attention import Answer
from vqa_repro.features import Rows
from vqa_repro.model import Network
from vqa_repro.questions import Batch, Questions, batches

BATCH = 1024  # questions


class Answered(NamedTuple):
    batch: Batch
    answer: Answer


def answer_all(network: Network, rows: Rows, questions: Questions) -> Iterator[Answered]:
    """Answer every question once, as they lie; the network is put into evaluation and back."""
    training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            for batch in batches(questions, BATCH, "stored"):
                yield Answered(batch, ask(network, rows, questions, batch))
    finally:
        network.train(training)


def ask(network: Network, rows: Rows, questions: Questions, batch: Batch) -> Answer:
    """The network's answer to the questions of ``batch``."""
    which = batch.questions
    answer: Answer = network(
        rows[batch.rows], questions.tokens[which], questions.lengths[which], batch.image_of
    )
    return answer


def predictions(network: Network, rows: Rows, questions: Questions) -> Tensor:
    """(N,) int64 on the CPU: the class of the likeliest answer to each question."""
    answered = answer_all(network, rows, questions)
    return torch.cat([answer.logits.argmax(1) for _, answer in answered]).cpu()
