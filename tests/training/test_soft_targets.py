"""Targets in addition to the label: similar answers, teachers, two passes, averaged weights."""

import math
from dataclasses import replace

import pytest
import steps
import torch
from torch import nn

from vqa_repro.data.batching import plan_batches
from vqa_repro.data.vocabulary import Vocabulary
from vqa_repro.evaluation.ensemble import Ensemble, allowed_answers
from vqa_repro.evaluation.wups import WordNet
from vqa_repro.features.loader import FeatureLoader
from vqa_repro.training.ema import WeightAverage
from vqa_repro.training.loss import symmetric_divergence
from vqa_repro.training.soft_targets import (
    SoftTargets,
    similar_answers,
    with_labels,
    with_other_images,
)
from vqa_repro.training.step import Step
from vqa_repro.utils.errors import UserError


def a_batch():
    store, questions = steps.made_up(pictures=False)
    loader = FeatureLoader(store, torch.device("cpu"))
    return next(iter(loader.epoch(questions, plan_batches(questions, 8, "iid"))))


def gradients(step: Step) -> list[torch.Tensor]:
    step.compute_gradients(a_batch())
    return [p.grad.clone() for p in step.parameters if p.grad is not None]


LABEL = replace(steps.CASES["san"], answers="label")


def test_soft_targets_are_a_share_of_the_loss() -> None:
    network, batch = steps.network("san").train(), a_batch()
    torch.manual_seed(3)
    table = torch.rand(1000, steps.ANSWERS).softmax(1)
    soft = SoftTargets(table, by_label=False, share=0.25, temperature=2.0)
    found = gradients(Step(LABEL, network, soft_targets=[soft]))
    logits = network(batch.features, batch.tokens, batch.lengths, batch.image_index).logits
    hard = nn.functional.cross_entropy(logits, batch.label)
    # An independent form: KL divergence differs from cross-entropy by a constant.
    target = table[batch.positions]
    kl = nn.functional.kl_div((logits / 2).log_softmax(1), target, reduction="batchmean")
    expected = torch.autograd.grad(0.75 * hard + 0.25 * 4 * kl, list(network.parameters()))
    torch.testing.assert_close(found, list(expected), rtol=1e-4, atol=1e-6)


def test_targets_by_label() -> None:
    batch = a_batch()
    eye = SoftTargets(torch.eye(steps.ANSWERS), by_label=True, share=1.0)
    logits = torch.randn(len(batch), steps.ANSWERS)
    expected = nn.functional.cross_entropy(logits, batch.label, reduction="none")
    torch.testing.assert_close(eye.cross_entropy(logits, batch), expected)


def test_teachers_answer_questions_about_other_images() -> None:
    _, questions = steps.made_up(pictures=False)
    count = len(questions)
    more = with_other_images(questions, 3, seed=1)
    assert len(more) == 4 * count and (more.row.diff() >= 0).all()
    assert more.question_id.unique(return_counts=True)[1].unique().tolist() == [4]

    asked = {
        (int(id), int(row)): words.tolist()
        for id, row, words in zip(more.question_id, more.row, more.tokens, strict=True)
    }
    own = dict(zip(questions.question_id.tolist(), questions.row.tolist(), strict=True))
    words = dict(zip(questions.question_id.tolist(), questions.tokens.tolist(), strict=True))
    assert all(tokens == words[id] for (id, _), tokens in asked.items())
    assert set(own.items()) <= asked.keys() and len(asked) > 2 * count
    assert {row for _, row in asked} == set(own.values()), "images of the training split"

    labels = dict(zip(questions.question_id.tolist(), questions.label.tolist(), strict=True))
    taught = with_labels(more, torch.full((4 * count,), 5))
    kept = more.label >= 0
    assert kept.sum() == count and (taught.label[~kept] == 5).all()
    assert taught.label[kept].tolist() == [labels[int(i)] for i in more.question_id[kept]]
    unlisted = replace(more, answers=torch.full_like(more.answers, -1))
    assert (with_labels(unlisted, taught.label * 0).label[kept] == more.label[kept]).all()
    assert (taught.answers[~kept] == 5).all() and (taught.answers[kept] == more.answers[kept]).all()
    again = with_other_images(questions, 3, seed=1)
    assert (again.row == more.row).all()
    assert (with_other_images(questions, 3, seed=2).row != more.row).any()


def test_similar_answers_share_the_target() -> None:
    table = similar_answers(["table", "desk", "7", "red", "tables"], WordNet())
    torch.testing.assert_close(table.sum(1), torch.ones(5))
    assert table[2].tolist() == [0, 0, 1, 0, 0]
    assert table[0, 4] == table[0, 0]  # the plural has the same senses
    assert 0 < table[0, 1] < table[0, 0] and table[1, 1] > table[1, 0] > 0


def test_two_passes_are_pulled_together() -> None:
    a, b = torch.randn(2, 4, 5, dtype=torch.float64).float()
    p, q = a.softmax(1), b.softmax(1)
    expected = ((p * (p / q).log()).sum(1) + (q * (q / p).log()).sum(1)) / 2
    torch.testing.assert_close(symmetric_divergence(a, b), expected)
    plain = gradients(Step(LABEL, steps.network("san").train()))
    # Without dropout both passes are the same, so their divergence is zero.
    twice = gradients(Step(replace(LABEL, r_drop=1.0), steps.network("san").train()))
    torch.testing.assert_close(plain, twice)


def test_the_average_of_weights() -> None:
    network = nn.Linear(1, 1, bias=False)
    average = WeightAverage(network, 0.75)
    expected = 0.0
    for step, value in enumerate([1.0, 3.0, 5.0, 7.0, 9.0, 2.0] * 7, start=1):
        network.weight.data.fill_(value)
        average.update()
        # Over a tenth of the steps so far, from step 40 on over about four of them.
        expected += max(min(1, 10 / step), 0.25) * (value - expected)
    with average.applied():
        assert math.isclose(network.weight.item(), expected, rel_tol=1e-6)
    assert network.weight.item() == 2.0
    other = WeightAverage(nn.Linear(1, 1, bias=False), 0.75)
    other.load_state_dict(average.state_dict())
    network.weight.data.fill_(4.0)
    average.update()
    average.apply()
    assert math.isclose(network.weight.item(), expected + 0.25 * (4 - expected), rel_tol=1e-6)


def test_an_ensemble_answers_by_mean_probability() -> None:
    batch = a_batch()
    networks = [steps.network("san").eval(), steps.network("san").eval()]
    for parameter in networks[1].parameters():
        parameter.data.mul_(1.5)
    inputs = (batch.features, batch.tokens, batch.lengths, batch.image_index)
    expected = sum(network(*inputs).logits.softmax(1) for network in networks) / 2
    torch.testing.assert_close(Ensemble(networks)(*inputs).logits.exp(), expected)
    allowed = torch.tensor([False, True, False, True, True])
    masked = Ensemble(networks, allowed)(*inputs).logits
    assert set(masked.argmax(1).tolist()) <= {1, 3, 4}
    torch.testing.assert_close(masked[:, allowed].exp(), expected[:, allowed])


def test_answers_of_another_set() -> None:
    vocabulary = Vocabulary(("<pad>", "<unk>"), ("red", "two", "bed"))
    assert allowed_answers(vocabulary, ["bed", "red", "sofa", None], "x").tolist() == [1, 0, 1]
    with pytest.raises(UserError, match="sofas"):
        allowed_answers(vocabulary, ["sofa"], "sofas")
