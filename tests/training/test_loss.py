"""The training targets: the label, a sampled human answer, or all of them."""

import math

import torch

from vqa_repro.data.questions import Questions, Target, encode
from vqa_repro.data.types import Example
from vqa_repro.data.vocabulary import Vocabulary
from vqa_repro.training.loss import cross_entropy


def questions() -> Questions:
    asked = [
        Example(1, "p", "a", ("x", "y", "rare", "x"), "x"),
        Example(2, "p", "a", ("z", "z", "z", "y"), "z"),
    ]
    return encode(asked, Vocabulary(("<pad>", "<unk>", "a"), ("x", "y", "z")), {"p": 0})


LOGITS = torch.tensor([[1.0, 0.0, -1.0], [0.5, 2.0, 0.0]], requires_grad=True)


def loss_of(logits: torch.Tensor, target: Target) -> torch.Tensor:
    asked = questions()
    return cross_entropy(logits, asked.label, asked.answers, target)


def log_p(row: int, answer: int) -> float:
    values = LOGITS[row].tolist()
    return values[answer] - math.log(sum(map(math.exp, values)))


def test_the_label() -> None:
    loss = loss_of(LOGITS, "label").mean()
    assert math.isclose(loss.item(), -(log_p(0, 0) + log_p(1, 2)) / 2, rel_tol=1e-6)


def test_soft_targets_are_the_shares_of_in_vocabulary_answers() -> None:
    loss = loss_of(LOGITS, "soft").mean()
    first = (2 * log_p(0, 0) + log_p(0, 1)) / 3
    second = (3 * log_p(1, 2) + log_p(1, 1)) / 4
    assert math.isclose(loss.item(), -(first + second) / 2, rel_tol=1e-6)


def test_sampling_averages_to_the_soft_target_and_draws_every_answer() -> None:
    torch.manual_seed(0)
    draws = [loss_of(LOGITS, "sampled").mean().item() for _ in range(4000)]
    assert len({round(loss, 4) for loss in draws}) == 4  # x or y, z or y
    soft = loss_of(LOGITS, "soft").mean().item()
    assert math.isclose(sum(draws) / len(draws), soft, rel_tol=0.02)


def test_low_precision_logits_lose_no_further_precision() -> None:
    low = LOGITS.detach().bfloat16()
    for target in ("label", "soft"):
        exact = loss_of(low.float(), target)
        assert torch.equal(loss_of(low, target), exact)
