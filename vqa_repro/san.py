"""Stacked Attention Networks (Yang et al., CVPR 2016, arXiv 1511.02274v2).

The question looks at the picture K times; each look ("hop") adds what it saw to the query of the
next. Equation numbers below are the paper's. Where the authors' code does something else,
``fidelity="released"`` follows the code.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from vqa_repro.attention import Answer, per_question
from vqa_repro.encoder import CNNEncoder, LSTMEncoder, ReleasedLSTMEncoder, init_released

Fidelity = Literal["paper", "released"]


class SAN(nn.Module):
    """Logits over answers from a grid of region vectors and a question.

    vocab_size: word ids are 0 (padding) to vocab_size - 1.
    image_dim: channels of a region vector.
    question: "lstm" (d = ``hidden``) or "cnn" (d = sum of ``filters``).
    attention: width k of the attention layers. layers: their number K.
    dropout: before the classifier.
    """

    def __init__(
        self,
        vocab_size: int,
        num_answers: int,
        image_dim: int,
        *,
        question: Literal["lstm", "cnn"] = "lstm",
        layers: int = 2,
        embedding: int = 500,
        hidden: int = 1024,
        filters: tuple[int, int, int] = (256, 512, 512),
        attention: int = 512,
        dropout: float = 0.5,
        fidelity: Fidelity = "paper",
    ) -> None:
        super().__init__()
        if question not in ("lstm", "cnn"):
            raise ValueError(f"question = {question!r}: there are lstm and cnn")
        if fidelity not in ("paper", "released"):
            raise ValueError(f"fidelity = {fidelity!r}: there are paper and released")
        self.fidelity = fidelity
        released = fidelity == "released"
        d = hidden if question == "lstm" else sum(filters)
        if question == "cnn":
            self.question: nn.Module = CNNEncoder(vocab_size, embedding, filters, released=released)
        elif released:
            self.question = ReleasedLSTMEncoder(vocab_size, embedding, hidden)
        else:
            self.question = LSTMEncoder(vocab_size, embedding, hidden)
        self.W_I = nn.Linear(image_dim, d)
        # All hops' projections of the image are one matrix product; each hop has its own rows.
        self.W_IA = nn.Linear(d, layers * attention, bias=released)
        W_QA = [nn.Linear(d, attention) for _ in range(layers)]
        # b_P is left out of the paper's form: a softmax does not change with it.
        W_P = [nn.Linear(attention, 1, bias=released) for _ in range(layers)]
        self.W_QA, self.W_P = nn.ModuleList(W_QA), nn.ModuleList(W_P)
        self.dropout = nn.Dropout(dropout)
        self.W_u = nn.Linear(d, num_answers)
        if released:
            for part in (self.W_I, self.W_IA, self.W_QA, self.W_P, self.W_u):
                init_released(part)
        else:
            init_attention(self.W_I, self.W_IA, W_QA, W_P)

    def forward(
        self, grid: Tensor, tokens: Tensor, lengths: Tensor, image_of: Tensor | None = None
    ) -> Answer:
        """Answer N questions about I pictures.

        grid: (I, R, image_dim) region vectors. tokens: (N, T) int64, 0 at the right of a question.
        lengths: (N,) int64, at least 1. image_of: (N,) int64 rows of ``grid``; None if I == N.
        Attention "hop 1" .. "hop K": (N, R).
        """
        v_I = torch.tanh(self.W_I(grid))  # (I, R, d), equation 1
        image = self.W_IA(v_I)  # (I, R, K*k)
        if self.fidelity == "released":
            image = torch.tanh(image)
        v_I = per_question(v_I, image_of)  # (N, R, d)
        hops = per_question(image, image_of).chunk(len(self.W_P), dim=2)  # K times (N, R, k)

        u = self.question(tokens, lengths)  # (N, d): u^0 = v_Q
        maps: dict[str, Tensor] = {}
        for k, (image_k, W_QA, W_P) in enumerate(zip(hops, self.W_QA, self.W_P, strict=True), 1):
            question_k = W_QA(u)[:, None, :]  # (N, 1, k)
            if self.fidelity == "released":
                logits = torch.tanh(W_P(image_k + torch.tanh(question_k)))
            else:
                logits = W_P(torch.tanh(image_k + question_k))  # equations 15, 16
            at_least_float32 = torch.promote_types(logits.dtype, torch.float32)
            p = torch.softmax(logits.squeeze(2), dim=1, dtype=at_least_float32)  # (N, R)
            u = torch.bmm(p[:, None, :].to(v_I.dtype), v_I).squeeze(1) + u  # equations 17, 18
            maps[f"hop {k}"] = p
        return Answer(self.W_u(self.dropout(u)), maps)  # equation 19


def init_attention(
    W_I: nn.Linear, W_IA: nn.Linear, W_QA: list[nn.Linear], W_P: list[nn.Linear]
) -> None:
    """Start where the tanh of equation 15 is curved; the paper does not say where it starts.

    In its straight part, question and region only add up: whether they match, as "is there a
    circle?" asks, has no gradient, and learning it is put off for thousands of steps.
    """
    gain = nn.init.calculate_gain("tanh")
    nn.init.xavier_uniform_(W_I.weight, gain)
    for image_k in torch.split(W_IA.weight, W_QA[0].out_features):
        nn.init.xavier_uniform_(image_k, gain)
    for question_k, logit_k in zip(W_QA, W_P, strict=True):
        # An untrained LSTM's states are far smaller than region vectors are.
        nn.init.xavier_uniform_(question_k.weight, 4 * gain)
        nn.init.xavier_uniform_(logit_k.weight, 2)
