"""Hierarchical question-image co-attention (Lu et al., NIPS 2016, arXiv 1606.00061).

Question and image attend to each other at three levels: the words, the phrases (n-grams) and
the whole question (LSTM states); an MLP combines the three. Equation numbers below are the
paper's; its column vectors are rows here.

Where text and authors' code differ, ``fidelity`` decides:

========================  ===========================  ========================================
                          ``paper``                    ``released``
========================  ===========================  ========================================
word vector               W_e q                        tanh(W_e q)
region vector             W_I f + b_I (see below)      tanh(W_I f + b_I), dropout
bigram, trigram of word t words t..t+1, t..t+2         words t-1..t, t-1..t+1
LSTM                      1 layer                      2 layers, dropout between them
========================  ===========================  ========================================

Both have biases in all linear layers: the paper omits them from its equations "to avoid notational
clutter, but they are included in the model" (section 3.1). ``bias=False`` leaves them out.

The paper assumes region vectors of the model's own width and names no projection; W_I projects
those of any backbone. It applies dropout "on each layer"; the code shows where, and both
variants drop there: word, phrase and LSTM outputs, H in every attention, inputs of the MLP layers.
The dropout mask of region vectors (``released``) is shared by all questions about an image in a
batch: with independently drawn questions, as in the code, a batch rarely holds two.
In both, the steps of alternating attention have separate weights, as in the code.

Biases that no answer depends on are left out: those of scores under a softmax, and the second of
two biases that are only ever added (W_g next to W_x; W_q needs its own, since W_q Q is also
multiplied by C). The code's H_v (equation 4) includes phrases of padding, so that answers depend
on how far a batch is padded; here they do not.
Initial values are PyTorch's defaults, which have the distributions of the code's Torch 7 layers.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqa_repro.models.common import (
    Dropout,
    ModelOutput,
    QuestionGroups,
    group_by_image,
    softmax,
    word_mask,
)
from vqa_repro.models.ops.attention import additive_scores, coattention, pool
from vqa_repro.models.ops.lstm import LSTM


class HieCoAtt(nn.Module):
    """Logits over answers from a grid of region vectors and a question.

    vocab_size: word ids are 0 (padding) to vocab_size - 1.
    image_dim: channels of a region vector.
    hidden: width d of every layer but the last hidden one, which is ``last_hidden`` wide: 1024
    for VQA, 512 for COCO-QA.
    input_dropout: of region vectors before W_I, with one mask for all questions about an image in
    a batch; neither in the paper nor in the code.
    bias: whether linear layers and convolutions have biases.
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
        bias: bool = True,
        fidelity: Literal["paper", "released"] = "paper",
    ) -> None:
        super().__init__()
        if coattention not in ("parallel", "alternating"):
            raise ValueError(f"coattention = {coattention!r}: choose parallel or alternating")
        if fidelity not in ("paper", "released"):
            raise ValueError(f"fidelity = {fidelity!r}: choose paper or released")
        self.released = released = fidelity == "released"
        attention = ParallelCoAttention if coattention == "parallel" else AlternatingCoAttention

        self.W_e = nn.Embedding(vocab_size, hidden, padding_idx=0)
        self.W_c = nn.ModuleList(nn.Conv1d(hidden, hidden, s, bias=bias) for s in (1, 2, 3))
        self.lstm = LSTM(hidden, hidden, 2, dropout) if released else LSTM(hidden, hidden)
        self.W_I = nn.Linear(image_dim, hidden, bias=bias)
        # The image projections of the three levels (W_v, or W_x on V) are one matrix product.
        self.W_V = nn.Linear(hidden, 3 * hidden, bias=bias)
        self.word = attention(hidden, dropout, bias=bias)
        self.phrase = attention(hidden, dropout, bias=bias)
        self.question = attention(hidden, dropout, bias=bias)
        self.W_w = nn.Linear(hidden, hidden, bias=bias)
        self.W_p = nn.Linear(2 * hidden, hidden, bias=bias)
        self.W_s = nn.Linear(2 * hidden, last_hidden, bias=bias)
        self.W_h = nn.Linear(last_hidden, num_answers, bias=bias)
        self.dropout = Dropout(dropout)
        self.input_dropout = Dropout(input_dropout)

    def forward(
        self, grid: Tensor, tokens: Tensor, lengths: Tensor, image_index: Tensor | None = None
    ) -> ModelOutput:
        """Answer N questions about I images.

        grid: (I, R, image_dim) region vectors. tokens: (N, T) int64, 0 at the right of a question.
        lengths: (N,) int64, at least 1. image_index: (N,) int64 rows of ``grid``; None if I == N.
        Attention maps: "word/image", "phrase/image", "question/image" (N, R), and the same with
        "/question" (N, T).
        """
        words = word_mask(tokens, lengths)  # (N, T)
        groups = group_by_image(image_index, grid)
        V, W_V_V = self.image_levels(grid)
        Q_w, Q_p, Q_s = self.question_levels(tokens, words, lengths)

        projected_w, projected_p, projected_s = W_V_V.chunk(3, dim=2)  # 3 times (I, R, d)
        q_w, v_w, a_qw, a_vw = self.word(Q_w, V, projected_w, words, groups)
        q_p, v_p, a_qp, a_vp = self.phrase(Q_p, V, projected_p, words, groups)
        q_s, v_s, a_qs, a_vs = self.question(Q_s, V, projected_s, words, groups)

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
        """Return region vectors V (I, R, d) and their projections for three levels (I, R, 3d)."""
        V = self.W_I(self.input_dropout(grid))  # (I, R, d)
        if self.released:
            V = self.dropout(torch.tanh(V))
        return V, self.W_V(V)

    def question_levels(
        self, tokens: Tensor, words: Tensor, lengths: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return word, phrase and question vectors, each (N, T, d), 0 where ``words`` is False."""
        words = words[:, :, None]
        Q_w = self.W_e(tokens)
        if self.released:
            Q_w = torch.tanh(Q_w)
        Q_w = self.dropout(Q_w) * words

        n_grams = []
        for s, conv in enumerate(self.W_c, start=1):
            left = 1 if self.released and s > 1 else 0
            n_grams.append(conv(F.pad(Q_w.transpose(1, 2), (left, s - 1 - left))))
        # Equations 1 and 2. tanh is monotone, so one after the maximum replaces three before it.
        Q_p = torch.tanh(torch.stack(n_grams).amax(dim=0)).transpose(1, 2)
        Q_p = self.dropout(Q_p) * words

        Q_s = self.dropout(self.lstm(Q_p, lengths)) * words
        return Q_w, Q_p, Q_s


class ParallelCoAttention(nn.Module):
    """Section 3.3: question and image attend to each other simultaneously."""

    def __init__(self, d: int, dropout: float, *, bias: bool) -> None:
        super().__init__()
        self.W_b = nn.Linear(d, d, bias=bias)  # from V's space to Q's
        self.W_q = nn.Linear(d, d, bias=bias)
        self.w_hv = nn.Linear(d, 1, bias=False)
        self.w_hq = nn.Linear(d, 1, bias=False)
        self.dropout = Dropout(dropout)

    def forward(
        self, Q: Tensor, V: Tensor, W_v_V: Tensor, words: Tensor, groups: QuestionGroups
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return attended question and image (N, d) and the weights of words and regions.

        The weights are (N, T) and (N, R).
        Q: (N, T, d), 0 where ``words`` (N, T) is False. V: (I, R, d). W_v_V: (I, R, d).
        """
        # Equation 3, C = tanh(Q (W_b V + b)^T). Multiplied from the left, because a question has
        # fewer words than an image has regions. Words that are 0 have rows of zeros in C.
        Q_b = Q @ self.W_b.weight  # (N, T, d)
        b = Q.new_zeros(Q.shape[:2]) if self.W_b.bias is None else Q @ self.W_b.bias
        W_q_Q = self.W_q(Q)  # (N, T, d)
        # Equation 4: H_v with its scores, H_q, and the softmax of both.
        scores, C_W_v_V = coattention(
            Q_b, b, W_q_Q, V, W_v_V, self.w_hv.weight[0], groups, active(self.dropout)
        )
        H_q = torch.tanh(W_q_Q + C_W_v_V)  # (N, T, d)
        a_v = softmax(scores)
        q, a_q = attend(Q, self.w_hq(self.dropout(H_q)), words)
        return q, pool(a_v, V, groups), a_q, a_v


class AlternatingCoAttention(nn.Module):
    """Section 3.3, equation 6: attend to the question, the image, then the question again."""

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
        self, Q: Tensor, V: Tensor, W_x_V: Tensor, words: Tensor, groups: QuestionGroups
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As ``ParallelCoAttention.forward``; word weights are those of the last step."""
        H = torch.tanh(self.W_x1(Q))  # (N, T, d): the first step has no guidance, g = 0
        s, _ = attend(Q, self.w_hx1(self.dropout(H)), words)
        w_hx2 = self.w_hx2.weight[0]
        a_v = softmax(additive_scores(W_x_V, self.W_g2(s), w_hx2, groups, active(self.dropout)))
        v = pool(a_v, V, groups)
        H = torch.tanh(self.W_x3(Q) + self.W_g3(v)[:, None, :])  # (N, T, d)
        q, a_q = attend(Q, self.w_hx3(self.dropout(H)), words)
        return q, v, a_q, a_v


def active(dropout: nn.Dropout) -> float:
    """Return the probability of ``dropout``, 0 when not training."""
    return dropout.p if dropout.training else 0.0


def attend(X: Tensor, scores: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of X (N, T, d) weighted by the softmax of ``scores`` (N, T, 1), and weights.

    Equation 5. Shapes (N, d) and (N, T). Positions where ``words`` (N, T) is False weigh 0.
    """
    a = softmax(scores.squeeze(2).masked_fill(~words, -torch.inf))  # (N, T)
    return torch.bmm(a[:, None, :].to(X.dtype), X).squeeze(1), a
