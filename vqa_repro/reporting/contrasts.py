"""What sets runs apart: sizes, questions that they answer differently, answers they confuse."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from safetensors import SafetensorError, safe_open

from vqa_repro.data.types import Split
from vqa_repro.evaluation.examples import ExampleRecord
from vqa_repro.reporting.comparison import RunGroup
from vqa_repro.utils.files import read_json
from vqa_repro.utils.schema import convert

DETAILS = "score_details.json"  # in a run folder
# Suffixes of what batch normalisation keeps, which is no parameter.
BATCH_STATISTICS = (".running_mean", ".running_var", ".num_batches_tracked")
CONFUSED = 30  # pairs kept of a run
DISAGREEMENTS = 40  # questions shown

MAX_TEXT = 1000  # characters of an answer
Text = Annotated[str, Meta(max_length=MAX_TEXT)]


def weights_in(folder: Path) -> int | None:
    """Return how many parameters model.safetensors holds; None if it is missing or damaged."""
    try:
        with safe_open(folder / "model.safetensors", "np") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
    parameters = (s for name, s in shapes.items() if not name.endswith(BATCH_STATISTICS))
    return sum(math.prod(map(int, shape)) for shape in parameters)


def confusions(results: Mapping[int, str], split: Split) -> list[tuple[str, str, int]]:
    """Return (label, other answer given, count), the most frequent first; long answers clipped."""
    pairs = Counter(
        (example.answer[:MAX_TEXT], results[example.question_id][:MAX_TEXT])
        for example in split.examples
        if example.answer is not None and example.question_id in results
    )
    wrong = [(label, given, n) for (label, given), n in pairs.most_common() if label != given]
    return wrong[:CONFUSED]


def type_counts(split: Split) -> dict[str, dict[str, int]]:
    """Return the number of questions of each answer and question type."""
    return {
        "per_answer_type": dict(Counter(e.answer_type for e in split.examples if e.answer_type)),
        "per_question_type": dict(
            Counter(e.question_type for e in split.examples if e.question_type)
        ),
    }


class ScoreDetails(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """score_details.json: what the scores of a run's test are made of."""

    counts: dict[Text, dict[Text, Annotated[int, Meta(ge=0)]]]
    confusions: Annotated[list[tuple[Text, Text, int]], Meta(max_length=CONFUSED)]


def read_score_details(folder: Path) -> ScoreDetails | None:
    """Return the facts in a run folder, None if there are none. Raise UserError for damage."""
    path = folder / DETAILS
    if not path.exists():
        return None
    return convert(read_json(path), ScoreDetails, f"{path}: damaged; delete it, or copy it again")


@dataclass(frozen=True)
class Disagreement:
    """A question that the groups of a data set answer differently."""

    record: ExampleRecord  # as the first group has it
    number: int  # of that group
    answers: list[tuple[str, float, bool]]  # of each group: answer, probability, right


def disagreements(groups: Sequence[RunGroup]) -> list[Disagreement]:
    """Return example questions that all ``groups`` have and do not answer alike.

    Those that some group has right and another wrong come first.
    """
    shown = [(number, g) for number, group in enumerate(groups) if (g := _examples(group))]
    if len(shown) < 2:
        return []
    common = set.intersection(*(set(records) for _, records in shown))
    first_number, first = shown[0]
    found = []
    for question_id, record in first.items():
        if question_id not in common:
            continue
        answered = [records[question_id] for _, records in shown]
        answers = [(*r.answers[0], bool(r.accuracy)) for r in answered]
        if len({answer for answer, _, _ in answers}) > 1:
            found.append(Disagreement(record, first_number, answers))
    found.sort(key=lambda one: len({right for _, _, right in one.answers}) == 1)
    return found[:DISAGREEMENTS]


def _examples(group: RunGroup) -> dict[int, ExampleRecord]:
    gallery = next((run.examples for run in group.runs if run.examples), None)
    return {record.question_id: record for record in gallery.records} if gallery else {}


def score_details(results: Mapping[int, str], split: Split) -> dict[str, Any]:
    """Return what score_details.json holds."""
    hidden = split.hidden
    return {
        "counts": {} if hidden else type_counts(split),
        "confusions": [] if hidden else confusions(results, split),
    }
