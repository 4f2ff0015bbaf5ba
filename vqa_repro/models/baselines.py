"""Baselines for SAN and HieCoAtt.

All take the arguments of ``SAN.forward``: grid (I, R, image_dim), tokens (N, T), lengths (N,) and
image_index (N,). The three without attention were published on one fc7 vector of a whole image;
here that vector is the mean of the image's regions, so their published accuracies are a guide,
not a target. Dropout of an image's features is shared by all questions about it in a batch; with
independently drawn questions, as in the authors' code, a batch rarely holds two.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqa_repro.models.common import (
    Dropout,
    ModelOutput,
    group_by_image,
    per_question,
    softmax,
    word_mask,
)
from vqa_repro.models.ops.attention import pool
from vqa_repro.models.ops.lstm import states_in_time_order, time_order


class QuestionOnly(nn.Module):
    """ "LSTM Q" of the VQA paper (Antol et al., 2015, arXiv 1505.00468): does not see the image.

    Word vectors of 300, last hidden and cell state of one LSTM layer (2 x 512), then an MLP with
    two hidden layers of 1000, tanh and dropout, as in the text; no code of this model was released.
    """

    def __init__(
        self,
        vocab_size: int,
        num_answers: int,
        image_dim: int,
        *,
        embedding: int = 300,
        hidden: int = 512,
        mlp: int = 1000,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.question = QuestionLSTM(vocab_size, embedding, hidden, layers=1, dropout=dropout)
        self.classifier = nn.Sequential(
            nn.Linear(2 * hidden, mlp),
            nn.Tanh(),
            Dropout(dropout),
            nn.Linear(mlp, mlp),
            nn.Tanh(),
            Dropout(dropout),
            nn.Linear(mlp, num_answers),
        )

    def forward(
        self, grid: Tensor, tokens: Tensor, lengths: Tensor, image_index: Tensor | None = None
    ) -> ModelOutput:
        return ModelOutput(self.classifier(torch.cat(self.question(tokens, lengths), dim=1)), {})


class DeeperLSTMNormI(nn.Module):
    """ "deeper LSTM Q + norm I" of the VQA paper, as in its authors' code (VQA_LSTM_CNN).

    Hidden and cell states of two LSTM layers (4 x 512) and the image's vector, scaled to length
    1, each become ``common`` tanh units; their product is classified. The text has word vectors of
    300 and two more hidden layers of 1000; the code, which gave the published accuracy, does not.
    """

    def __init__(
        self,
        vocab_size: int,
        num_answers: int,
        image_dim: int,
        *,
        embedding: int = 200,
        hidden: int = 512,
        common: int = 1024,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.question = QuestionLSTM(vocab_size, embedding, hidden, layers=2, dropout=dropout)
        self.W_Q = nn.Linear(4 * hidden, common)
        self.W_I = nn.Linear(image_dim, common)
        self.classifier = nn.Linear(common, num_answers)
        self.dropout = Dropout(dropout)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.08, 0.08)

    def forward(
        self, grid: Tensor, tokens: Tensor, lengths: Tensor, image_index: Tensor | None = None
    ) -> ModelOutput:
        v = F.normalize(grid.mean(dim=1), dim=1)  # (I, image_dim)
        image = per_question(torch.tanh(self.W_I(self.dropout(v))), image_index)  # (N, common)
        q = torch.cat(self.question(tokens, lengths), dim=1)  # (N, 4 * hidden)
        question = torch.tanh(self.W_Q(self.dropout(q)))
        return ModelOutput(self.classifier(self.dropout(question * image)), {})


class BagOfWords(nn.Module):
    """ "IMG+BOW" (Ren et al., NIPS 2015, arXiv 1505.02074).

    Softmax regression on the sum of the question's word vectors and on the image's vector.
    """

    def __init__(
        self, vocab_size: int, num_answers: int, image_dim: int, *, embedding: int = 500
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embedding, padding_idx=0)
        self.question = nn.Linear(embedding, num_answers)
        self.image = nn.Linear(image_dim, num_answers, bias=False)

    def forward(
        self, grid: Tensor, tokens: Tensor, lengths: Tensor, image_index: Tensor | None = None
    ) -> ModelOutput:
        words = self.embedding(tokens) * word_mask(tokens, lengths)[:, :, None]  # (N, T, embedding)
        image = per_question(self.image(grid.mean(dim=1)), image_index)  # (N, num_answers)
        return ModelOutput(self.question(words.sum(dim=1)) + image, {})


class ShowAskAttendAnswer(nn.Module):
    """Kazemi and Elqursh, "Show, Ask, Attend, and Answer" (2017, arXiv 1704.03162).

    Regions scaled to length 1; an LSTM's last cell state selects ``glimpses`` weighted means of
    them, through a layer of ReLU units shared by the glimpses; a classifier with one hidden layer
    follows. Dropout at the input of every layer. The paper says "final state" of the LSTM: here the
    cell state, as in the best-known re-implementation (pytorch-vqa).
    """

    def __init__(
        self,
        vocab_size: int,
        num_answers: int,
        image_dim: int,
        *,
        embedding: int = 300,
        hidden: int = 1024,
        attention: int = 512,
        glimpses: int = 2,
        mlp: int = 1024,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.question = QuestionLSTM(vocab_size, embedding, hidden, layers=1, dropout=dropout)
        self.W_V = nn.Linear(image_dim, attention, bias=False)  # a 1x1 convolution of the grid
        self.W_Q = nn.Linear(hidden, attention)
        # Without bias: a softmax does not depend on one.
        self.glimpses = nn.Linear(attention, glimpses, bias=False)
        self.hidden = nn.Linear(glimpses * image_dim + hidden, mlp)
        self.classifier = nn.Linear(mlp, num_answers)
        self.dropout = Dropout(dropout)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
            else:
                nn.init.zeros_(parameter)

    def forward(
        self, grid: Tensor, tokens: Tensor, lengths: Tensor, image_index: Tensor | None = None
    ) -> ModelOutput:
        """Return logits and the attention maps "glimpse 1", "glimpse 2", ...: (N, R)."""
        V = F.normalize(grid, dim=2)  # (I, R, image_dim)
        _, q = self.question(tokens, lengths)  # (N, hidden)
        groups = group_by_image(image_index, V)
        image = per_question(self.W_V(self.dropout(V)), image_index)  # (N, R, attention)
        H = torch.relu(image + self.W_Q(self.dropout(q))[:, None, :])
        scores = self.glimpses(self.dropout(H)).transpose(1, 2)  # (N, glimpses, R)
        a = softmax(scores)
        v = [pool(a_g, V, groups) for a_g in a.unbind(dim=1)]  # (N, image_dim) each
        x = torch.relu(self.hidden(self.dropout(torch.cat([*v, q], dim=1))))
        maps = {f"glimpse {g}": a_g for g, a_g in enumerate(a.unbind(dim=1), start=1)}
        return ModelOutput(self.classifier(self.dropout(x)), maps)


class QuestionLSTM(nn.Module):
    """tanh of word vectors, then LSTM layers; dropout on word vectors and between the layers."""

    def __init__(
        self, vocab_size: int, embedding: int, hidden: int, *, layers: int, dropout: float
    ) -> None:
        super().__init__()
        self.hidden = hidden
        self.embedding = nn.Embedding(vocab_size, embedding, padding_idx=0)
        self.cells = nn.ModuleList(
            nn.LSTMCell(embedding if layer == 0 else hidden, hidden) for layer in range(layers)
        )
        self.dropout = Dropout(dropout)

    def forward(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return hidden and cell states after the last words, (N, layers * hidden) each."""
        x = torch.tanh(self.dropout(self.embedding(tokens)))  # (N, T, embedding)
        blockwise = x.device.type == "cpu" and not torch.compiler.is_exporting()
        ends = (self._in_time_order if blockwise else self._word_by_word)(x, lengths)
        h, c = zip(*ends, strict=True)
        return torch.cat(h, dim=1), torch.cat(c, dim=1)

    def _in_time_order(self, x: Tensor, lengths: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (h, c) of each layer, on the CPU."""
        which, counts, last = time_order(lengths, x.shape[1])
        x = x.flatten(0, 1)[which]
        for cell in self.cells:
            h, c = states_in_time_order(x, counts, *cell.parameters())
            yield h[last], c[last]
            x = self.dropout(h)

    def _word_by_word(self, x: Tensor, lengths: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (h, c) of each layer, word by word; a question keeps its state after its last word.

        nn.LSTM returns the cell states of the last position only.
        """
        words = word_mask(x[:, :, 0], lengths)
        for cell in self.cells:
            h = c = x.new_zeros(x.shape[0], self.hidden)
            outputs = []
            for t in range(x.shape[1]):
                h_t, c_t = cell(x[:, t], (h, c))
                word = words[:, t, None]
                h, c = torch.where(word, h_t, h), torch.where(word, c_t, c)
                outputs.append(h)
            yield h, c
            x = self.dropout(torch.stack(outputs, dim=1))
