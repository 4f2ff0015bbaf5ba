"""Check a data set before hours of training are spent on it."""

from collections import Counter
from pathlib import Path
from typing import Any

from vqa_repro.data.images import DamagedImageError, read_image
from vqa_repro.data.types import Split
from vqa_repro.data.vocabulary import MAX_QUESTION_LENGTH, is_too_long
from vqa_repro.utils.plurals import plural

# Questions as published (docs/data.md); of DAQUAR also those with a single answer (SAN, section
# 4.1). Other counts mean different data under the same names.
PUBLISHED: dict[tuple[str, str], tuple[int, ...]] = {
    ("vqa-v1", "train"): (248_349,),
    ("vqa-v1", "val"): (121_512,),
    ("vqa-v1", "test2015"): (244_302,),
    ("vqa-v2", "train"): (443_757,),
    ("vqa-v2", "val"): (214_354,),
    ("vqa-v2", "test2015"): (447_793,),
    ("coco-qa", "train"): (78_736,),
    ("coco-qa", "test"): (38_948,),
    ("daquar", "train"): (6_795, 6_149),
    ("daquar", "test"): (5_673, 5_076),
    ("daquar-reduced", "train"): (3_876, 3_825),
    ("daquar-reduced", "test"): (297, 290),
}


def data_notes(*splits: Split) -> list[str]:
    """Return what makes results hard to compare, one phrase each; no image is opened.

    splits: the one to train on and, if there is one, the one to score.
    """
    train, test = splits[0], splits[-1]
    notes = []
    for split in splits:
        published = PUBLISHED.get((split.data, split.name))
        if published and len(split.examples) not in published:
            notes.append(
                f"{split.data}, {split.name}: {len(split.examples):,} questions instead of the "
                f"published {published[0]:,}"
            )
        cut = sum(is_too_long(example.question) for example in split.examples)
        if cut:
            notes.append(
                f"{cut:,} of {len(split.examples):,} questions of {split.name} "
                f"{plural(cut, 'has', 'have')} more than {MAX_QUESTION_LENGTH} words and "
                f"{plural(cut, 'is', 'are')} truncated"
            )
    if train.name != test.name:
        shared = len(_files(train) & _files(test))
        if shared:
            are = plural(shared, "image is", "images are")
            notes.append(f"{shared:,} {are} in both {train.name} and {test.name}")
    return notes


def survey(*splits: Split, num_answers: int = 1000) -> dict[str, Any]:
    """Return facts about ``splits``, given as for ``data_notes``; every image is decoded.

    "splits": for each the counts, the missing and damaged images (path and reason), "covered": the
    percentage of questions whose answer is among the ``num_answers`` most frequent ones of
    the first split, and "prior": that of the single most frequent one (None without answers).
    """
    train, test = splits[0], splits[-1]
    counts = Counter(example.answer for example in train.examples if example.answer is not None)
    top = [answer for answer, _ in counts.most_common(num_answers)]
    facts = []
    for split in splits:
        labels = [example.answer for example in split.examples if example.answer is not None]
        bad = _unreadable(split)
        facts.append(
            {
                "name": split.name,
                "questions": len(split.examples),
                "images": len(split.images),
                "missing": [str(path) for path, why in bad.items() if why == "missing"],
                "damaged": {str(path): why for path, why in bad.items() if why != "missing"},
                "covered": _percent(labels, set(top)),
                "prior": _percent(labels, set(top[:1])),
            }
        )
    return {
        "splits": facts,
        "answers": len(counts),
        "num_answers": len(top),
        "most_frequent": top[0] if top else None,
        "shared_images": len(_files(train) & _files(test)) if len(splits) > 1 else 0,
        "notes": data_notes(*splits),
    }


def report_lines(facts: dict[str, Any]) -> list[str]:
    """Return the facts of ``survey`` as lines of text."""
    lines = []
    for split in facts["splits"]:
        name = split["name"]
        asked, images = split["questions"], split["images"]
        lines.append(
            f"{name}: {asked:,} {plural(asked, 'question', 'questions')} about {images:,} "
            f"{plural(images, 'image', 'images')}"
        )
        bad = {**dict.fromkeys(split["missing"], "missing"), **split["damaged"]}
        if bad:
            first = ", ".join(f"{path} ({why})" for path, why in list(bad.items())[:5])
            are = plural(len(bad), "image is", "images are")
            lines.append(f"{name}: {len(bad):,} {are} missing or damaged: {first}")
        if split["covered"] is not None:
            lines.append(
                f"answers: {split['covered']:.1f}% of {name} can be answered with the "
                f"{facts['num_answers']:,} most frequent ones, "
                f"{split['prior']:.1f}% with {facts['most_frequent']!r} alone"
            )
    lines.append(f"answers: {facts['answers']:,} distinct ones in {facts['splits'][0]['name']}")
    return lines + list(facts["notes"])


def _percent(labels: list[str], answers: set[str]) -> float | None:
    return 100 * sum(label in answers for label in labels) / len(labels) if labels else None


def _files(split: Split) -> set[Path]:
    return set(split.images.values())


def _unreadable(split: Split) -> dict[Path, str]:
    damaged: dict[Path, str] = {}
    for path in split.images.values():
        try:
            read_image(path, 8)
        except DamagedImageError as error:
            damaged[path] = error.reason
    return damaged
