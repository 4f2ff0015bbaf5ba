"""The models as they are usually ported: the baseline of the speed comparisons.

Straight from the equations: every question has its own copy of its image's features, nothing is
shared between questions about one image, padding is computed like words, all intermediate values
are kept, in float32. Parameter names are those of the package's modules, so that both can load the
same weights and must give the same answers (tests/test_benchmarks.py).
"""

import torch
from torch import Tensor, nn


class PlainSAN(nn.Module):
    """SAN with LSTM questions: (N, R, C) features of each question's image -> logits."""

    def __init__(
        self,
        vocab_size: int,
        num_answers: int,
        image_dim: int,
        *,
        layers: int,
        embedding: int,
        hidden: int,
        attention: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.question = nn.Module()
        self.question.W_e = nn.Embedding(vocab_size, embedding, padding_idx=0)
        self.question.lstm = nn.LSTM(embedding, hidden, batch_first=True)
        self.W_I = nn.Linear(image_dim, hidden)
        self.W_IA = nn.ModuleList(nn.Linear(hidden, attention, bias=False) for _ in range(layers))
        self.W_QA = nn.ModuleList(nn.Linear(hidden, attention) for _ in range(layers))
        self.W_P = nn.ModuleList(nn.Linear(attention, 1, bias=False) for _ in range(layers))
        self.dropout = nn.Dropout(dropout)
        self.W_u = nn.Linear(hidden, num_answers)

    def forward(self, features: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
        states, _ = self.question.lstm(self.question.W_e(tokens))
        u = states[torch.arange(len(tokens), device=tokens.device), lengths - 1]
        v_I = torch.tanh(self.W_I(features))  # (N, R, d)
        for W_IA, W_QA, W_P in zip(self.W_IA, self.W_QA, self.W_P, strict=True):
            h_A = torch.tanh(W_IA(v_I) + W_QA(u).unsqueeze(1))  # (N, R, k)
            p_I = torch.softmax(W_P(h_A).squeeze(2), dim=1)  # (N, R)
            u = (p_I.unsqueeze(2) * v_I).sum(dim=1) + u
        return self.W_u(self.dropout(u))


class PlainHieCoAtt(nn.Module):
    """HieCoAtt with parallel co-attention: (N, R, C) features, tokens -> logits."""

    def __init__(
        self,
        vocab_size: int,
        num_answers: int,
        image_dim: int,
        *,
        hidden: int,
        last_hidden: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.W_e = nn.Embedding(vocab_size, hidden, padding_idx=0)
        self.W_c = nn.ModuleList(nn.Conv1d(hidden, hidden, s) for s in (1, 2, 3))
        self.lstm = nn.LSTM(hidden, hidden, batch_first=True)
        self.W_I = nn.Linear(image_dim, hidden)
        self.W_V = nn.Linear(hidden, 3 * hidden)
        for name in ("word", "phrase", "question"):
            level = nn.Module()
            level.W_b = nn.Linear(hidden, hidden)
            level.W_q = nn.Linear(hidden, hidden)
            level.w_hv = nn.Linear(hidden, 1, bias=False)
            level.w_hq = nn.Linear(hidden, 1, bias=False)
            setattr(self, name, level)
        self.W_w = nn.Linear(hidden, hidden)
        self.W_p = nn.Linear(2 * hidden, hidden)
        self.W_s = nn.Linear(2 * hidden, last_hidden)
        self.W_h = nn.Linear(last_hidden, num_answers)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
        T = tokens.shape[1]
        words = torch.arange(T, device=tokens.device) < lengths[:, None]  # (N, T)
        V = self.W_I(features)  # (N, R, d)
        Q_w = self.dropout(self.W_e(tokens)) * words[:, :, None]
        n_grams = [
            torch.tanh(conv(nn.functional.pad(Q_w.transpose(1, 2), (0, s))))[:, :, :T]
            for s, conv in enumerate(self.W_c)
        ]
        Q_p = torch.stack(n_grams).amax(dim=0).transpose(1, 2)
        Q_p = self.dropout(Q_p) * words[:, :, None]
        Q_s = self.dropout(self.lstm(Q_p)[0]) * words[:, :, None]
        h: Tensor | None = None
        of_levels = self.W_V(V).chunk(3, dim=2)
        for level, W, Q, W_v_V in zip(
            (self.word, self.phrase, self.question),
            (self.W_w, self.W_p, self.W_s),
            (Q_w, Q_p, Q_s),
            of_levels,
            strict=True,
        ):
            C = torch.tanh(Q @ level.W_b(V).transpose(1, 2))  # (N, T, R)
            W_q_Q = level.W_q(Q)  # (N, T, d)
            H_v = self.dropout(torch.tanh(W_v_V + C.transpose(1, 2) @ W_q_Q))  # (N, R, d)
            H_q = self.dropout(torch.tanh(W_q_Q + C @ W_v_V))  # (N, T, d)
            a_v = torch.softmax(level.w_hv(H_v), dim=1)  # (N, R, 1)
            a_q = torch.softmax(level.w_hq(H_q).masked_fill(~words[:, :, None], -torch.inf), dim=1)
            both = (a_q * Q).sum(dim=1) + (a_v * V).sum(dim=1)
            h = torch.tanh(W(self.dropout(both if h is None else torch.cat([both, h], dim=1))))
        return self.W_h(self.dropout(h))
