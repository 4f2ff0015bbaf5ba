"""Batches: every question once, grouped by image, the same for the same seed."""

from collections import Counter

import pytest
import torch

from vqa_repro.data.batching import plan_batches
from vqa_repro.data.questions import Questions, encode
from vqa_repro.data.types import Example
from vqa_repro.data.vocabulary import build_vocabulary


def example(number: int, image: str, question: str = "what is it?", answer: str = "a") -> Example:
    return Example(number, image, question, (answer,), answer)


def many(pictures: int = 40) -> Questions:
    """Image i has i % 7 + 1 questions; the last answer is out-of-vocabulary."""
    examples = [
        example(100 * i + k, f"p{i}", answer="rare" if k == 6 else "a")
        for i in range(pictures)
        for k in range(i % 7 + 1)
    ]
    vocabulary = build_vocabulary(examples, num_answers=1)
    return encode(examples, vocabulary, {f"p{i}": pictures - i for i in range(pictures)})


@pytest.mark.parametrize("order", ["grouped", "iid", "stored"])
@pytest.mark.parametrize("size", [1, 10, 1000])
def test_every_question_once_with_its_image(order: str, size: int) -> None:
    questions = many()
    seen: Counter[int] = Counter()
    for batch in plan_batches(questions, size, order, seed=3):
        seen.update(batch.positions.tolist())
        assert torch.equal(batch.rows[batch.image_index], questions.row[batch.positions])
        assert len(batch.rows) == len(set(batch.rows.tolist()))
    assert seen == Counter(range(len(questions)))


def test_grouped_batches_keep_images_together_and_are_about_the_requested_size() -> None:
    questions = many()
    sizes, where = [], {}
    for number, batch in enumerate(plan_batches(questions, 20, "grouped", seed=1)):
        sizes.append(len(batch.positions))
        for row in batch.rows.tolist():
            assert where.setdefault(row, number) == number, "a picture in two batches"
    assert max(sizes) <= 20 + 7 and sum(sizes) == len(questions)


@pytest.mark.parametrize("order", ["grouped", "iid"])
def test_equal_seeds_give_equal_batches(order: str) -> None:
    questions = many()
    first, again, other = (
        torch.cat([b.positions for b in plan_batches(questions, 16, order, seed)])
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
