"""The trained runs behind the web page: their answers, what is known of them, and sample images."""

import hashlib
import io
import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from werkzeug.exceptions import Gone

from vqa_repro.data.images import ImageSource
from vqa_repro.data.vocabulary import MAX_QUESTION_LENGTH, tokenize
from vqa_repro.evaluation.examples import read as read_examples
from vqa_repro.evaluation.inference import Predictor
from vqa_repro.evaluation.titles import data_title, model_title
from vqa_repro.run import Run
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.files import read_json

CACHED_IMAGES = 8  # images whose features are kept
# What browsers show. Pillow reads more, some of it (EPS) with other programs.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP")


class Runs:
    """Trained runs, and the features of the last images. Safe to share between threads."""

    def __init__(self, predictors: Sequence[Predictor]) -> None:
        self.predictors = predictors
        self._provenance = [
            json.dumps(p.run.features["made_by"], sort_keys=True) for p in self.predictors
        ]
        self._features: OrderedDict[str, list[Tensor]] = OrderedDict()
        self._lock = threading.Lock()
        # Load the backbone now, or report it missing, rather than at the first question.
        blank = self._extract(np.zeros((8, 8, 3), np.uint8))
        for predictor, features in zip(predictors, blank, strict=True):
            predictor.answer(features, "what is it?")

    def add_image(self, image: bytes) -> str:
        """Extract the features of ``image`` for every run and return the image's key.

        Raise UserError if the image cannot be read.
        """
        key = hashlib.sha256(image).hexdigest()
        with self._lock:
            if key not in self._features:
                _check_format(image)
                self._features[key] = self._extract(image)
            self._features.move_to_end(key)
            if len(self._features) > CACHED_IMAGES:
                self._features.popitem(last=False)
        return key

    def answer(self, key: str, question: str) -> list[dict[str, Any]]:
        """Return each run's prediction as JSON. Raise Gone if the image is no longer cached."""
        with self._lock:
            if key not in self._features:
                raise Gone("the image has expired from the cache; upload it again")
            features = self._features[key]
            self._features.move_to_end(key)
            predictions = [
                p.answer(row, question) for p, row in zip(self.predictors, features, strict=True)
            ]
        return [
            {**prediction.to_json(), "unread_words": tokenize(question)[MAX_QUESTION_LENGTH:]}
            for prediction in predictions
        ]

    def describe(self) -> list[dict[str, Any]]:
        """Return for each run its title, folder, training data, answers known and test scores.

        And "unfinished": epochs trained so far and in all, or None.
        """
        return [
            {
                "title": model_title(run.recipe),
                "folder": str(run.folder),
                "data": data_title(run.recipe),
                "answers": len(run.vocabulary.answers),
                **_test_scores(run),
                "unfinished": run.epochs_so_far(),
            }
            for run in (predictor.run for predictor in self.predictors)
        ]

    def _extract(self, image: ImageSource) -> list[Tensor]:
        """Return the features for each run; runs with the same backbone share them."""
        features: dict[str, Tensor] = {}
        for provenance, predictor in zip(self._provenance, self.predictors, strict=True):
            if provenance not in features:
                features[provenance] = predictor.extract(image)
        return [features[provenance] for provenance in self._provenance]


def _test_scores(run: Run) -> dict[str, float | None]:
    """Return "accuracy" and "prior" (always the most frequent answer) in percent, or None."""
    metrics = read_json(run.folder / "metrics.json") if run.finished else {}
    found = metrics if isinstance(metrics, dict) else {}
    scores = {"accuracy": found.get("overall"), "prior": found.get("prior")}
    return {key: value if type(value) in (int, float) else None for key, value in scores.items()}


def _check_format(image: bytes) -> None:
    try:
        Image.open(io.BytesIO(image), formats=FORMATS).close()
    except UnidentifiedImageError:
        raise UserError(f"not an image in a supported format ({', '.join(FORMATS)})") from None
    except Exception:  # read_image reports what is wrong with it
        return


class Sample(NamedTuple):
    """A test question of a run: its image as JPEG, and the true answer if the data set gives it."""

    image: bytes
    question: str
    answer: str | None


def samples(runs: Sequence[Path]) -> list[Sample]:
    """Return the sample questions of the first run folder that has examples."""
    for folder in runs:
        if examples := read_examples(folder):
            records = [examples.records[i] for i in examples.lists.get("sample", [])]
            return [
                Sample(examples.images[r.picture], r.question, r.label)
                for r in records
                if r.picture
            ]
    return []
