"""A network's answers to many questions."""

from collections.abc import Callable

import torch
from torch import Tensor

from vqa_repro.data.questions import Batch, Questions, batches
from vqa_repro.features.loader import Rows
from vqa_repro.models.common import Answer
from vqa_repro.models.network import Network
from vqa_repro.utils.distributed import ALONE, World

BATCH = 1024  # questions


def ask(network: Network, rows: Rows, questions: Questions, batch: Batch) -> Answer:
    """The network's answer to the questions of ``batch``."""
    which = batch.questions
    tokens, lengths = questions.tokens[:, : batch.longest][which], questions.lengths[which]
    answer: Answer = network(rows[batch.rows], tokens, lengths, batch.image_of)
    return answer


def ask_all(
    network: Network,
    rows: Rows,
    questions: Questions,
    look: Callable[[Answer, Tensor], None],
    world: World = ALONE,
) -> None:
    """``look`` at the answer to every batch of this process's share, and at its positions (B,).

    The network is put into evaluation meanwhile.
    """
    training = network.training
    network.eval()
    with torch.inference_mode():
        for batch in rows.ahead(batches(questions, BATCH, "stored", world=world)):
            if len(batch.questions):
                look(ask(network, rows, questions, batch), batch.questions)
    network.train(training)


def predictions(network: Network, rows: Rows, questions: Questions, world: World = ALONE) -> Tensor:
    """(N,) int64 on the CPU: the class of the likeliest answer to each question.

    Over several processes each question is answered by one, and all get the answers.
    """
    classes = torch.zeros_like(questions.label)

    def look(answer: Answer, which: Tensor) -> None:
        classes[which] = answer.logits.argmax(1)

    ask_all(network, rows, questions, look, world)
    return world.add_up(classes.cpu())
