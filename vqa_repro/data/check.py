"""What to know about a data set before hours are spent on it."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from vqa_repro.data.images import DamagedPictureError, read_image
from vqa_repro.data.types import Split
from vqa_repro.data.vocabulary import MAX_QUESTION_LENGTH, is_too_long

# Questions as published (docs/data.md): other counts mean other data under the same names.
PUBLISHED = {
    ("vqa-v1", "train"): 248_349,
    ("vqa-v1", "val"): 121_512,
    ("vqa-v1", "test2015"): 244_302,
    ("vqa-v2", "train"): 443_757,
    ("vqa-v2", "val"): 214_354,
    ("vqa-v2", "test2015"): 447_793,
    ("coco-qa", "train"): 78_736,
    ("coco-qa", "test"): 38_948,
    ("daquar", "train"): 6_795,
    ("daquar", "test"): 5_673,
    ("daquar-reduced", "train"): 3_876,
    ("daquar-reduced", "test"): 297,
}


def data_notes(train: Split, test: Split) -> list[str]:
    """Return what makes results hard to compare, one phrase each; no image is opened."""
    notes = []
    for split in (train, test):
        published = PUBLISHED.get((split.data, split.name))
        if published not in (None, len(split.examples)):
            notes.append(
                f"{split.data}, {split.name}: {len(split.examples):,} questions instead of the "
                f"published {published:,}"
            )
        cut = sum(is_too_long(example.question) for example in split.examples)
        if cut:
            notes.append(
                f"{cut:,} of {len(split.examples):,} questions of {split.name} have more than "
                f"{MAX_QUESTION_LENGTH} words: their ends are not read"
            )
    if train.name != test.name:
        shared = len(_files(train) & _files(test))
        if shared:
            notes.append(f"{shared:,} images are in both {train.name} and {test.name}")
    return notes


def check_folder(train: Split, test: Split, num_answers: int = 1000) -> list[str]:
    """Return a report on two splits, one line each; every image is decoded.

    Counts; the share of test answers among the ``num_answers`` most frequent ones of ``train``;
    images in both splits, missing and damaged images.
    """
    lines = []
    for split in (train, test):
        lines.append(
            f"{split.name}: {len(split.examples):,} questions about {len(split.images):,} images"
        )
        lines += _unreadable(split)
    counts = Counter(example.answer for example in train.examples if example.answer is not None)
    classes = {answer for answer, _ in counts.most_common(num_answers)}
    labels = [example.answer for example in test.examples if example.answer is not None]
    lines.append(f"answers: {len(counts):,} different ones in {train.name}")
    if labels:
        share = 100 * sum(label in classes for label in labels) / len(labels)
        lines.append(
            f"answers: {share:.1f}% of {test.name} can be answered with the "
            f"{len(classes):,} most frequent ones of {train.name}"
        )
    return [*lines, *data_notes(train, test)]


def _files(split: Split) -> set[Path]:
    return set(split.images.values())


def _unreadable(split: Split) -> Iterable[str]:
    damaged: dict[Path, str] = {}
    for path in split.images.values():
        try:
            read_image(path, 8)
        except DamagedPictureError as error:
            damaged[path] = error.reason
    if damaged:
        first = ", ".join(f"{path} ({reason})" for path, reason in list(damaged.items())[:5])
        yield f"{split.name}: {len(damaged):,} images are missing or damaged: {first}"
