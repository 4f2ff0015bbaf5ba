"""What a run answered to the fold that it did not train on: held_out.json of its folder."""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from vqa_repro.data.folds import image_groups
from vqa_repro.data.questions import Questions
from vqa_repro.data.registry import find_data_set
from vqa_repro.data.types import Split
from vqa_repro.evaluation import vqa_accuracy, wups
from vqa_repro.evaluation.inference import Predictions
from vqa_repro.recipe import Data
from vqa_repro.utils.errors import UserError

VERSION = 1
NAME = "held_out.json"
# Float32 probabilities can be zero, and one such answer must not decide a mean.
LEAST_PROBABILITY = 1e-12


def held_out_record(
    data: Data,
    split: Split,
    results: Mapping[int, str],
    predictions: Predictions,
    questions: Questions,
) -> dict[str, Any]:
    """Return the content of held_out.json.

    "questions" has a row for each: its id, the group of its image, its accuracy (0 to 1), the
    natural logarithm of the correct answer's probability with its sign changed (None where the
    training answers lack it), and its WUPS 0.9 (None where the data set has none). "digest"
    identifies the questions and their answers.
    """
    data_set = find_data_set(data.name)
    groups = image_groups(split.images, data_set.sequences)
    accuracy = vqa_accuracy.per_question(results, split.examples)
    losses = {
        question_id: -math.log(max(probability, LEAST_PROBABILITY)) if label >= 0 else None
        for question_id, label, probability in zip(
            questions.question_id.tolist(),
            questions.label.tolist(),
            predictions.label_probability.tolist(),
            strict=True,
        )
    }
    wordnet = _wordnet() if data_set.wups else None
    rows = []
    digest = hashlib.sha256()
    for example in sorted(split.examples, key=lambda example: example.question_id):
        number = example.question_id
        similarity = None
        if wordnet is not None and len(example.answers) == 1:
            similarity = wups.wups(results[number], example.answers[0], 0.9, wordnet)
        rows.append([number, groups[example.image], accuracy[number], losses[number], similarity])
        identity = [number, example.image, example.question, example.answers]
        digest.update(json.dumps(identity).encode())
    return {
        "version": VERSION,
        "data": data.name,
        "split": data.train,
        "fold": data.fold,
        "digest": digest.hexdigest(),
        "questions": rows,
    }


def _wordnet() -> wups.WordNet | None:
    try:
        return wups.WordNet()
    except UserError:  # reported where the run's WUPS is computed
        return None
