"""SAN against the paper's equations in float64, one question at a time."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from vqa_repro.models.common import word_mask
from vqa_repro.models.encoders import CNNEncoder
from vqa_repro.models.san import SAN

VARIANTS = [
    pytest.param(question, layers, fidelity, id=f"san{layers}-{question}-{fidelity}")
    for question in ("lstm", "cnn")
    for layers in (1, 2, 3)
    for fidelity in ("paper", "released")
]
WORDS, ANSWERS, CHANNELS, REGIONS = 11, 7, 6, 5


def make(question: str, layers: int, fidelity: str, **options: object) -> SAN:
    torch.manual_seed(0)
    sizes = {"embedding": 4, "hidden": 8, "filters": (2, 3, 3), "attention": 5, **options}
    model = SAN(
        WORDS, ANSWERS, CHANNELS, question=question, layers=layers, fidelity=fidelity, **sizes
    )
    model = model.double().eval()
    with torch.no_grad():  # the released initial values are too small for a meaningful comparison
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.6)
            if name.endswith("W_e.weight"):
                parameter[0] = 3.0  # padding must not matter, whatever its initial value
    return model


def some_input() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return 3 images and 6 questions of 1 to 5 words."""
    generator = torch.Generator().manual_seed(1)
    grid = torch.randn(3, REGIONS, CHANNELS, dtype=torch.float64, generator=generator)
    lengths = torch.tensor([5, 1, 3, 2, 4, 2])
    tokens = torch.randint(2, WORDS, (6, 5), generator=generator) * word_mask(
        torch.zeros(6, 5), lengths
    )
    return grid, tokens, lengths, torch.tensor([0, 0, 1, 2, 2, 1])


def reference(model: SAN, grid: Tensor, words: list[int]) -> tuple[Tensor, list[Tensor]]:
    """Compute equations 1 to 19 for one image (R, C) and one question: logits, attention maps.

    Differences of the released code: tanh on either side before the sum and on
    the logit; reversed words, h = o * c; the maximum over time runs into the padding.
    """
    p = dict(model.named_parameters())
    released = model.released
    x = [p["question.W_e.weight"][word] for word in words]
    if "question.W_c.0.weight" in p:
        zero = torch.zeros_like(x[0])
        pooled = []
        for n in (1, 2, 3):
            weight, bias = p[f"question.W_c.{n - 1}.weight"], p[f"question.W_c.{n - 1}.bias"]
            padded = x + [zero] * (max(n - len(x), 0) if not released else n + 4)
            grams = [
                torch.tanh(sum(weight[:, :, j] @ padded[t + j] for j in range(n)) + bias)
                for t in range(len(padded) - n + 1)
            ]
            pooled.append(torch.stack(grams).max(dim=0).values)
        u = torch.cat(pooled)
    else:
        d = 8
        h = c = torch.zeros(d, dtype=torch.float64)
        for x_t in reversed(x) if released else x:
            if released:
                gates = p["question.W_x.weight"] @ x_t + p["question.W_x.bias"]
                gates = gates + p["question.W_h.weight"] @ h
                i, f, o, g = gates[:d], gates[d : 2 * d], gates[2 * d : 3 * d], gates[3 * d :]
            else:
                gates = p["question.lstm.weight_ih_l0"] @ x_t + p["question.lstm.bias_ih_l0"]
                gates = gates + p["question.lstm.weight_hh_l0"] @ h
                gates = gates + p["question.lstm.bias_hh_l0"]
                i, f, g, o = gates[:d], gates[d : 2 * d], gates[2 * d : 3 * d], gates[3 * d :]
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * (c if released else torch.tanh(c))
        u = h
    v = [torch.tanh(p["W_I.weight"] @ f_i + p["W_I.bias"]) for f_i in grid]
    maps = []
    for hop in range(len(model.W_QA)):
        W_IA = p[f"W_IA.{hop}.weight"]
        query = p[f"W_QA.{hop}.weight"] @ u + p[f"W_QA.{hop}.bias"]
        logits = []
        for v_i in v:
            if released:
                image = torch.tanh(W_IA @ v_i + p[f"W_IA.{hop}.bias"])
                logit = p[f"W_P.{hop}.weight"] @ (image + torch.tanh(query))
                logits.append(torch.tanh(logit + p[f"W_P.{hop}.bias"]))
            else:
                logits.append(p[f"W_P.{hop}.weight"] @ torch.tanh(W_IA @ v_i + query))
        e = torch.cat(logits).exp()
        attention = e / e.sum()
        u = sum(a * v_i for a, v_i in zip(attention, v, strict=True)) + u
        maps.append(attention)
    return p["W_u.weight"] @ u + p["W_u.bias"], maps


@pytest.mark.parametrize(("question", "layers", "fidelity"), VARIANTS)
def test_values_and_gradients_are_those_of_the_equations(
    question: str, layers: int, fidelity: str
) -> None:
    model = make(question, layers, fidelity)
    grid, tokens, lengths, image_of = some_input()
    answer = model(grid, tokens, lengths, image_of)
    expected = [
        reference(model, grid[image], words[:length].tolist())
        for words, length, image in zip(tokens, lengths, image_of, strict=True)
    ]
    logits = torch.stack([logits for logits, _ in expected])
    torch.testing.assert_close(answer.logits, logits, rtol=1e-9, atol=1e-11)
    for hop in range(layers):
        maps = torch.stack([maps[hop] for _, maps in expected])
        torch.testing.assert_close(answer.attention[f"hop {hop + 1}"], maps, rtol=1e-9, atol=0)
    weights = torch.randn(logits.shape, dtype=torch.float64)
    ours = torch.autograd.grad((answer.logits * weights).sum(), list(model.parameters()))
    from_torch = torch.autograd.grad((logits * weights).sum(), list(model.parameters()))
    for (name, _), a, b in zip(model.named_parameters(), ours, from_torch, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10, msg=name)


@pytest.mark.parametrize(("question", "layers", "fidelity"), VARIANTS)
def test_padding_never_changes_an_answer(question: str, layers: int, fidelity: str) -> None:
    model = make(question, layers, fidelity)
    grid, tokens, lengths, image_of = some_input()
    longer = nn.functional.pad(tokens, (0, 9))
    a, b = (model(grid, t, lengths, image_of).logits for t in (tokens, longer))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("question", "layers", "fidelity"), VARIANTS)
def test_every_parameter_learns(question: str, layers: int, fidelity: str) -> None:
    model = make(question, layers, fidelity).train()
    grid, tokens, lengths, image_of = some_input()
    logits = model(grid, tokens, lengths, image_of).logits
    (logits * torch.randn_like(logits)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-12, name


def test_an_image_computed_once_equals_one_per_question() -> None:
    model = make("lstm", 2, "paper")
    grid, tokens, lengths, image_of = some_input()
    grouped = model(grid, tokens, lengths, image_of).logits
    single = model(grid[image_of], tokens, lengths).logits
    torch.testing.assert_close(grouped, single, rtol=0, atol=1e-13)
    weights = torch.randn_like(grouped)
    a = torch.autograd.grad((grouped * weights).sum(), list(model.parameters()))
    b = torch.autograd.grad((single * weights).sum(), list(model.parameters()))
    for ours, from_torch in zip(a, b, strict=True):
        torch.testing.assert_close(ours, from_torch, rtol=1e-10, atol=1e-13)


def test_each_hop_has_its_own_weights() -> None:
    model = make("lstm", 2, "paper")
    grid, tokens, lengths, image_of = some_input()
    before = model(grid, tokens, lengths, image_of)
    changes: list[Callable[[], Tensor]] = [
        lambda: model.W_IA[1].weight,
        lambda: model.W_QA[1].weight,
        lambda: model.W_P[1].weight,
    ]
    for second_hop in changes:
        with torch.no_grad():
            second_hop().add_(0.5)
            after = model(grid, tokens, lengths, image_of)
            second_hop().sub_(0.5)
        assert torch.equal(before.attention["hop 1"], after.attention["hop 1"])
        assert not torch.allclose(before.attention["hop 2"], after.attention["hop 2"])


def test_word_order_matters_to_an_lstm_and_beyond_three_words_not_to_a_cnn() -> None:
    grid, _, _, _ = some_input()
    forward, backward = torch.tensor([[2, 3, 4, 5]]), torch.tensor([[5, 4, 3, 2]])
    lengths = torch.tensor([4])
    lstm = make("lstm", 1, "paper")
    assert not torch.allclose(
        lstm(grid[:1], forward, lengths).logits, lstm(grid[:1], backward, lengths).logits
    )
    encoder = CNNEncoder(WORDS, 4, (2, 3, 3)).double()
    repeated = torch.tensor([[2, 3, 4, 2, 3, 4, 2, 3]])
    twice = torch.tensor([[2, 3, 4, 2, 3, 4, 2, 3, 4, 2, 3]])  # holds the same n-grams
    torch.testing.assert_close(
        encoder(repeated, torch.tensor([8])), encoder(twice, torch.tensor([11]))
    )


@pytest.mark.parametrize("fidelity", ["paper", "released"])
@pytest.mark.parametrize("question", ["lstm", "cnn"])
def test_dropout_is_before_the_classifier_only(question: str, fidelity: str) -> None:
    model = make(question, 2, fidelity).train()
    assert model.dropout.p == 0.5  # as in the paper, where none is named
    grid, tokens, lengths, image_of = some_input()
    a, b = (model(grid, tokens, lengths, image_of) for _ in range(2))
    assert not torch.equal(a.logits, b.logits)
    assert torch.equal(a.attention["hop 2"], b.attention["hop 2"])


@pytest.mark.parametrize("question", ["lstm", "cnn"])
def test_input_dropout_is_of_words_and_regions(question: str) -> None:
    model = make(question, 1, "paper", dropout=0.0, input_dropout=0.5).train()
    seen: dict[str, Tensor] = {}
    for name in ("W_I", "question"):
        model.get_submodule(name).register_forward_hook(
            lambda _, inputs, output, name=name: seen.update({name: output})
        )
    model.W_I.register_forward_pre_hook(lambda _, inputs: seen.update({"grid": inputs[0]}))
    grid = torch.ones(3, 200, CHANNELS, dtype=torch.float64)
    _, tokens, lengths, image_of = some_input()
    model(grid, tokens, lengths, image_of)
    assert set(seen["grid"].unique().tolist()) == {0.0, 2.0}
    assert abs(seen["grid"].mean() - 1) < 0.05
    first = seen["question"]
    model(grid, tokens, lengths, image_of)
    assert not torch.equal(first, seen["question"])


@pytest.mark.parametrize("question", ["lstm", "cnn"])
def test_released_initial_values(question: str) -> None:
    torch.manual_seed(0)
    model = SAN(50, 30, 40, question=question, hidden=60, fidelity="released")
    for name, parameter in model.named_parameters():
        values = parameter.detach()
        if name == "question.W_e.weight":
            assert (values[0] == 0).all()
            assert 0.49 < values.abs().max() <= 0.5
        elif name == "question.W_x.bias":
            assert values.tolist() == [0.0] * 60 + [1.0] * 60 + [0.0] * 120  # the forget gate's
        elif values.ndim == 1:
            assert (values == 0).all(), name
        else:
            assert 0.009 < values.abs().max() <= 0.01, name


def test_the_paper_s_attention_starts_where_its_tanh_is_curved() -> None:
    torch.manual_seed(0)
    model = SAN(50, 30, 512, hidden=500)
    grid = torch.randn(1, 196, 512)  # region vectors of mean square 1
    v_I = torch.tanh(model.W_I(grid))
    of_image = model.W_IA[0](v_I)
    of_question = model.W_QA[0](model.question(torch.tensor([[3, 7, 20, 4]]), torch.tensor([4])))
    assert 0.5 < of_image.std() < 2
    assert 0.1 < of_question.std() < 2


def test_half_precision_stays_close_and_maps_stay_float32() -> None:
    model = make("lstm", 2, "paper").float()
    grid, tokens, lengths, image_of = some_input()
    exact = model(grid.float(), tokens, lengths, image_of)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(grid.float(), tokens, lengths, image_of)
    assert half.attention["hop 1"].dtype == torch.float32
    torch.testing.assert_close(half.logits.float(), exact.logits, rtol=0.1, atol=0.2)


@pytest.mark.parametrize("option", ["question", "fidelity", "init"])
def test_an_unknown_variant_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match=option):
        SAN(WORDS, ANSWERS, CHANNELS, **{option: "other"})


# Dropout switches, against the equations with the masks that the model drew.
SWITCHES = ["word_dropout", "image_dropout", "question_dropout", "attention_dropout"]


@pytest.mark.parametrize("fidelity", ["paper", "released"])
@pytest.mark.parametrize("option", SWITCHES)
def test_each_dropout_switch_is_inactive_outside_training(option: str, fidelity: str) -> None:
    inputs = some_input()
    expected = make("lstm", 2, fidelity, dropout=0.0)(*inputs)
    model = make("lstm", 2, fidelity, dropout=0.0, **{option: 0.5})
    assert torch.equal(model(*inputs).logits, expected.logits)
    torch.manual_seed(3)
    first, second = (model.train()(*inputs).logits for _ in range(2))
    assert not torch.allclose(first, second)
    # The same question about the same image twice in a batch: a mask for each.
    grid, tokens, lengths, _ = inputs
    twice = model(grid[:1], tokens[[0, 0]], lengths[[0, 0]], torch.tensor([0, 0])).logits
    assert not torch.allclose(twice[0], twice[1])


def mask(x: Tensor) -> Tensor:
    """Return a fixed dropout mask with p = 0.5 of the shape of ``x``."""
    generator = torch.Generator().manual_seed(x.numel())
    return 2.0 * torch.randint(0, 2, x.shape, generator=generator).to(x.dtype)


@pytest.mark.parametrize("fidelity", ["paper", "released"])
@pytest.mark.parametrize("question", ["lstm", "cnn"])
def test_dropout_of_words_image_and_question_by_given_masks(
    question: str, fidelity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """v_I, v_Q and word vectors are multiplied by a mask for every question; v~ uses the mask."""
    options = {name: 0.5 for name in SWITCHES if name != "attention_dropout"}
    model = make(question, 2, fidelity, dropout=0.0, **options).train()
    grid, tokens, lengths, image_index = some_input()
    drops = {model.image_dropout, model.question_dropout, model.question.dropout}
    for part in drops:
        monkeypatch.setattr(part, "forward", lambda x: x * mask(x))
    logits = model(grid, tokens, lengths, image_index).logits

    # Independent: the network's layers one by one, one question at a time.
    p = dict(model.named_parameters())
    plain = make(question, 2, fidelity).question
    plain.dropout.p = 0.5
    monkeypatch.setattr(plain.dropout, "forward", lambda x: x * mask(x))
    v_Q = plain.train()(tokens, lengths)
    v_Q = v_Q * mask(v_Q)
    image_mask = mask(torch.empty(len(tokens), REGIONS, 8, dtype=torch.float64))
    for n in range(len(tokens)):
        features = grid[image_index[n]]
        v = torch.tanh(features @ p["W_I.weight"].T + p["W_I.bias"]) * image_mask[n]
        u = v_Q[n]
        for hop in range(2):
            a = v @ p[f"W_IA.{hop}.weight"].T
            query = p[f"W_QA.{hop}.weight"] @ u + p[f"W_QA.{hop}.bias"]
            w = p[f"W_P.{hop}.weight"][0]
            if fidelity == "released":
                a = torch.tanh(a + p[f"W_IA.{hop}.bias"]) + torch.tanh(query)
                scores = torch.tanh(a @ w + p[f"W_P.{hop}.bias"])
            else:
                scores = torch.tanh(a + query) @ w
            e = scores.exp()
            u = (e / e.sum()) @ v + u
        expected = p["W_u.weight"] @ u + p["W_u.bias"]
        torch.testing.assert_close(logits[n], expected, rtol=1e-9, atol=1e-11)


def test_attention_dropout_of_the_released_form_by_a_given_mask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make("lstm", 1, "released", dropout=0.0, attention_dropout=0.5).train()
    monkeypatch.setattr(model.attention_dropout, "forward", lambda x: x * mask(x))
    grid, tokens, lengths, image_index = some_input()
    maps = model(grid, tokens, lengths, image_index).attention["hop 1"]
    p = dict(model.named_parameters())
    v_Q = model.question(tokens, lengths)
    H_mask = mask(torch.empty(len(tokens), REGIONS, 5, dtype=torch.float64))
    for n in range(len(tokens)):
        v = torch.tanh(grid[image_index[n]] @ p["W_I.weight"].T + p["W_I.bias"])
        H = torch.tanh(v @ p["W_IA.0.weight"].T + p["W_IA.0.bias"])
        H = H + torch.tanh(p["W_QA.0.weight"] @ v_Q[n] + p["W_QA.0.bias"])
        e = torch.tanh((H * H_mask[n]) @ p["W_P.0.weight"][0] + p["W_P.0.bias"]).exp()
        torch.testing.assert_close(maps[n], e / e.sum(), rtol=1e-9, atol=1e-12)


def test_attention_dropout_of_the_paper_s_form_is_of_the_hidden_layer() -> None:
    """With p = 0.5 the mean of the scores over many masks is that without dropout."""
    model = make("lstm", 1, "paper", dropout=0.0, attention_dropout=0.5)
    grid, tokens, lengths, image_index = some_input()
    exact = model(grid, tokens, lengths, image_index).attention["hop 1"].log()
    exact = exact - exact.mean(1, keepdim=True)  # scores but for their mean over regions
    model.train()
    many = [model(grid, tokens, lengths, image_index).attention["hop 1"] for _ in range(4000)]
    scores = torch.stack(many).log()
    mean = (scores - scores.mean(2, keepdim=True)).mean(0)
    torch.testing.assert_close(mean, exact, rtol=0, atol=0.12)


@pytest.mark.parametrize("question", ["lstm", "cnn"])
def test_initial_values_are_independent_of_the_equations(question: str) -> None:
    """The paper's equations from the code's initial values, and the reverse."""
    torch.manual_seed(0)
    model = SAN(50, 30, 40, question=question, hidden=60, init="code")
    for name, parameter in model.named_parameters():
        values = parameter.detach()
        if name == "question.W_e.weight":
            assert (values[0] == 0).all() and 0.49 < values.abs().max() <= 0.5
        elif name == "question.lstm.bias_ih_l0":
            assert values.tolist() == [0.0] * 60 + [1.0] * 60 + [0.0] * 120  # the forget gate's
        elif values.ndim == 1:
            assert (values == 0).all(), name
        else:
            assert 0.009 < values.abs().max() <= 0.01, name
    own = SAN(50, 30, 40, question=question, hidden=60, fidelity="released", init="own")
    assert own.W_I.weight.abs().max() > 0.1 and own.W_QA[0].bias.abs().max() > 0


def test_cnn_questions_start_near_the_bound_of_tanh_by_our_values() -> None:
    """Why DAQUAR's recipes with CNN questions have the code's initial values."""
    tokens, lengths = torch.randint(1, 50, (20, 10)), torch.full((20,), 10)
    v_Q = {}
    for init in ("own", "code"):
        torch.manual_seed(0)
        model = SAN(50, 30, 40, question="cnn", hidden=60, init=init)
        v_Q[init] = model.question(tokens, lengths)
    assert v_Q["own"].mean() > 0.5 and 0 < v_Q["code"].mean() < 0.1


def test_word_dropout_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="word_dropout"):
        SAN(WORDS, ANSWERS, CHANNELS, word_dropout=0.5, input_dropout=0.5)
