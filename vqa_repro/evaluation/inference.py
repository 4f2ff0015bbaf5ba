"""A network's answers to many questions."""

from collections.abc import Callable

import torch
from torch import Tensor

from vqa_repro.data.questions import Batch, Questions, batches
from vqa_repro.features.loader import FeatureLoader
from vqa_repro.models.common import ModelOutput
from vqa_repro.models.network import VQAModel
from vqa_repro.utils.distributed import SINGLE_PROCESS, World

BATCH = 1024  # questions


def ask(network: VQAModel, rows: FeatureLoader, questions: Questions, batch: Batch) -> ModelOutput:
    """The network's answer to the questions of ``batch``."""
    which = batch.questions
    tokens, lengths = questions.tokens[:, : batch.longest][which], questions.lengths[which]
    answer: ModelOutput = network(rows[batch.rows], tokens, lengths, batch.image_of)
    return answer


def ask_all(
    network: VQAModel,
    rows: FeatureLoader,
    questions: Questions,
    look: Callable[[ModelOutput, Tensor], None],
    world: World = SINGLE_PROCESS,
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


def predictions(
    network: VQAModel, rows: FeatureLoader, questions: Questions, world: World = SINGLE_PROCESS
) -> Tensor:
    """(N,) int64 on the CPU: the class of the likeliest answer to each question.

    Over several processes each question is answered by one, and all get the answers.
    """
    classes = torch.zeros_like(questions.label)

    def look(answer: ModelOutput, which: Tensor) -> None:
        classes[which] = answer.logits.argmax(1)

    ask_all(network, rows, questions, look, world)
    return world.all_reduce(classes.cpu())
