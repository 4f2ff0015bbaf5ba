"""Plain PyTorch forms of the attention operations: the reference that the fast paths must match.

Shapes: N questions about I images of R regions; ``groups`` assigns questions to images.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from vqa_repro.models.common import QuestionGroups, per_question


def additive_scores(
    image: Tensor, question: Tensor, w: Tensor, groups: QuestionGroups, dropout: float = 0.0
) -> Tensor:
    """Return w . dropout(tanh(image + question)), (N, R).

    image: (I, R, k). question: (N, k), or (N, R, k) with a separate vector per region. w: (k,).
    """
    if question.ndim == 2:
        question = question[:, None, :]
    H = torch.tanh(per_question(image, groups.image_index) + question)
    return F.dropout(H, dropout) @ w


def coattention(
    Q_b: Tensor,
    b: Tensor,
    W_q_Q: Tensor,
    V: Tensor,
    W_v_V: Tensor,
    w_hv: Tensor,
    groups: QuestionGroups,
    dropout: float = 0.0,
    scores_of: Callable[..., Tensor] = additive_scores,
) -> tuple[Tensor, Tensor]:
    """As ``attention.coattention``; ``scores_of`` computes the additive scores."""
    V_n = per_question(V, groups.image_index)  # (N, R, d)
    C = torch.tanh(torch.bmm(Q_b, V_n.transpose(1, 2)) + b[:, :, None])  # (N, T, R)
    question = torch.bmm(C.transpose(1, 2), W_q_Q)  # (N, R, d)
    scores = scores_of(W_v_V, question, w_hv, groups, dropout)
    return scores, torch.bmm(C, per_question(W_v_V, groups.image_index))


def pool(p: Tensor, v: Tensor, groups: QuestionGroups) -> Tensor:
    """Return the mean of v (I, R, d) weighted by p (N, R), (N, d)."""
    v_n = per_question(v, groups.image_index)
    return torch.bmm(p[:, None, :].to(v.dtype), v_n).squeeze(1)
