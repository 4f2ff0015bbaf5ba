"""Reference points of an accuracy: the most frequent answer, and the answer vocabulary."""

from collections.abc import Sequence

from vqa_repro.data.types import Split
from vqa_repro.evaluation import vqa_accuracy
from vqa_repro.run import Run, open_run
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.files import read_json


def prior_and_coverage(
    split: Split, classes: Sequence[str], *, pre_2021: bool = False
) -> dict[str, float]:
    """Return "prior" and "coverage" in percent; {} if the answers are hidden.

    prior: the accuracy of always giving the most frequent training answer. coverage: the share of
    questions whose label is one of ``classes``, the model's answers, most frequent first.
    """
    if split.hidden or not split.examples:
        return {}
    constant = {example.question_id: classes[0] for example in split.examples}
    return {
        "prior": vqa_accuracy.score(constant, split.examples, pre_2021=pre_2021)["overall"],
        "coverage": coverage(split, classes),
    }


def question_only(run: Run) -> float | None:
    """Return the accuracy of a finished question-only run on the data of ``run``, if there is one.

    The search covers the sibling folders of ``run``; those that cannot be read are
    skipped.
    """
    if run.recipe.model["name"] == "question-only":
        return None
    data = (run.recipe.data.name, run.recipe.data.tested_on)
    for path in sorted(run.folder.resolve().parent.glob("*/metrics.json")):
        try:
            other = open_run(path.parent)
            if other.recipe.model["name"] != "question-only":
                continue
            accuracy = float(read_json(path)["overall"])
        except (UserError, TypeError, KeyError, ValueError):  # a stranger's folder
            continue
        if (other.recipe.data.name, other.recipe.data.tested_on) == data:
            return accuracy
    return None


def coverage(split: Split, classes: Sequence[str]) -> float:
    """Return the percentage of the questions of ``split`` whose label is one of ``classes``."""
    known = set(classes)
    covered = sum(example.answer in known for example in split.examples)
    return round(100 * covered / max(1, len(split.examples)), 2)
