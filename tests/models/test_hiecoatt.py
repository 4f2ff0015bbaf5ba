"""HieCoAtt against its equations (reference_hiecoatt.py), and the contract of all models."""

import itertools

import pytest
import reference_hiecoatt as reference
import torch
from torch import Tensor

from vqa_repro.models.hiecoatt import HieCoAtt

VARIANTS = list(itertools.product(["parallel", "alternating"], ["paper", "released"]))
each_variant = pytest.mark.parametrize(("coattention", "fidelity"), VARIANTS)

# No two sizes alike: a hard-coded or exchanged dimension cannot pass.
VOCABULARY, ANSWERS, CHANNELS, HIDDEN, LAST, REGIONS = 11, 7, 9, 6, 10, 5
LENGTHS = [4, 1, 8, 2, 3, 4]
IMAGE_OF = [0, 0, 2, 1, 2, 2]


def model(coattention: str, fidelity: str, dropout: float = 0.5, *, bias: bool = True) -> HieCoAtt:
    torch.manual_seed(1)
    return HieCoAtt(
        VOCABULARY,
        ANSWERS,
        CHANNELS,
        coattention=coattention,
        hidden=HIDDEN,
        last_hidden=LAST,
        dropout=dropout,
        bias=bias,
        fidelity=fidelity,
    ).double()


def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return grid, tokens, lengths and image_of for three images and six questions."""
    torch.manual_seed(2)
    grid = torch.randn(3, REGIONS, CHANNELS, dtype=torch.float64)
    lengths = torch.tensor(LENGTHS)
    tokens = torch.randint(1, VOCABULARY, (len(LENGTHS), max(LENGTHS)))
    tokens[torch.arange(max(LENGTHS)) >= lengths[:, None]] = 0
    return grid, tokens, lengths, torch.tensor(IMAGE_OF)


def objective(logits: Tensor, maps: list[Tensor]) -> Tensor:
    """Return a scalar in which every output has its own weight."""
    values = torch.cat([logits.flatten(), *(a.flatten() for a in maps)])
    return (values * torch.linspace(0.5, 1.5, len(values), dtype=values.dtype).cos()).sum()


@pytest.mark.parametrize("bias", [True, False], ids=["biases", "no biases"])
@each_variant
def test_values_and_gradients_follow_the_equations(
    coattention: str, fidelity: str, bias: bool
) -> None:
    net = model(coattention, fidelity, bias=bias).eval()
    grid, tokens, lengths, image_of = batch()
    grid.requires_grad_()
    answer = net(grid, tokens, lengths, image_of)

    p = {name: value.detach().clone().requires_grad_() for name, value in net.named_parameters()}
    f = grid.detach().clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    expected_total = torch.zeros((), dtype=torch.float64)
    for n, length in enumerate(LENGTHS):
        logits, maps = reference.answer(
            p, f[IMAGE_OF[n]].T, tokens[n, :length].tolist(), coattention, fidelity == "released"
        )
        torch.testing.assert_close(answer.logits[n], logits, rtol=1e-9, atol=1e-12)
        assert answer.attention.keys() == maps.keys()
        real = {
            name: a[n] if name.endswith("/image") else a[n, :length]
            for name, a in answer.attention.items()
        }
        for name, a in maps.items():
            torch.testing.assert_close(real[name], a, rtol=1e-9, atol=1e-12)
        total = total + objective(answer.logits[n], list(real.values()))
        expected_total = expected_total + objective(logits, [maps[name] for name in real])

    total.backward()
    expected_total.backward()
    torch.testing.assert_close(grid.grad, f.grad, rtol=1e-9, atol=1e-12)
    for name, value in net.named_parameters():
        torch.testing.assert_close(
            value.grad, p[name].grad, rtol=1e-9, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}"
        )


@each_variant
def test_padding_never_changes_an_answer(coattention: str, fidelity: str) -> None:
    net = model(coattention, fidelity).eval()
    with torch.no_grad():
        # The padding vector must not matter even if an initialiser leaves it non-zero.
        net.W_e.weight[0] = 3.0
    grid, tokens, lengths, image_of = batch()
    short = net(grid, tokens, lengths, image_of)
    long = net(grid, torch.nn.functional.pad(tokens, (0, 5)), lengths, image_of)
    torch.testing.assert_close(short.logits, long.logits, rtol=0, atol=1e-12)

    padding = torch.arange(tokens.shape[1] + 5) >= lengths[:, None]
    for name, a in long.attention.items():
        torch.testing.assert_close(a.sum(dim=1), torch.ones(len(a), dtype=a.dtype))
        if name.endswith("/question"):
            assert (a[padding] == 0).all()
            assert (a[~padding] > 0).all()
        else:
            assert a.shape == (len(LENGTHS), REGIONS)


@each_variant
def test_every_parameter_learns_and_none_is_shared(coattention: str, fidelity: str) -> None:
    net = model(coattention, fidelity).eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    grid, tokens, lengths, image_of = batch()
    objective(net(grid, tokens, lengths, image_of).logits, []).backward()
    largest = {name: value.grad.abs().max().item() for name, value in net.named_parameters()}
    assert {name for name, gradient in largest.items() if gradient < 1e-9} == set()
    # The forward pass adds no parameters that the optimiser would miss.
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    # Each step of each level has its own weights.
    values = [value for value in before.values() if value.dim() > 1]
    assert not any(
        a.shape == b.shape and torch.equal(a, b) for a, b in itertools.combinations(values, 2)
    )


@each_variant
def test_questions_about_one_image_share_its_computation_exactly(
    coattention: str, fidelity: str
) -> None:
    net = model(coattention, fidelity).eval()
    rows = {"grouped": 0, "repeated": 0}
    net.W_V.register_forward_hook(lambda _, inputs, __: rows.update({mode: len(inputs[0])}))
    outputs, gradients = {}, {}
    for mode in rows:
        grid, tokens, lengths, image_of = batch()
        grid.requires_grad_()
        net.zero_grad()
        if mode == "grouped":
            answer = net(grid, tokens, lengths, image_of)
        else:
            answer = net(grid[image_of], tokens, lengths)
        objective(answer.logits, list(answer.attention.values())).backward()
        outputs[mode] = answer
        gradients[mode] = [grid.grad, *(value.grad.clone() for value in net.parameters())]
    assert rows == {"grouped": 3, "repeated": len(LENGTHS)}
    torch.testing.assert_close(outputs["grouped"], outputs["repeated"], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradients["grouped"], gradients["repeated"], rtol=1e-9, atol=1e-12)


@each_variant
def test_each_question_drops_on_its_own(coattention: str, fidelity: str) -> None:
    """The same question about the same image twice in a batch: same answer, different dropout."""
    net = model(coattention, fidelity)
    grid, tokens, lengths, _ = batch()
    twice = (grid[:1], tokens[[0, 0]], lengths[[0, 0]], torch.tensor([0, 0]))
    net.train()
    first, second = net(*twice).logits
    assert not torch.allclose(first, second)
    # Without dropout, training computes what evaluation does.
    net.dropout.p = net.lstm.dropout = 0.0
    for level in (net.word, net.phrase, net.question):
        level.dropout.p = 0.0
    torch.testing.assert_close(net(*twice).logits, net.eval()(*twice).logits)


@each_variant
def test_dropout_is_where_the_code_has_it(coattention: str, fidelity: str) -> None:
    """Half of the features drop, counted at the input of each layer."""
    net = model(coattention, fidelity).train()
    grid, tokens, lengths, image_of = batch()
    scores = ["w_hq"] if coattention == "parallel" else ["w_hx1", "w_hx3"]
    question = "W_q" if coattention == "parallel" else "W_x1"
    dropping = ["lstm", "W_w", "W_p", "W_s", "W_h"]
    for level in ("word", "phrase", "question"):
        dropping += [f"{level}.{layer}" for layer in (question, *scores)]
    if fidelity == "released":
        dropping.append("W_V")
    zeros: dict[str, float] = {}

    def count(name: str) -> None:
        def hook(_: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
            values = inputs[0].data  # of the LSTM's packed input too
            values = values[values.abs().sum(dim=-1) > 0]  # not the padding
            zeros[name] = (values == 0).double().mean().item()

        net.get_submodule(name).register_forward_pre_hook(hook)

    for name in dropping:
        count(name)
    net(grid[image_of].repeat(40, 1, 1), tokens.repeat(40, 1), lengths.repeat(40))
    assert zeros.keys() == set(dropping)
    # Rows that dropped everything were taken for padding, hence a little below one half.
    assert {name: share for name, share in zeros.items() if not 0.44 < share < 0.54} == {}
    assert (net.lstm.num_layers, net.lstm.dropout) == ((2, 0.5) if net.released else (1, 0.0))


def test_input_dropout_is_of_regions() -> None:
    net = HieCoAtt(9, 4, 8, hidden=6, last_hidden=8, dropout=0.0, input_dropout=0.5)
    seen: list[Tensor] = []
    net.W_I.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    tokens, lengths = torch.tensor([[3, 4], [5, 0]]), torch.tensor([2, 1])
    for training in (True, False):
        net.train(training)(torch.ones(2, 500, 8), tokens, lengths)
    assert set(seen[0].unique().tolist()) == {0.0, 2.0} and abs(seen[0].mean() - 1) < 0.1
    assert set(seen[1].unique().tolist()) == {1.0}


@each_variant
def test_dropout_is_before_the_scores_of_regions(coattention: str, fidelity: str) -> None:
    net = model(coattention, fidelity).train()
    net.dropout.p = net.lstm.dropout = 0.0
    if coattention == "alternating":  # the dropout of words must not matter
        for level in (net.word, net.phrase, net.question):
            torch.nn.init.zeros_(level.W_g2.weight)
    inputs = batch()
    first, second = (net(*inputs).attention for _ in range(2))
    for name in ("word/image", "phrase/image", "question/image"):
        assert not torch.allclose(first[name], second[name])


@each_variant
def test_smallest_inputs(coattention: str, fidelity: str) -> None:
    net = model(coattention, fidelity).eval()
    grid = torch.randn(1, 1, CHANNELS, dtype=torch.float64)
    answer = net(grid, torch.tensor([[3]]), torch.tensor([1]))
    assert answer.logits.shape == (1, ANSWERS)
    assert answer.logits.isfinite().all()
    for a in answer.attention.values():
        assert a.tolist() == [[1.0]]


@each_variant
def test_order_of_the_batch_does_not_matter_and_evaluation_repeats(
    coattention: str, fidelity: str
) -> None:
    net = model(coattention, fidelity).eval()
    grid, tokens, lengths, image_of = batch()
    first = net(grid, tokens, lengths, image_of)
    again = net(grid, tokens, lengths, image_of)
    assert torch.equal(first.logits, again.logits)
    order = torch.tensor([3, 5, 0, 2, 1, 4])
    shuffled = net(grid, tokens[order], lengths[order], image_of[order])
    torch.testing.assert_close(shuffled.logits, first.logits[order], rtol=0, atol=1e-12)
    for name, a in shuffled.attention.items():
        torch.testing.assert_close(a, first.attention[name][order], rtol=0, atol=1e-12)


@each_variant
def test_bfloat16_autocast_is_finite_and_close(coattention: str, fidelity: str) -> None:
    net = model(coattention, fidelity, dropout=0.0).float()
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


@pytest.mark.parametrize("option", [{"coattention": "serial"}, {"fidelity": "papr"}])
def test_unknown_variant_is_refused(option: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=next(iter(option.values()))):
        HieCoAtt(VOCABULARY, ANSWERS, CHANNELS, **option)


@each_variant
def test_every_layer_of_the_equations_has_a_bias(coattention: str, fidelity: str) -> None:
    """Section 3.1: the biases are omitted from the equations only."""
    attention = ["W_b", "W_q"] if coattention == "parallel" else ["W_x1", "W_x3"]
    layers = ["W_c.0", "W_c.1", "W_c.2", "W_I", "W_V", "W_w", "W_p", "W_s", "W_h"]
    for level in ("word", "phrase", "question"):
        layers += [f"{level}.{layer}" for layer in attention]
    for bias in (True, False):
        names = {name for name, _ in model(coattention, fidelity, bias=bias).named_parameters()}
        assert {layer for layer in layers if f"{layer}.bias" in names} == set(
            layers if bias else ()
        )
