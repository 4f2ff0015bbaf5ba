"""The LSTM over questions of different lengths computes what PyTorch's does on packed ones."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from vqa_repro.models.ops.lstm import LSTM, last_states


def packed(lstm: LSTM, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return PyTorch's states at all words (zeros elsewhere) and at the last words."""
    words = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    states, (h, _) = nn.LSTM.forward(lstm, words)
    return pad_packed_sequence(states, batch_first=True, total_length=x.shape[1])[0], h[-1]


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("lengths", [[3, 9, 1, 4, 4, 2], [1, 1], [5]])
def test_values_and_gradients_are_those_of_packed_questions(
    layers: int, lengths: list[int]
) -> None:
    torch.manual_seed(0)
    lstm, count = LSTM(7, 5, layers).double(), torch.tensor(lengths)
    x = torch.randn(len(count), 9, 7, dtype=torch.float64, requires_grad=True)
    for which in (0, 1):
        states = lstm(x, count)
        ours = (states, last_states(states, count))[which]
        reference = packed(lstm, x, count)[which]
        torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-14)
        weight = torch.randn_like(ours)
        inputs = [x, *lstm.parameters()]
        of_ours, of_reference = (
            torch.autograd.grad((y * weight).sum(), inputs) for y in (ours, reference)
        )
        for gradient, expected in zip(of_ours, of_reference, strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-13)


def test_states_over_the_padding_too_end_at_the_same_words() -> None:
    """Other devices ignore lengths."""
    torch.manual_seed(0)
    lstm, lengths = LSTM(4, 8).double(), torch.tensor([2, 5, 3])
    x = torch.randn(3, 5, 4, dtype=torch.float64)
    states, _ = nn.LSTM.forward(lstm, x)
    torch.testing.assert_close(last_states(states, lengths), last_states(lstm(x, lengths), lengths))


def test_dropout_is_between_the_layers_in_training_only() -> None:
    torch.manual_seed(0)
    lstm = LSTM(3, 200, 2, dropout=0.5)
    x, lengths = torch.randn(1, 6, 3), torch.tensor([6])
    assert not torch.equal(lstm(x, lengths), lstm(x, lengths))
    lstm.eval()
    torch.testing.assert_close(lstm(x, lengths), nn.LSTM.forward(lstm, x)[0])


def test_low_precision_is_near_float32() -> None:
    torch.manual_seed(0)
    lstm = LSTM(20, 30)
    x, lengths = torch.randn(8, 7, 20), torch.tensor([7, 3, 1, 2, 7, 5, 6, 4])
    gradients = []
    for low in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            states = lstm(x, lengths)
        assert states.dtype is torch.float32
        gradients.append(torch.autograd.grad(states.square().sum(), list(lstm.parameters())))
    for exact, rounded in zip(*gradients, strict=True):
        assert rounded.dtype is torch.float32
        assert (rounded - exact).norm() < 0.02 * exact.norm()
