"""Question encoders of SAN (section 3.2): tokens (N, T) -> question vectors v_Q (N, d).

All are exact under padding: zeros at the right of a question never change its vector.
``dropout`` applies to the word vectors. ``code_init``: start from the initial values of the
authors' code (``init_as_code``) instead of PyTorch's.
"""

import torch
from torch import Tensor, nn

from vqa_repro.models.common import Dropout, word_mask
from vqa_repro.models.ops.lstm import LSTM, last_states


class LSTMEncoder(nn.Module):
    """v_Q = h_T, the state after the last word (equations 3 to 9)."""

    def __init__(
        self,
        vocab_size: int,
        embedding: int,
        hidden: int,
        *,
        dropout: float = 0.0,
        code_init: bool = False,
    ) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.W_e = nn.Embedding(vocab_size, embedding, padding_idx=0)
        self.lstm = LSTM(embedding, hidden)
        if code_init:
            init_as_code(self)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        x = self.dropout(self.W_e(tokens))  # (N, T, embedding)
        return last_states(self.lstm(x, lengths), lengths)


class ReleasedLSTMEncoder(nn.Module):
    """The LSTM of the authors' code: words in reverse order, and h = o * c without the tanh."""

    def __init__(
        self,
        vocab_size: int,
        embedding: int,
        hidden: int,
        *,
        dropout: float = 0.0,
        code_init: bool = False,
    ) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.W_e = nn.Embedding(vocab_size, embedding, padding_idx=0)
        self.W_x = nn.Linear(embedding, 4 * hidden)
        self.W_h = nn.Linear(hidden, 4 * hidden, bias=False)
        if code_init:
            init_as_code(self)
            with torch.no_grad():
                self.W_x.bias[hidden : 2 * hidden] = 1.0  # the forget gate's

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        T = tokens.shape[1]
        steps = lengths[:, None] - 1 - torch.arange(T, device=tokens.device)  # (N, T)
        reversed_tokens = tokens.gather(1, steps.clamp(min=0))
        x = self.W_x(self.dropout(self.W_e(reversed_tokens)))  # (N, T, 4d)
        h: Tensor = x.new_zeros(x.shape[0], x.shape[2] // 4)
        c = h
        for t in range(T):
            i, f, o, g = (x[:, t] + self.W_h(h)).chunk(4, dim=1)
            c_t = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h_t = torch.sigmoid(o) * c_t
            is_word = (t < lengths)[:, None]
            c, h = torch.where(is_word, c_t, c), torch.where(is_word, h_t, h)
        return h


class CNNEncoder(nn.Module):
    """v_Q = [h_1, h_2, h_3]: unigram, bigram, trigram convolutions, max over time (eq. 10 to 14).

    ``filters`` holds the three widths, whose sum is d. A question shorter than an n-gram is
    padded with zero vectors to that n-gram's length.

    ``released``: the authors' code takes the maximum over the padding too, so that an answer
    depends on the longest question of its batch. Here every question is treated as one much
    shorter than the longest: its n-grams extend into zeros, and one n-gram is all zeros.
    """

    def __init__(
        self,
        vocab_size: int,
        embedding: int,
        filters: tuple[int, int, int],
        *,
        dropout: float = 0.0,
        released: bool = False,
        code_init: bool = False,
    ) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.W_e = nn.Embedding(vocab_size, embedding, padding_idx=0)
        self.W_c = nn.ModuleList(
            nn.Conv1d(embedding, width, n) for n, width in enumerate(filters, start=1)
        )
        self.released = released
        if code_init:
            init_as_code(self)

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


def init_as_code(module: nn.Module) -> None:
    """Set the initial values of the authors' code.

    Matrices uniform in +-0.01, biases 0, word embeddings uniform in +-0.5, forget-gate bias 1.
    """
    for part in module.modules():
        if isinstance(part, nn.Embedding):
            nn.init.uniform_(part.weight, -0.5, 0.5)
            with torch.no_grad():
                part.weight[0] = 0.0
        elif isinstance(part, nn.Linear | nn.Conv1d):
            nn.init.uniform_(part.weight, -0.01, 0.01)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, LSTM):
            for name, parameter in part.named_parameters():
                if parameter.ndim > 1:
                    nn.init.uniform_(parameter, -0.01, 0.01)
                else:
                    nn.init.zeros_(parameter)
                if name == "bias_ih_l0":  # of the two biases, one holds the forget gate's 1
                    with torch.no_grad():
                        parameter[part.hidden_size : 2 * part.hidden_size] = 1.0
