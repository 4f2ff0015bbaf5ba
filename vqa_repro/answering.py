"""A network's answers to many questions."""

import torch
from torch import Tensor

from vqa_repro.attention import Answer
from vqa_repro.model import Network
from vqa_repro.questions import Batch, Questions, batches
from vqa_repro.rows import Rows

BATCH = 1024  # questions


def ask(network: Network, rows: Rows, questions: Questions, batch: Batch) -> Answer:
    """The network's answer to the questions of ``batch``."""
    which = batch.questions
    tokens, lengths = questions.tokens[which], questions.lengths[which]
    if lengths.device.type == "cpu":  # on a GPU, looking at the lengths would wait for it
        tokens = tokens[:, : int(lengths.max())]
    answer: Answer = network(rows[batch.rows], tokens, lengths, batch.image_of)
    return answer


def predictions(network: Network, rows: Rows, questions: Questions) -> Tensor:
    """(N,) int64 on the CPU: the class of the likeliest answer to each question.

    The network is put into evaluation meanwhile.
    """
    training = network.training
    network.eval()
    with torch.inference_mode():
        classes = [
            ask(network, rows, questions, batch).logits.argmax(1)
            for batch in rows.ahead(batches(questions, BATCH, "stored"))
        ]
    network.train(training)
    return torch.cat(classes).cpu()
