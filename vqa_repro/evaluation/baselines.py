"""What a score must be compared with: the most frequent answer, and the answers a model has."""

from collections.abc import Sequence

from vqa_repro.data.types import Split
from vqa_repro.evaluation import vqa_accuracy


def prior_and_coverage(split: Split, classes: Sequence[str]) -> dict[str, float]:
    """Return "prior" and "coverage" in percent; {} if the answers are hidden.

    prior: the accuracy of always giving the most frequent training answer. coverage: the share of
    questions whose label is one of ``classes``, the model's answers, most frequent first.
    """
    if split.hidden or not split.examples:
        return {}
    constant = {example.question_id: classes[0] for example in split.examples}
    return {
        "prior": vqa_accuracy.score(constant, split.examples)["overall"],
        "coverage": coverage(split, classes),
    }


def coverage(split: Split, classes: Sequence[str]) -> float:
    """Return the percentage of the questions of ``split`` whose label is one of ``classes``."""
    known = set(classes)
    covered = sum(example.answer in known for example in split.examples)
    return round(100 * covered / max(1, len(split.examples)), 2)
