"""Question encoders of SAN (section 3.2): tokens (N, T) -> question vectors (N, d).

All are exact under padding: zeros at the right of a question never change its vector. ``dropout``
is that of the word vectors.
"""

import torch
from torch import Tensor, nn

from vqa_repro.models.common import word_mask
from vqa_repro.models.ops.attention import Dropout
from vqa_repro.models.ops.lstm import LSTM, at_last_words


class LSTMEncoder(nn.Module):
    """v_Q = h_T, the state after the last word (equations 2 to 8)."""

    def __init__(
        self, vocab_size: int, embedding: int, hidden: int, *, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.W_e = nn.Embedding(vocab_size, embedding, padding_idx=0)
        self.lstm = LSTM(embedding, hidden)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        x = self.dropout(self.W_e(tokens))  # (N, T, embedding)
        return at_last_words(self.lstm(x, lengths), lengths)


class ReleasedLSTMEncoder(nn.Module):
    """The LSTM of the authors' code: words in reverse order, and h = o * c without the tanh.

    Initialised as there: matrices uniform in +-0.01, embeddings in +-0.5, forget bias 1.
    """

    def __init__(
        self, vocab_size: int, embedding: int, hidden: int, *, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.W_e = nn.Embedding(vocab_size, embedding, padding_idx=0)
        self.W_x = nn.Linear(embedding, 4 * hidden)
        self.W_h = nn.Linear(hidden, 4 * hidden, bias=False)
        init_released(self)
        with torch.no_grad():
            self.W_x.bias[hidden : 2 * hidden] = 1.0

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        T = tokens.shape[1]
        steps = lengths[:, None] - 1 - torch.arange(T, device=tokens.device)  # (N, T)
        reverse = tokens.gather(1, steps.clamp(min=0))
        x = self.W_x(self.dropout(self.W_e(reverse)))  # (N, T, 4d)
        h: Tensor = x.new_zeros(len(x), x.shape[2] // 4)
        c = h
        for t in range(T):
            i, f, o, g = (x[:, t] + self.W_h(h)).chunk(4, dim=1)
            c_t = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h_t = torch.sigmoid(o) * c_t
            word = (t < lengths)[:, None]
            c, h = torch.where(word, c_t, c), torch.where(word, h_t, h)
        return h


class CNNEncoder(nn.Module):
    """v_Q = [h_1, h_2, h_3]: unigram, bigram, trigram convolutions, max over time (eq. 9 to 12).

    ``filters`` holds the three widths, whose sum is d. A question shorter than an n-gram is
    extended with zero vectors to that n-gram's length.

    ``released``: the authors' code takes the maximum over the padding too, so that an answer
    depends on how much longer the longest question of the batch is. Here every question is treated
    as one much shorter: its n-grams run into zeros, and one n-gram is of zeros alone.
    """

    def __init__(
        self,
        vocab_size: int,
        embedding: int,
        filters: tuple[int, int, int],
        *,
        dropout: float = 0.0,
        released: bool = False,
    ) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.W_e = nn.Embedding(vocab_size, embedding, padding_idx=0)
        self.W_c = nn.ModuleList(
            nn.Conv1d(embedding, width, n) for n, width in enumerate(filters, start=1)
        )
        self.released = released
        if released:
            init_released(self)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        words = word_mask(tokens, lengths)
        # Zeros at the right give every n-gram that starts at a word its full length.
        x = nn.functional.pad(self.dropout(self.W_e(tokens)) * words[:, :, None], (0, 0, 0, 3))
        h = []
        for n, conv in enumerate(self.W_c, start=1):
            h_c = torch.tanh(conv(x.transpose(1, 2)))  # (N, width, positions)
            last = lengths if self.released else (lengths - n).clamp(min=0)
            positions = torch.arange(h_c.shape[2], device=h_c.device)
            beyond = positions[None, :] > last[:, None]
            # tanh is above -1, so positions set to -1 never are the maximum.
            h.append(h_c.masked_fill(beyond[:, None], -1.0).amax(dim=2))
        return torch.cat(h, dim=1)


def init_released(module: nn.Module) -> None:
    """The authors' code's initial values: matrices uniform +-0.01, biases 0, embeddings +-0.5."""
    for part in module.modules():
        if isinstance(part, nn.Embedding):
            nn.init.uniform_(part.weight, -0.5, 0.5)
            with torch.no_grad():
                part.weight[0] = 0.0
        elif isinstance(part, nn.Linear | nn.Conv1d):
            nn.init.uniform_(part.weight, -0.01, 0.01)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
