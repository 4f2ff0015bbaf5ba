"""Stacked Attention Networks (Yang et al., CVPR 2016, arXiv 1511.02274v2).

The question looks at the picture K times; each look ("hop") adds what it saw to the query of the
next. Equation numbers below are the paper's. Where the authors' code does something else,
``fidelity="released"`` follows the code.
"""

from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqa_repro.models.common import ModelOutput, group_by_image, per_question
from vqa_repro.models.encoders import CNNEncoder, LSTMEncoder, ReleasedLSTMEncoder, init_released
from vqa_repro.models.ops.attention import Dropout, additive_scores, pooled

Fidelity = Literal["paper", "released"]
MOST_LAYERS = 100  # the paper has 1 and 2; recipes may come from strangers


class SAN(nn.Module):
    """Logits over answers from a grid of region vectors and a question.

    vocab_size: word ids are 0 (padding) to vocab_size - 1.
    image_dim: channels of a region vector.
    question: "lstm" (d = ``hidden``) or "cnn" (d = sum of ``filters``).
    attention: width k of the attention layers. layers: their number K.
    dropout: before the classifier. input_dropout: of word vectors and region vectors, one choice
    for all questions about a picture in a batch. normalize: region vectors to one length. Neither
    is in the paper.
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
        input_dropout: float = 0.0,
        normalize: bool = False,
        fidelity: Fidelity = "paper",
    ) -> None:
        super().__init__()
        if question not in ("lstm", "cnn"):
            raise ValueError(f"question = {question!r}: there are lstm and cnn")
        if fidelity not in ("paper", "released"):
            raise ValueError(f"fidelity = {fidelity!r}: there are paper and released")
        if not 1 <= layers <= MOST_LAYERS:
            raise ValueError(f"layers = {layers}: there can be 1 to {MOST_LAYERS}")
        self.fidelity = fidelity
        self.normalize = normalize
        self.input_dropout = Dropout(input_dropout)
        released = fidelity == "released"
        d = hidden if question == "lstm" else sum(filters)
        if question == "cnn":
            self.question: nn.Module = CNNEncoder(
                vocab_size, embedding, filters, dropout=input_dropout, released=released
            )
        elif released:
            self.question = ReleasedLSTMEncoder(
                vocab_size, embedding, hidden, dropout=input_dropout
            )
        else:
            self.question = LSTMEncoder(vocab_size, embedding, hidden, dropout=input_dropout)
        self.W_I = nn.Linear(image_dim, d)
        W_IA = [nn.Linear(d, attention, bias=released) for _ in range(layers)]
        W_QA = [nn.Linear(d, attention) for _ in range(layers)]
        # b_P is left out of the paper's form: a softmax does not change with it.
        W_P = [nn.Linear(attention, 1, bias=released) for _ in range(layers)]
        self.W_IA, self.W_QA, self.W_P = map(nn.ModuleList, (W_IA, W_QA, W_P))
        self.dropout = Dropout(dropout)
        self.W_u = nn.Linear(d, num_answers)
        if released:
            for part in (self.W_I, self.W_IA, self.W_QA, self.W_P, self.W_u):
                init_released(part)
        else:
            init_attention(self.W_I, W_IA, W_QA, W_P)

    def forward(
        self, grid: Tensor, tokens: Tensor, lengths: Tensor, image_of: Tensor | None = None
    ) -> ModelOutput:
        """Answer N questions about I pictures.

        grid: (I, R, image_dim) region vectors. tokens: (N, T) int64, 0 at the right of a question.
        lengths: (N,) int64, at least 1. image_of: (N,) int64 rows of ``grid``; None if I == N.
        Attention "hop 1" .. "hop K": (N, R).
        """
        if self.normalize:  # to the length of a vector whose numbers are 1 in the mean square
            grid = F.normalize(grid, dim=2) * grid.shape[2] ** 0.5
        v_I = torch.tanh(self.W_I(self.input_dropout(grid)))  # (I, R, d), equation 1
        # All hops' projections of the image are one matrix product.
        if self.fidelity == "released":
            image = torch.tanh(
                F.linear(
                    v_I, init_distributed(self.W_IA, "weight"), init_distributed(self.W_IA, "bias")
                )
            )
        else:
            image = F.linear(v_I, init_distributed(self.W_IA, "weight"))  # (I, R, K*k)
        hops = image.chunk(len(self.W_P), dim=2)  # K times (I, R, k)

        asked = group_by_image(image_of, grid)
        u = self.question(tokens, lengths)  # (N, d): u^0 = v_Q
        maps: dict[str, Tensor] = {}
        for k, (image_k, W_QA, W_P) in enumerate(zip(hops, self.W_QA, self.W_P, strict=True), 1):
            question_k: Tensor = W_QA(u)  # (N, k)
            w_P = cast(Tensor, W_P.weight)[0]  # (k,)
            if self.fidelity == "released":
                # w . (image + question) is a number per region and a number per question.
                of_image = per_question(W_P(image_k).squeeze(2), image_of)  # (N, R)
                of_question = torch.tanh(question_k) @ w_P[:, None]  # (N, 1)
                logits = torch.tanh(of_image + of_question)
            else:
                # Equations 15, 16.
                logits = additive_scores(image_k, question_k, w_P, asked)
            at_least_float32 = torch.promote_types(logits.dtype, torch.float32)
            p = torch.softmax(logits, dim=1, dtype=at_least_float32)  # (N, R)
            u = pooled(p, v_I, asked) + u  # equations 17, 18
            maps[f"hop {k}"] = p
        return ModelOutput(self.W_u(self.dropout(u)), maps)  # equation 19


def init_distributed(layers: nn.ModuleList, name: str) -> Tensor:
    """The layers' parameters called ``name``, one below the other."""
    return torch.cat([getattr(layer, name) for layer in layers])


def init_attention(
    W_I: nn.Linear, W_IA: list[nn.Linear], W_QA: list[nn.Linear], W_P: list[nn.Linear]
) -> None:
    """Start where the tanh of equation 15 is curved; the paper does not say where it starts.

    In its straight part, question and region only add up: whether they match, as "is there a
    circle?" asks, has no gradient, and learning it is put off for thousands of steps.
    """
    gain = nn.init.calculate_gain("tanh")
    nn.init.xavier_uniform_(W_I.weight, gain)
    for image_k, question_k, logit_k in zip(W_IA, W_QA, W_P, strict=True):
        nn.init.xavier_uniform_(image_k.weight, gain)
        # An untrained LSTM's states are far smaller than region vectors are.
        nn.init.xavier_uniform_(question_k.weight, 4 * gain)
        nn.init.xavier_uniform_(logit_k.weight, 2)
