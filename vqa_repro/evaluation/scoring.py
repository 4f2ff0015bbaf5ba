"""Scores of predicted answers: the official accuracy and WUPS, for every verb."""

from collections.abc import Mapping
from typing import Any

from vqa_repro.data.questions import Questions
from vqa_repro.data.types import Split
from vqa_repro.evaluation import vqa_accuracy, wups
from vqa_repro.evaluation.inference import Predictions


def score(
    results: Mapping[int, str],
    split: Split,
    *,
    wordnet: wups.WordNet | None = None,
    pre_2021: bool = False,
) -> dict[str, Any]:
    """Return the percentages of ``results`` (question id -> answer) on ``split``, by name.

    With ``wordnet`` also WUPS. A split with hidden answers has no score: "overall" is None.
    """
    if split.hidden:
        return {"overall": None, "per_answer_type": {}, "per_question_type": {}}
    scores: dict[str, Any] = {**vqa_accuracy.score(results, split.examples, pre_2021=pre_2021)}
    if wordnet is not None:
        scores |= wups.score(results, split.examples, wordnet)
    return scores


def label_accuracy(predictions: Predictions, questions: Questions) -> float:
    """Return the percentage of questions whose predicted class is the label."""
    return 100 * float((predictions.answer == questions.label.cpu()).float().mean())
