"""WUPS, the soft accuracy of DAQUAR and COCO-QA (Malinowski & Fritz 2014, section 4).

A wrong answer scores by its similarity to the true one in WordNet.
"""

from collections.abc import Mapping, Sequence
from math import prod

from vqa_repro.data.types import Example
from vqa_repro.evaluation.vqa_accuracy import check_results
from vqa_repro.evaluation.wordnet import WordNet
from vqa_repro.utils.errors import UserError

__all__ = ["WordNet", "score", "wups"]


def wups(prediction: str, answer: str, threshold: float, wordnet: WordNet) -> float:
    """Return the score of one question, 0 to 1.

    Both answers are comma-separated sets of words. Each word scores its best match on the other
    side, a tenth of it below ``threshold``; the result is the smaller of both sides' products.
    """

    def match(a: str, b: str) -> float:
        if a == b:
            return 1.0
        similarity = wordnet.similarity(a, b)
        return similarity if similarity >= threshold else 0.1 * similarity

    predicted, right = _words(prediction), _words(answer)
    return min(
        prod(max(match(a, t) for t in right) for a in predicted),
        prod(max(match(a, t) for a in predicted) for t in right),
    )


def score(
    results: Mapping[int, str], examples: Sequence[Example], wordnet: WordNet
) -> dict[str, float]:
    """Return WUPS at 0.9 and 0.0 of ``results`` (question id -> answer), in percent.

    Raise UserError for a question that does not have exactly one answer.
    """
    check_results(results, [example.question_id for example in examples])
    check_single_answers(examples)
    scores = {}
    for threshold in (0.9, 0.0):
        total = 0.0
        for example in examples:
            prediction = results[example.question_id]
            total += wups(prediction, example.answers[0], threshold, wordnet)
        scores[f"wups_{threshold}"] = round(100 * total / len(examples), 2)
    return scores


def check_single_answers(examples: Sequence[Example]) -> None:
    """Raise UserError for a question that does not have exactly one answer."""
    for example in examples:
        if len(example.answers) != 1:
            raise UserError(
                f"question {example.question_id} has {len(example.answers)} answers; "
                "WUPS is for data sets with one answer per question"
            )


def _words(answer: str) -> list[str]:
    return [word.strip().lower() for word in answer.split(",")]
