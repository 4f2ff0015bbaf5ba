"""The accuracy of the most frequent answer and the coverage of the answer vocabulary."""

import pytest

from vqa_repro.data.types import Example, Split
from vqa_repro.evaluation.baselines import prior_and_coverage


def test_prior_and_coverage() -> None:
    labels = ("yes", "yes", "no", "zebra")
    examples = [Example(n, "p", "what?", (label,), label) for n, label in enumerate(labels)]
    split = Split("data", "test", examples, {})
    assert prior_and_coverage(split, ("yes", "no")) == {
        "prior": pytest.approx(50.0),
        "coverage": pytest.approx(75.0),
    }
    hidden = [Example(n, "p", "what?", (), None) for n in range(3)]
    assert prior_and_coverage(Split("data", "test", hidden, {}), ("yes",)) == {}
