"""What a run answered to the fold that it did not train on: held_out.json of its folder."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vqa_repro.data.folds import image_groups
from vqa_repro.data.questions import Questions
from vqa_repro.data.registry import find_data_set
from vqa_repro.data.types import Split
from vqa_repro.evaluation import vqa_accuracy, wups
from vqa_repro.evaluation.inference import Predictions
from vqa_repro.recipe import Data
from vqa_repro.utils.errors import UserError

VERSION = 2
NAME = "held_out.json"
# Float32 probabilities can be zero, and one such answer must not decide a mean.
LEAST_PROBABILITY = 1e-12
# Of which the best for a fold is taken: the log loss without its part from over-confidence.
TEMPERATURES = tuple(n / 20 for n in range(10, 81))


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
    training answers lack it), its WUPS 0.9 (None where the data set has none), and the same
    logarithm with all logits divided by "temperature", the best for the mean of the fold (Guo et
    al. 2017, "On calibration of modern neural networks"). "digest" identifies the questions and
    their answers. ``predictions`` must be those at all TEMPERATURES.
    """
    data_set = find_data_set(data.name)
    groups = image_groups(split.images, data_set.sequences)
    accuracy = vqa_accuracy.per_question(results, split.examples)
    tempered = _losses(predictions.tempered)  # (T, N)
    known = questions.label.cpu() >= 0  # the predictions are on the CPU
    best = int(tempered[:, known].mean(1).argmin()) if known.any() else 0
    losses = _by_id(_losses(predictions.label_probability), questions)
    calibrated = _by_id(tempered[best], questions)
    wordnet = _wordnet() if data_set.wups else None
    rows = []
    digest = hashlib.sha256()
    for example in sorted(split.examples, key=lambda example: example.question_id):
        number = example.question_id
        similarity = None
        if wordnet is not None and len(example.answers) == 1:
            similarity = wups.wups(results[number], example.answers[0], 0.9, wordnet)
        group, loss = groups[example.image], losses[number]
        rows.append([number, group, accuracy[number], loss, similarity, calibrated[number]])
        identity = [number, example.image, example.question, example.answers]
        digest.update(json.dumps(identity).encode())
    return {
        "version": VERSION,
        "data": data.name,
        "split": data.train,
        "fold": data.fold,
        "digest": digest.hexdigest(),
        "temperature": TEMPERATURES[best],
        "questions": rows,
    }


def _losses(probabilities: Tensor) -> Tensor:
    return -probabilities.clamp(min=LEAST_PROBABILITY).log()


def _by_id(losses: Tensor, questions: Questions) -> dict[int, float | None]:
    """Return question id -> its loss, None where the label is not a class."""
    columns = (values.tolist() for values in (questions.question_id, questions.label, losses))
    return {i: x if label >= 0 else None for i, label, x in zip(*columns, strict=True)}


def _wordnet() -> wups.WordNet | None:
    try:
        return wups.WordNet()
    except UserError:  # reported where the run's WUPS is computed
        return None
