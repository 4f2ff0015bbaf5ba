"""The baselines against plain computations of one question at a time, and the models' contract."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from vqa_repro.models import baselines
from vqa_repro.models.baselines import (
    BagOfWords,
    DeeperLSTMNormI,
    QuestionLSTM,
    QuestionOnly,
    ShowAskAttendAnswer,
)
from vqa_repro.models.ops.lstm import states_in_time_order

# No two sizes alike: a hard-coded or exchanged dimension cannot pass.
VOCABULARY, ANSWERS, CHANNELS, REGIONS = 11, 7, 9, 5
LENGTHS = [4, 1, 8, 2, 3, 4]
IMAGE_OF = [0, 0, 2, 1, 2, 2]
GLIMPSES = ["glimpse 1", "glimpse 2", "glimpse 3"]


def question_only() -> nn.Module:
    return QuestionOnly(VOCABULARY, ANSWERS, CHANNELS, embedding=3, hidden=4, mlp=6)


def deeper() -> nn.Module:
    return DeeperLSTMNormI(VOCABULARY, ANSWERS, CHANNELS, embedding=3, hidden=4, common=6)


def bag() -> nn.Module:
    return BagOfWords(VOCABULARY, ANSWERS, CHANNELS, embedding=3)


def show_ask() -> nn.Module:
    return ShowAskAttendAnswer(
        VOCABULARY, ANSWERS, CHANNELS, embedding=3, hidden=4, attention=6, glimpses=3, mlp=8
    )


Parameters = dict[str, Tensor]


def linear(p: Parameters, name: str, x: Tensor) -> Tensor:
    out = p[f"{name}.weight"] @ x
    return out + p[f"{name}.bias"] if f"{name}.bias" in p else out


def lstm(p: Parameters, words: list[int], layers: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return the hidden and cell state of each layer after the last word."""
    xs = [torch.tanh(p["question.embedding.weight"][word]) for word in words]
    hs, cs = [], []
    for layer in range(layers):
        cell = {k.removeprefix(f"question.cells.{layer}."): v for k, v in p.items()}
        d = cell["weight_hh"].shape[1]
        h = c = torch.zeros(d, dtype=torch.float64)
        for t, x in enumerate(xs):
            gates = cell["weight_ih"] @ x + cell["bias_ih"] + cell["weight_hh"] @ h
            i, f, g, o = (gates + cell["bias_hh"]).split(d)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            xs[t] = h
        hs.append(h)
        cs.append(c)
    return hs, cs


def reference_question_only(
    p: Parameters, grid: Tensor, words: list[int]
) -> tuple[Tensor, list[Tensor]]:
    hs, cs = lstm(p, words, 1)
    x = torch.cat([*hs, *cs])
    x = torch.tanh(linear(p, "classifier.0", x))
    x = torch.tanh(linear(p, "classifier.3", x))
    return linear(p, "classifier.6", x), []


def reference_deeper(p: Parameters, grid: Tensor, words: list[int]) -> tuple[Tensor, list[Tensor]]:
    hs, cs = lstm(p, words, 2)
    v = sum(grid[r] for r in range(len(grid))) / len(grid)
    image = torch.tanh(linear(p, "W_I", v / (v * v).sum().sqrt()))
    return linear(p, "classifier", torch.tanh(linear(p, "W_Q", torch.cat([*hs, *cs]))) * image), []


def reference_bag(p: Parameters, grid: Tensor, words: list[int]) -> tuple[Tensor, list[Tensor]]:
    bow = sum(p["embedding.weight"][word] for word in words)
    v = sum(grid[r] for r in range(len(grid))) / len(grid)
    W = torch.cat([p["question.weight"], p["image.weight"]], dim=1)
    return W @ torch.cat([bow, v]) + p["question.bias"], []


def reference_show_ask(
    p: Parameters, grid: Tensor, words: list[int]
) -> tuple[Tensor, list[Tensor]]:
    q = lstm(p, words, 1)[1][0]
    V = [v / (v * v).sum().sqrt() for v in grid]
    scores = torch.stack(
        [linear(p, "glimpses", torch.relu(linear(p, "W_V", v) + linear(p, "W_Q", q))) for v in V]
    )  # (R, glimpses)
    maps, means = [], []
    for g in range(scores.shape[1]):
        e = torch.exp(scores[:, g])
        maps.append(e / e.sum())
        means.append(sum(a * v for a, v in zip(maps[-1], V, strict=True)))
    x = torch.relu(linear(p, "hidden", torch.cat([*means, q])))
    return linear(p, "classifier", x), maps


Reference = Callable[[Parameters, Tensor, list[int]], tuple[Tensor, list[Tensor]]]
BUILDERS = [question_only, deeper, bag, show_ask]
REFERENCES = [reference_question_only, reference_deeper, reference_bag, reference_show_ask]
each_model = pytest.mark.parametrize("build", BUILDERS)


def model(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(1)
    return build().double()


def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return grid, tokens, lengths and image_of for three images and six questions."""
    torch.manual_seed(2)
    grid = torch.randn(3, REGIONS, CHANNELS, dtype=torch.float64)
    lengths = torch.tensor(LENGTHS)
    tokens = torch.randint(1, VOCABULARY, (len(LENGTHS), max(LENGTHS)))
    tokens[torch.arange(max(LENGTHS)) >= lengths[:, None]] = 0
    return grid, tokens, lengths, torch.tensor(IMAGE_OF)


def objective(values: list[Tensor]) -> Tensor:
    """Return a scalar in which every output has its own weight."""
    flat = torch.cat([value.flatten() for value in values])
    return (flat * torch.linspace(0.5, 1.5, len(flat), dtype=flat.dtype).cos()).sum()


def image_learns(build: Callable[[], nn.Module]) -> bool:
    return build is not question_only


@pytest.mark.parametrize(("build", "reference"), list(zip(BUILDERS, REFERENCES, strict=True)))
def test_values_and_gradients_follow_the_equations(
    build: Callable[[], nn.Module], reference: Reference
) -> None:
    net = model(build).eval()
    grid, tokens, lengths, image_of = batch()
    grid.requires_grad_()
    answer = net(grid, tokens, lengths, image_of)
    assert list(answer.attention) == (GLIMPSES if build is show_ask else [])

    p = {name: value.detach().clone().requires_grad_() for name, value in net.named_parameters()}
    f = grid.detach().clone().requires_grad_()
    expected: list[Tensor] = []
    actual: list[Tensor] = []
    for n, length in enumerate(LENGTHS):
        logits, maps = reference(p, f[IMAGE_OF[n]], tokens[n, :length].tolist())
        expected += [logits, *maps]
        actual += [answer.logits[n], *(a[n] for a in answer.attention.values())]
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)

    objective(actual).backward()
    objective(expected).backward()
    if image_learns(build):
        torch.testing.assert_close(grid.grad, f.grad, rtol=1e-9, atol=1e-12)
    else:
        assert grid.grad is None
    for name, value in net.named_parameters():
        torch.testing.assert_close(
            value.grad, p[name].grad, rtol=1e-9, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}"
        )


@each_model
def test_padding_never_changes_an_answer(build: Callable[[], nn.Module]) -> None:
    net = model(build).eval()
    embedding = net.embedding if build is bag else net.question.embedding
    with torch.no_grad():
        # The padding vector must not matter even if an initialiser leaves it non-zero.
        embedding.weight[0] = 3.0
    grid, tokens, lengths, image_of = batch()
    short = net(grid, tokens, lengths, image_of)
    long = net(grid, torch.nn.functional.pad(tokens, (0, 5)), lengths, image_of)
    torch.testing.assert_close(short.logits, long.logits, rtol=0, atol=1e-12)
    for a in long.attention.values():
        torch.testing.assert_close(a.sum(dim=1), torch.ones(len(a), dtype=a.dtype))


@each_model
def test_every_parameter_learns(build: Callable[[], nn.Module]) -> None:
    net = model(build).eval()
    grid, tokens, lengths, image_of = batch()
    objective([net(grid, tokens, lengths, image_of).logits]).backward()
    largest = {name: value.grad.abs().max().item() for name, value in net.named_parameters()}
    assert {name for name, gradient in largest.items() if gradient < 1e-9} == set()


@each_model
def test_questions_about_one_image_share_its_computation_exactly(
    build: Callable[[], nn.Module],
) -> None:
    net = model(build).eval()
    outputs, gradients = [], []
    for grouped in (True, False):
        grid, tokens, lengths, image_of = batch()
        grid.requires_grad_()
        net.zero_grad()
        if grouped:
            answer = net(grid, tokens, lengths, image_of)
        else:
            answer = net(grid[image_of], tokens, lengths)
        objective([answer.logits, *answer.attention.values()]).backward()
        outputs.append(answer)
        of_grid = [grid.grad] if image_learns(build) else []
        gradients.append(of_grid + [value.grad.clone() for value in net.parameters()])
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("build", [question_only, deeper, show_ask])
def test_each_question_drops_on_its_own(build: Callable[[], nn.Module]) -> None:
    """The same question about the same image twice in a batch: same answer, different dropout.

    Only the features of the image drop once for all questions about it.
    """
    net = model(build).train()
    grid, tokens, lengths, _ = batch()
    twice = (grid[:1], tokens[[2, 2]], lengths[[2, 2]], torch.tensor([0, 0]))
    first, second = net(*twice).logits
    assert not torch.allclose(first, second)
    # Without dropout, training computes what evaluation does.
    for part in net.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    torch.testing.assert_close(net(*twice).logits, net.eval()(*twice).logits)


@pytest.mark.parametrize(
    ("build", "dropping"),
    [
        (question_only, ["LSTM 0", "classifier.3", "classifier.6"]),
        (deeper, ["LSTM 0", "LSTM 1", "W_Q", "W_I", "classifier"]),
        (show_ask, ["LSTM 0", "W_V", "W_Q", "glimpses", "hidden", "classifier"]),
        (bag, []),
    ],
)
def test_dropout_is_where_the_papers_have_it(
    monkeypatch: pytest.MonkeyPatch, build: Callable[[], nn.Module], dropping: list[str]
) -> None:
    """Half of the non-zero features drop; many outputs of a ReLU are 0 anyway."""
    net = model(build)
    grid = batch()[0].repeat(100, 1, 1)
    tokens = torch.randint(1, VOCABULARY, (300, 4))
    layers = [name for name, part in net.named_modules() if isinstance(part, nn.Linear)]
    nonzero: dict[tuple[str, bool], float] = {}

    def count(name: str) -> None:
        def hook(part: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            nonzero[name, part.training] = (inputs[0] != 0).double().mean().item()

        net.get_submodule(name).register_forward_pre_hook(hook)

    def states_of(x: Tensor, counts: list[int], *weights: Tensor) -> tuple[Tensor, Tensor]:
        layer = sum(training == net.training for name, training in nonzero if "LSTM" in name)
        nonzero[f"LSTM {layer}", net.training] = (x != 0).double().mean().item()
        return states_in_time_order(x, counts, *weights)

    monkeypatch.setattr(baselines, "states_in_time_order", states_of)
    for name in layers:
        count(name)
    for training in (True, False):
        net.train(training)(grid, tokens, torch.full((300,), 4))
    names = {name for name, _ in nonzero}
    kept = {name: nonzero[name, True] / nonzero[name, False] for name in names}
    assert {name for name, share in kept.items() if 0.4 < share < 0.6} == set(dropping), kept


@each_model
def test_smallest_inputs(build: Callable[[], nn.Module]) -> None:
    net = model(build).eval()
    grid = torch.randn(1, 1, CHANNELS, dtype=torch.float64)
    answer = net(grid, torch.tensor([[3]]), torch.tensor([1]))
    assert answer.logits.shape == (1, ANSWERS)
    assert answer.logits.isfinite().all()
    assert all(a.tolist() == [[1.0]] for a in answer.attention.values())


@each_model
def test_a_black_image_does_not_divide_by_zero(build: Callable[[], nn.Module]) -> None:
    net = model(build)
    grid = torch.zeros(1, REGIONS, CHANNELS, dtype=torch.float64, requires_grad=True)
    net(grid, torch.tensor([[3, 4]]), torch.tensor([2])).logits.sum().backward()
    gradients = [value.grad for value in net.parameters() if value.grad is not None]
    gradients += [grid.grad] if image_learns(build) else []
    assert all(gradient.isfinite().all() for gradient in gradients)


@each_model
def test_order_of_the_batch_does_not_matter_and_evaluation_repeats(
    build: Callable[[], nn.Module],
) -> None:
    net = model(build).eval()
    grid, tokens, lengths, image_of = batch()
    first = net(grid, tokens, lengths, image_of)
    assert torch.equal(first.logits, net(grid, tokens, lengths, image_of).logits)
    order = torch.tensor([3, 5, 0, 2, 1, 4])
    shuffled = net(grid, tokens[order], lengths[order], image_of[order])
    torch.testing.assert_close(shuffled.logits, first.logits[order], rtol=0, atol=1e-12)


@each_model
def test_bfloat16_autocast_is_finite_and_close(build: Callable[[], nn.Module]) -> None:
    net = model(build).float().eval()
    grid, tokens, lengths, image_of = batch()
    exact = net(grid.float(), tokens, lengths, image_of)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = net(grid.float(), tokens, lengths, image_of)
    torch.testing.assert_close(low.logits.float(), exact.logits, rtol=0.05, atol=0.05)
    for a in low.attention.values():
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.sum(dim=1), torch.ones(len(a)))
    low.logits.float().sum().backward()
    assert all(value.grad.isfinite().all() for value in net.parameters())


def test_word_by_word_states_and_gradients_are_the_same() -> None:
    torch.manual_seed(0)
    question = QuestionLSTM(9, 3, 4, layers=2, dropout=0.0).double()
    x, lengths = torch.randn(4, 6, 3, dtype=torch.float64), torch.tensor([2, 6, 1, 6])
    for which in (0, 1):  # gradients of hidden states alone, of cell states alone
        found = []
        for ends in (question._in_time_order(x, lengths), question._word_by_word(x, lengths)):
            states = torch.stack([layer[which] for layer in ends])
            gradients = torch.autograd.grad(states.sin().sum(), list(question.cells.parameters()))
            found.append((states, *gradients))
        for ours, from_torch in zip(*found, strict=True):
            torch.testing.assert_close(ours, from_torch, rtol=1e-10, atol=1e-13)
