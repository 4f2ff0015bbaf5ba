"""Stacked Attention Networks (Yang et al., CVPR 2016, arXiv 1511.02274v2).

The question attends to the image K times; each attention layer ("hop") adds its result to the
query of the next. Equation numbers below are the paper's. Where the authors' code differs,
``fidelity="released"`` follows the code.
"""

from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqa_repro.models.common import (
    Dropout,
    ModelOutput,
    QuestionGroups,
    group_by_image,
    per_question,
    softmax,
)
from vqa_repro.models.encoders import CNNEncoder, LSTMEncoder, ReleasedLSTMEncoder, init_as_code
from vqa_repro.models.ops.attention import additive_scores, pool

MAX_LAYERS = 100  # the paper has 1 and 2; recipes may be untrusted


class SAN(nn.Module):
    """Logits over answers from a grid of region vectors and a question.

    vocab_size: word ids are 0 (padding) to vocab_size - 1.
    image_dim: channels of a region vector.
    question: "lstm" (d = ``hidden``) or "cnn" (d = sum of ``filters``).
    attention: width k of the attention layers. layers: their number K.
    dropout: before the classifier.
    word_dropout, image_dropout, question_dropout, attention_dropout: of word vectors, of v_I and
    v_Q (a mask for every question), and of the hidden layer of the attention; the switches of the
    authors' code, where they are off.
    input_dropout: of word vectors and of region vectors before W_I, with one mask for all
    questions about an image in a batch; neither in the paper nor in the code.
    init: initial values; "own", "code" (``init_as_code``) or "auto": code if released, else own.
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
        word_dropout: float = 0.0,
        image_dropout: float = 0.0,
        question_dropout: float = 0.0,
        attention_dropout: float = 0.0,
        input_dropout: float = 0.0,
        fidelity: Literal["paper", "released"] = "paper",
        init: Literal["auto", "own", "code"] = "auto",
    ) -> None:
        super().__init__()
        _check_options(question, layers, fidelity, init)
        if word_dropout and input_dropout:
            raise ValueError("input_dropout drops word vectors already: set word_dropout = 0")
        self.released = released = fidelity == "released"
        code_init = init == "code" or (init == "auto" and released)
        d = hidden if question == "lstm" else sum(filters)
        words, p = (vocab_size, embedding), word_dropout or input_dropout
        if question == "cnn":
            self.question: nn.Module = CNNEncoder(
                *words, filters, dropout=p, released=released, code_init=code_init
            )
        else:
            encoder = ReleasedLSTMEncoder if released else LSTMEncoder
            self.question = encoder(*words, hidden, dropout=p, code_init=code_init)
        self.W_I = nn.Linear(image_dim, d)
        W_IA = [nn.Linear(d, attention, bias=released) for _ in range(layers)]
        W_QA = [nn.Linear(d, attention) for _ in range(layers)]
        # The paper's form needs no b_P: a softmax does not depend on it.
        W_P = [nn.Linear(attention, 1, bias=released) for _ in range(layers)]
        self.W_IA, self.W_QA, self.W_P = map(nn.ModuleList, (W_IA, W_QA, W_P))
        self.dropout = Dropout(dropout)
        self.input_dropout = Dropout(input_dropout)
        self.image_dropout = Dropout(image_dropout)
        self.question_dropout = Dropout(question_dropout)
        self.attention_dropout = Dropout(attention_dropout)
        self.W_u = nn.Linear(d, num_answers)
        if code_init:
            for part in (self.W_I, self.W_IA, self.W_QA, self.W_P, self.W_u):
                init_as_code(part)
        else:
            init_attention(self.W_I, W_IA, W_QA, W_P)

    def forward(
        self, grid: Tensor, tokens: Tensor, lengths: Tensor, image_index: Tensor | None = None
    ) -> ModelOutput:
        """Answer N questions about I images.

        grid: (I, R, image_dim) region vectors. tokens: (N, T) int64, 0 at the right of a question.
        lengths: (N,) int64, at least 1. image_index: (N,) int64 rows of ``grid``; None if I == N.
        Attention maps "hop 1" .. "hop K": (N, R).
        """
        v_I = torch.tanh(self.W_I(self.input_dropout(grid)))  # (I, R, d), equation 2
        if self.training and self.image_dropout.p:
            # A mask for every question: from here on each question has an image of its own.
            v_I, image_index = self.image_dropout(per_question(v_I, image_index)), None
        # The image projections of all hops are one matrix product.
        bias = _stack(self.W_IA, "bias") if self.released else None
        projections = F.linear(v_I, _stack(self.W_IA, "weight"), bias)  # (I, R, K*k)
        if self.released:
            projections = torch.tanh(projections)

        groups = group_by_image(image_index, v_I)
        u = self.question_dropout(self.question(tokens, lengths))  # (N, d): u^0 = v_Q
        maps: dict[str, Tensor] = {}
        for k, projection in enumerate(projections.chunk(len(self.W_P), dim=2)):  # (I, R, k)
            p = softmax(self._scores(k, projection, u, groups))  # (N, R), equation 16
            u = pool(p, v_I, groups) + u  # equations 17, 18
            maps[f"hop {k + 1}"] = p
        return ModelOutput(self.W_u(self.dropout(u)), maps)  # equation 23

    def _scores(self, k: int, image: Tensor, u: Tensor, groups: QuestionGroups) -> Tensor:
        """Return the attention logits (N, R) of hop ``k`` (equations 15 and 16).

        image: (I, R, k), its projection of v_I. u: (N, d), the query.
        """
        question = self.W_QA[k](u)  # (N, k)
        W_P = cast(nn.Linear, self.W_P[k])
        p = self.attention_dropout.p if self.training else 0.0
        if not self.released:
            return additive_scores(image, question, W_P.weight[0], groups, p)
        question = torch.tanh(question)
        if p:
            H = per_question(image, groups.image_index) + question[:, None, :]  # (N, R, k)
            return torch.tanh(W_P(self.attention_dropout(H)).squeeze(2))
        # w . (image + question) is one number per region plus one number per question.
        image_scores = per_question(W_P(image).squeeze(2), groups.image_index)  # (N, R)
        return torch.tanh(image_scores + question @ W_P.weight[0][:, None])


def _check_options(question: str, layers: int, fidelity: str, init: str) -> None:
    if question not in ("lstm", "cnn"):
        raise ValueError(f"question = {question!r}: choose lstm or cnn")
    if fidelity not in ("paper", "released"):
        raise ValueError(f"fidelity = {fidelity!r}: choose paper or released")
    if init not in ("auto", "own", "code"):
        raise ValueError(f"init = {init!r}: choose auto, own or code")
    if not 1 <= layers <= MAX_LAYERS:
        raise ValueError(f"layers = {layers}: choose 1 to {MAX_LAYERS}")


def _stack(layers: nn.ModuleList, name: str) -> Tensor:
    """Concatenate the parameters called ``name`` of all ``layers`` along their first dimension."""
    return torch.cat([getattr(layer, name) for layer in layers])


def init_attention(
    W_I: nn.Linear, W_IA: list[nn.Linear], W_QA: list[nn.Linear], W_P: list[nn.Linear]
) -> None:
    """Initialise the attention in the curved part of equation 15's tanh.

    The paper gives no initial values. In the linear part of tanh, question and region only add up:
    whether they match, as in "is there a circle?", has no gradient, and learning it is delayed
    by thousands of steps.
    """
    gain = nn.init.calculate_gain("tanh")
    nn.init.xavier_uniform_(W_I.weight, gain)
    for image_k, question_k, logit_k in zip(W_IA, W_QA, W_P, strict=True):
        nn.init.xavier_uniform_(image_k.weight, gain)
        # The states of an untrained LSTM are far smaller than region vectors.
        nn.init.xavier_uniform_(question_k.weight, 4 * gain)
        nn.init.xavier_uniform_(logit_k.weight, 2)
