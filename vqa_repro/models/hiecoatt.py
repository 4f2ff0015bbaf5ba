"""Hierarchical question-image co-attention (Lu et al., NIPS 2016, arXiv 1606.00061).

Question and picture attend to each other at three levels: the words, the phrases (n-grams) and
the whole question (LSTM states); an MLP joins the three. Equation numbers below are the paper's;
its column vectors are rows here.

Where text and authors' code differ, ``fidelity`` decides:

========================  ===========================  ========================================
                          ``paper``                    ``released``
========================  ===========================  ========================================
word vector               W_e q                        tanh(W_e q)
region vector             W_I f (see below)            tanh(W_I f + b_I), dropout
bigram, trigram of word t words t..t+1, t..t+2         words t-1..t, t-1..t+1
LSTM                      1 layer                      2 layers, dropout between them
other linear layers       no bias, as in the equations with bias
========================  ===========================  ========================================

The paper takes region vectors of the model's own width for granted and names no projection; W_I
makes them so for any backbone. It puts dropout "on each layer"; the code says where, and both
variants drop there: word, phrase and LSTM outputs, H in every attention, inputs of the MLP layers.
Of a region vector, all questions about the picture in a batch drop the same (``released``): with
questions drawn singly, as in the code, a batch rarely holds two.
In both, the steps of alternating attention have weights of their own, as in the code.

Left out of the code's arithmetic, because no answer depends on it: the bias of a score under a
softmax, and the second of two biases that are only ever added. Left out because answers would
depend on how far a batch is padded: there, phrases of padding take part in H_v (equation 4).
Initial values are PyTorch's defaults, which have the distributions of the code's Torch 7 layers.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqa_repro.models.common import ModelOutput, QuestionGroups, group_by_image, word_mask
from vqa_repro.models.ops.attention import Dropout, additive_scores, coattention, pooled
from vqa_repro.models.ops.lstm import LSTM


class HieCoAtt(nn.Module):
    """Logits over answers from a grid of region vectors and a question.

    vocab_size: word ids are 0 (padding) to vocab_size - 1.
    image_dim: channels of a region vector.
    hidden: width d of every layer but the last hidden one, which is ``last_hidden`` wide: 1024
    for VQA, 512 for COCO-QA.
    input_dropout: of region vectors before W_I, which neither paper nor code has; one choice for
    all questions about a picture in a batch.
    """

    def __init__(
        self,
        vocab_size: int,
        num_answers: int,
        image_dim: int,
        *,
        coattention: Literal["parallel", "alternating"] = "parallel",
        hidden: int = 512,
        last_hidden: int = 1024,
        dropout: float = 0.5,
        input_dropout: float = 0.0,
        fidelity: Literal["paper", "released"] = "paper",
    ) -> None:
        super().__init__()
        if coattention not in ("parallel", "alternating"):
            raise ValueError(f"coattention {coattention!r} is neither parallel nor alternating")
        if fidelity not in ("paper", "released"):
            raise ValueError(f"fidelity {fidelity!r} is neither paper nor released")
        self.released = released = fidelity == "released"
        attention = ParallelCoAttention if coattention == "parallel" else AlternatingCoAttention

        self.W_e = nn.Embedding(vocab_size, hidden, padding_idx=0)
        self.W_c = nn.ModuleList(nn.Conv1d(hidden, hidden, s, bias=released) for s in (1, 2, 3))
        self.lstm = LSTM(hidden, hidden, 2, dropout) if released else LSTM(hidden, hidden)
        self.W_I = nn.Linear(image_dim, hidden, bias=released)
        # Every level's own projection of the picture (W_v, or W_x on V), as one matrix product.
        self.W_V = nn.Linear(hidden, 3 * hidden, bias=released)
        self.word = attention(hidden, dropout, bias=released)
        self.phrase = attention(hidden, dropout, bias=released)
        self.question = attention(hidden, dropout, bias=released)
        self.W_w = nn.Linear(hidden, hidden, bias=released)
        self.W_p = nn.Linear(2 * hidden, hidden, bias=released)
        self.W_s = nn.Linear(2 * hidden, last_hidden, bias=released)
        self.W_h = nn.Linear(last_hidden, num_answers, bias=released)
        self.dropout = Dropout(dropout)
        self.input_dropout = Dropout(input_dropout)

    def forward(
        self, grid: Tensor, tokens: Tensor, lengths: Tensor, image_of: Tensor | None = None
    ) -> ModelOutput:
        """Answer N questions about I pictures.

        grid: (I, R, image_dim) region vectors. tokens: (N, T) int64, 0 at the right of a question.
        lengths: (N,) int64, at least 1. image_of: (N,) int64 rows of ``grid``; None if I == N.
        Attention: "word/image", "phrase/image", "question/image" (N, R), and likewise "/question"
        (N, T).
        """
        words = word_mask(tokens, lengths)  # (N, T)
        asked = group_by_image(image_of, grid)
        V, W_V_V = self.image_levels(grid)
        Q_w, Q_p, Q_s = self.question_levels(tokens, words, lengths)

        projected_w, projected_p, projected_s = W_V_V.chunk(3, dim=2)  # 3 times (I, R, d)
        q_w, v_w, a_qw, a_vw = self.word(Q_w, V, projected_w, words, asked)
        q_p, v_p, a_qp, a_vp = self.phrase(Q_p, V, projected_p, words, asked)
        q_s, v_s, a_qs, a_vs = self.question(Q_s, V, projected_s, words, asked)

        # Equation 7.
        h_w = torch.tanh(self.W_w(self.dropout(q_w + v_w)))  # (N, d)
        h_p = torch.tanh(self.W_p(self.dropout(torch.cat([q_p + v_p, h_w], dim=1))))  # (N, d)
        h_s = torch.tanh(self.W_s(self.dropout(torch.cat([q_s + v_s, h_p], dim=1))))
        return ModelOutput(
            self.W_h(self.dropout(h_s)),
            {
                "word/image": a_vw,
                "word/question": a_qw,
                "phrase/image": a_vp,
                "phrase/question": a_qp,
                "question/image": a_vs,
                "question/question": a_qs,
            },
        )

    def image_levels(self, grid: Tensor) -> tuple[Tensor, Tensor]:
        """Region vectors V (I, R, d), and their projections for the three levels (I, R, 3d)."""
        V = self.W_I(self.input_dropout(grid))  # (I, R, d)
        if self.released:
            V = self.dropout(torch.tanh(V))
        return V, self.W_V(V)

    def question_levels(
        self, tokens: Tensor, words: Tensor, lengths: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors of words, phrases and question, each (N, T, d) and 0 where ``words`` is False."""
        words = words[:, :, None]
        Q_w = self.W_e(tokens)
        if self.released:
            Q_w = torch.tanh(Q_w)
        Q_w = self.dropout(Q_w) * words

        n_grams = []
        for s, conv in enumerate(self.W_c, start=1):
            before = 1 if self.released and s > 1 else 0
            n_grams.append(conv(F.pad(Q_w.transpose(1, 2), (before, s - 1 - before))))
        # Equations 1 and 2. tanh rises, so it may follow the maximum: one tanh instead of three.
        Q_p = torch.tanh(torch.stack(n_grams).amax(dim=0)).transpose(1, 2)
        Q_p = self.dropout(Q_p) * words

        Q_s = self.dropout(self.lstm(Q_p, lengths)) * words
        return Q_w, Q_p, Q_s


class ParallelCoAttention(nn.Module):
    """Section 3.3: question and picture attend to each other at the same time."""

    def __init__(self, d: int, dropout: float, *, bias: bool) -> None:
        super().__init__()
        self.W_b = nn.Linear(d, d, bias=bias)  # from V's space to Q's
        self.W_q = nn.Linear(d, d, bias=bias)
        self.w_hv = nn.Linear(d, 1, bias=False)
        self.w_hq = nn.Linear(d, 1, bias=False)
        self.dropout = Dropout(dropout)

    def forward(
        self, Q: Tensor, V: Tensor, W_v_V: Tensor, words: Tensor, asked: QuestionGroups
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Attended question and picture (N, d) each, weights of words (N, T) and regions (N, R).

        Q: (N, T, d), 0 where ``words`` (N, T) is False. V: (I, R, d). W_v_V: (I, R, d).
        """
        # Equation 3, C = tanh(Q (W_b V + b)^T). Multiplied from the left, because a question has
        # fewer words than a picture has regions. Words of zeros have rows of zeros in C.
        Q_b = Q @ self.W_b.weight  # (N, T, d)
        b = Q.new_zeros(Q.shape[:2]) if self.W_b.bias is None else Q @ self.W_b.bias
        W_q_Q = self.W_q(Q)  # (N, T, d)
        # Equation 4, and the scores of equation 5.
        scores, C_W_v_V = coattention(
            Q_b, b, W_q_Q, V, W_v_V, self.w_hv.weight[0], asked, active(self.dropout)
        )
        H_q = torch.tanh(W_q_Q + C_W_v_V)  # (N, T, d)
        a_v = softmax(scores)
        q, a_q = attend(Q, self.w_hq(self.dropout(H_q)), words)
        return q, pooled(a_v, V, asked), a_q, a_v


class AlternatingCoAttention(nn.Module):
    """Section 3.3, equation 6: summarise the question, look, then read again with what was seen."""

    def __init__(self, d: int, dropout: float, *, bias: bool) -> None:
        super().__init__()
        self.W_x1 = nn.Linear(d, d, bias=bias)
        self.w_hx1 = nn.Linear(d, 1, bias=False)
        self.W_g2 = nn.Linear(d, d, bias=False)
        self.w_hx2 = nn.Linear(d, 1, bias=False)
        self.W_x3 = nn.Linear(d, d, bias=bias)
        self.W_g3 = nn.Linear(d, d, bias=False)
        self.w_hx3 = nn.Linear(d, 1, bias=False)
        self.dropout = Dropout(dropout)

    def forward(
        self, Q: Tensor, V: Tensor, W_x_V: Tensor, words: Tensor, asked: QuestionGroups
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As ``ParallelCoAttention.forward``; the weights of words are those of the last step."""
        H = torch.tanh(self.W_x1(Q))  # (N, T, d): the first step has no guidance, g = 0
        s, _ = attend(Q, self.w_hx1(self.dropout(H)), words)
        w_hx2 = self.w_hx2.weight[0]
        a_v = softmax(additive_scores(W_x_V, self.W_g2(s), w_hx2, asked, active(self.dropout)))
        v = pooled(a_v, V, asked)
        H = torch.tanh(self.W_x3(Q) + self.W_g3(v)[:, None, :])  # (N, T, d)
        q, a_q = attend(Q, self.w_hx3(self.dropout(H)), words)
        return q, v, a_q, a_v


def active(dropout: nn.Dropout) -> float:
    """The probability of ``dropout``; 0 when not training."""
    return dropout.p if dropout.training else 0.0


def softmax(scores: Tensor) -> Tensor:
    """Over the last dimension, in at least float32."""
    return torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))


def attend(X: Tensor, scores: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of X (N, T, d) weighted by the softmax of ``scores`` (N, T, 1): (N, d), and its weights.

    Positions where ``words`` (N, T) is False weigh 0.
    """
    a = softmax(scores.squeeze(2).masked_fill(~words, -torch.inf))  # (N, T)
    return torch.bmm(a[:, None, :].to(X.dtype), X).squeeze(1), a
