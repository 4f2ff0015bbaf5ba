"""Training targets: the label, or the human answers.

SAN's code draws one of the human answers at every step ("sampled"); "soft" is its expectation,
without the sampling noise. For data sets with one answer a question all three are the same.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from vqa_repro.data.questions import Target


def cross_entropy(logits: Tensor, label: Tensor, answers: Tensor, target: Target) -> Tensor:
    """Return (B,) cross-entropy of ``logits`` (B, num_answers) for each question.

    label: (B,) int64. answers: (B, A) int64, -1 where an answer is not a class. Each question has
    to be one of ``Questions.trainable(target)``. A sampled target draws from torch's generator.
    """
    logits = logits.float()
    if target == "label":
        return F.cross_entropy(logits, label, reduction="none")
    known = (answers >= 0).float()
    if target == "sampled":
        # What multinomial draws, which would make the CPU wait for the GPU.
        drawn = (known / torch.empty_like(known).exponential_()).argmax(1, keepdim=True)
        return F.cross_entropy(logits, answers.gather(1, drawn).squeeze(1), reduction="none")
    log_p = F.log_softmax(logits, dim=1).gather(1, answers.clamp(min=0))  # (B, A)
    return -(log_p * known).sum(dim=1) / known.sum(dim=1)


def symmetric_divergence(logits: Tensor, others: Tensor) -> Tensor:
    """Return (B,) (KL(p, q) + KL(q, p)) / 2 of the answers' probabilities by two passes.

    logits, others: (B, num_answers). R-Drop (Liang et al. 2021), whose loss is twice ours.
    """
    log_p, log_q = logits.float().log_softmax(1), others.float().log_softmax(1)
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(1) / 2
