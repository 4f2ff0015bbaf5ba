"""Folds of a training split: no stretch of consecutive images is divided."""

from pathlib import Path

import pytest

from vqa_repro.data.folds import assign_folds, image_groups, split_fold
from vqa_repro.data.types import Example, Split
from vqa_repro.utils.errors import UserError

# Two stretches: a single missing number (7) does not divide the first.
NUMBERS = [4, 5, 6, 8, 11, 12, 9]


def split(numbers: list[int]) -> Split:
    images = [f"image{n}" for n in numbers]
    examples = [
        Example(10 * n + k, image, "what?", ("a",), "a")
        for n, image in zip(numbers, images, strict=True)
        for k in range(2)
    ]
    return Split("some", "train", examples, {image: Path(image) for image in images})


def test_groups() -> None:
    images = [f"image{n}" for n in NUMBERS]
    groups = image_groups(images, sequences=True)
    assert {int(i[5:]) for i in groups if groups[i] == "image4"} == {4, 5, 6, 8, 9, 11, 12}
    apart = image_groups([*images, "image15", "image16"], sequences=True)
    assert apart["image16"] == apart["image15"] == "image15"
    assert image_groups(images, sequences=False) == {image: image for image in images}


@pytest.mark.parametrize("sequences", [True, False])
def test_every_question_is_in_one_fold_and_no_group_in_two(sequences: bool) -> None:
    numbers = [n for start in range(0, 300, 10) for n in range(start, start + 1 + start % 7)]
    whole = split(numbers)
    groups = image_groups(whole.images, sequences)
    held: list[int] = []
    for k in range(1, 6):
        train, fold = split_fold(whole, f"{k}/5", sequences)
        assert not {groups[i] for i in train.images} & {groups[i] for i in fold.images}
        assert len(train.examples) + len(fold.examples) == len(whole.examples)
        assert {e.image for e in fold.examples} == set(fold.images)
        # A group alone in its fold is the same group.
        assert image_groups(fold.images, sequences).items() <= groups.items()
        held += [e.question_id for e in fold.examples]
    assert sorted(held) == sorted(e.question_id for e in whole.examples)


def test_folds_are_of_about_one_size_and_always_the_same() -> None:
    groups = image_groups([f"COCO_{n:012d}" for n in range(0, 5000, 3)], sequences=False)
    folds = assign_folds(groups, 5)
    sizes = [list(folds.values()).count(k) for k in range(1, 6)]
    assert max(sizes) - min(sizes) <= 1
    assert folds == assign_folds(dict(reversed(groups.items())), 5)


@pytest.mark.parametrize("fold", ["6/5", "1/1", "1/9"])
def test_a_fold_that_does_not_exist(fold: str) -> None:
    with pytest.raises(UserError, match=r"data\.fold"):
        split_fold(split([1, 2, 5, 6, 9]), fold, sequences=False)
