"""held_out.json: log loss, and log loss at the best temperature."""

from typing import Any

import numpy as np
import torch

from vqa_repro.data.questions import Questions
from vqa_repro.data.types import Example, Split
from vqa_repro.evaluation.held_out import TEMPERATURES, held_out_record
from vqa_repro.evaluation.inference import Predictions
from vqa_repro.recipe import Data

N, CLASSES = 4000, 7


def test_the_calibrated_loss_does_not_depend_on_confidence() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(size=(N, CLASSES))
    probabilities = np.exp(true) / np.exp(true).sum(1, keepdims=True)
    label = np.array([rng.choice(CLASSES, p=p) for p in probabilities])
    label[0] = -1  # not a class
    records = {factor: record(factor * true, label) for factor in (1, 3)}
    for factor, made in records.items():
        assert abs(made["temperature"] - factor) <= 0.15 * factor
        expected = [
            None if c < 0 else -np.log(softmax(factor * row / made["temperature"])[c])
            for row, c in zip(true, label, strict=True)
        ]
        got = [row[5] for row in made["questions"]]
        assert got[0] is None and np.allclose(got[1:], np.array(expected[1:], float), atol=1e-6)
    raw, calibrated = ([mean(r, column) for r in records.values()] for column in (3, 5))
    assert raw[1] > raw[0] + 0.1 and abs(calibrated[1] - calibrated[0]) < 1e-3


def mean(made: dict[str, Any], column: int) -> float:
    return float(np.mean([row[column] for row in made["questions"][1:]]))


def softmax(row: np.ndarray) -> np.ndarray:
    return np.exp(row) / np.exp(row).sum()


def record(logits: np.ndarray, label: np.ndarray) -> dict[str, Any]:
    """Return the record of a model with ``logits`` (N, CLASSES) in float64."""
    texts = ["abcdefg"[c] for c in label]
    split = Split(
        "easy-vqa",
        "fold",
        [Example(n, "1", "?", (t,), t) for n, t in enumerate(texts)],
        {"1": None},
    )

    def label_probability(temperature: float) -> torch.Tensor:
        p = np.array([softmax(row / temperature)[c] for row, c in zip(logits, label, strict=True)])
        return torch.from_numpy(np.where(label < 0, 0, p))

    best = torch.from_numpy(logits.argmax(1))
    predictions = Predictions(
        best,
        best.double(),
        label_probability(1.0),
        torch.stack([label_probability(t) for t in TEMPERATURES]),
    )
    rows, tokens = torch.zeros(N, dtype=torch.int64), torch.ones(N, 1, dtype=torch.int64)
    labels = torch.from_numpy(label)
    questions = Questions(torch.arange(N), tokens, rows + 1, rows, labels, labels[:, None])
    if torch.cuda.is_available():  # where a training has its questions, unlike its predictions
        questions = questions.to(torch.device("cuda"))
    results = {n: "abcdefg"[c] for n, c in enumerate(best.tolist())}
    data = Data(name="easy-vqa", train="train", test="test", fold="1/2")
    return held_out_record(data, split, results, predictions, questions)
