"""HieCoAtt from the paper's equations, one question at a time: the reference of test_hiecoatt.

Nothing here comes from the package. There is no batch, hence no padding, mask or gather. As in the
paper vectors are columns: V is (d, R), Q is (d, T). ``p`` maps parameter names to tensors; a layer
without a bias has none there.
"""

import torch
from torch import Tensor


def answer(
    p: dict[str, Tensor], f: Tensor, words: list[int], coattention: str, released: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return logits (A,) and attention maps for region vectors ``f`` (C, R) and word ids."""
    d = p["W_e.weight"].shape[1]
    V = linear(p, "W_I", f)
    Q_w = torch.stack([p["W_e.weight"][word] for word in words], dim=1)
    if released:
        V, Q_w = torch.tanh(V), torch.tanh(Q_w)
    Q_p = phrases(p, Q_w, released)
    Q_s = Q_p
    for layer in range(2 if released else 1):
        Q_s = lstm(p, layer, Q_s)

    maps, attended = {}, []
    for number, (level, Q) in enumerate([("word", Q_w), ("phrase", Q_p), ("question", Q_s)]):
        rows = slice(number * d, (number + 1) * d)
        W = {name.removeprefix(f"{level}."): value for name, value in p.items()}
        W["W_v.weight"] = p["W_V.weight"][rows]
        if "W_V.bias" in p:
            W["W_v.bias"] = p["W_V.bias"][rows]
        attention = parallel if coattention == "parallel" else alternating
        a_v, a_q = attention(W, Q, V)
        maps[f"{level}/image"], maps[f"{level}/question"] = a_v, a_q
        v = sum(a_v[n] * V[:, n] for n in range(V.shape[1]))
        q = sum(a_q[t] * Q[:, t] for t in range(Q.shape[1]))
        attended.append((q + v)[:, None])

    x_w, x_p, x_s = attended
    h_w = torch.tanh(linear(p, "W_w", x_w))
    h_p = torch.tanh(linear(p, "W_p", torch.cat([x_p, h_w])))
    h_s = torch.tanh(linear(p, "W_s", torch.cat([x_s, h_p])))
    return linear(p, "W_h", h_s)[:, 0], maps


def linear(p: dict[str, Tensor], name: str, columns: Tensor) -> Tensor:
    out = torch.einsum("oi,in->on", p[f"{name}.weight"], columns)
    return out + p[f"{name}.bias"][:, None] if f"{name}.bias" in p else out


def phrases(p: dict[str, Tensor], Q: Tensor, released: bool) -> Tensor:
    """q^p_t = max over s of tanh(W_c^s [n-gram of s words at t])."""
    d, T = Q.shape
    # Offsets of an n-gram's words from t.
    paper_windows = [(0,), (0, 1), (0, 1, 2)]
    released_windows = [(0,), (-1, 0), (-1, 0, 1)]
    columns = []
    for t in range(T):
        grams = []
        for s, window in enumerate(released_windows if released else paper_windows):
            kernel = p[f"W_c.{s}.weight"]  # (d, d, s + 1)
            total = p.get(f"W_c.{s}.bias", torch.zeros(d, dtype=Q.dtype))
            for k, offset in enumerate(window):
                if 0 <= t + offset < T:
                    total = total + kernel[:, :, k] @ Q[:, t + offset]
            grams.append(torch.tanh(total))
        columns.append(torch.maximum(torch.maximum(grams[0], grams[1]), grams[2]))
    return torch.stack(columns, dim=1)


def lstm(p: dict[str, Tensor], layer: int, X: Tensor) -> Tensor:
    d = X.shape[0]
    W_ih, W_hh = p[f"lstm.weight_ih_l{layer}"], p[f"lstm.weight_hh_l{layer}"]
    b = p[f"lstm.bias_ih_l{layer}"] + p[f"lstm.bias_hh_l{layer}"]
    h = c = torch.zeros(d, dtype=X.dtype)
    states = []
    for t in range(X.shape[1]):
        gates = W_ih @ X[:, t] + W_hh @ h + b
        i, f, g, o = gates[:d], gates[d : 2 * d], gates[2 * d : 3 * d], gates[3 * d :]
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        states.append(h)
    return torch.stack(states, dim=1)


def parallel(W: dict[str, Tensor], Q: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    C = torch.tanh(Q.T @ linear(W, "W_b", V))  # (T, R)
    W_v_V, W_q_Q = linear(W, "W_v", V), linear(W, "W_q", Q)
    H_v = torch.tanh(W_v_V + W_q_Q @ C)
    H_q = torch.tanh(W_q_Q + W_v_V @ C.T)
    return softmax(W["w_hv.weight"] @ H_v), softmax(W["w_hq.weight"] @ H_q)


def alternating(W: dict[str, Tensor], Q: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    a_s = softmax(W["w_hx1.weight"] @ torch.tanh(linear(W, "W_x1", Q)))
    s = (Q * a_s).sum(dim=1, keepdim=True)
    a_v = softmax(W["w_hx2.weight"] @ torch.tanh(linear(W, "W_v", V) + W["W_g2.weight"] @ s))
    v = (V * a_v).sum(dim=1, keepdim=True)
    a_q = softmax(W["w_hx3.weight"] @ torch.tanh(linear(W, "W_x3", Q) + W["W_g3.weight"] @ v))
    return a_v, a_q


def softmax(scores: Tensor) -> Tensor:
    e = torch.exp(scores[0] - scores[0].max())
    return e / e.sum()
