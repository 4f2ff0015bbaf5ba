"""What the models are trained to say: the label, or what people answered.

SAN's code draws one of the human answers in every step ("sampled"); "soft" is what that is on
average, without the noise of drawing. Data sets with one answer a question are the same in all.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from vqa_repro.data.questions import Questions, Target


def cross_entropy(logits: Tensor, questions: Questions, which: Tensor, target: Target) -> Tensor:
    """(B,): cross-entropy of ``logits`` (B, num_answers) for each of the questions ``which`` (B,).

    Each of them has to be one of ``Questions.trainable(target)``. Draws from torch's random
    numbers where the target is sampled.
    """
    logits = logits.float()
    if target == "label":
        return F.cross_entropy(logits, questions.label[which], reduction="none")
    answers = questions.answers[which]  # (B, A)
    known = (answers >= 0).float()
    if target == "sampled":
        # As multinomial draws, which would make the program wait for a GPU.
        drawn = (known / torch.empty_like(known).exponential_()).argmax(1, keepdim=True)
        return F.cross_entropy(logits, answers.gather(1, drawn).squeeze(1), reduction="none")
    log_p = F.log_softmax(logits, dim=1).gather(1, answers.clamp(min=0))  # (B, A)
    return -(log_p * known).sum(dim=1) / known.sum(dim=1)
