"""Qualitative examples of a run: test questions chosen for its report.

gallery.json    the questions: answers, probabilities, attention; and the lists they are in
gallery/*.jpg   their images, small, each once
"""

import hashlib
import io
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta
from PIL import Image

from vqa_repro.data.images import open_image, orientation, read_image
from vqa_repro.data.questions import Questions
from vqa_repro.data.types import Example, Split
from vqa_repro.data.vocabulary import tokenize
from vqa_repro.evaluation import vqa_accuracy
from vqa_repro.evaluation.inference import Predictions, outputs
from vqa_repro.features.loader import FeatureLoader
from vqa_repro.models.network import VQAModel
from vqa_repro.run import Run
from vqa_repro.utils.errors import UserError, first_line
from vqa_repro.utils.files import read_bounded, write_atomic

SAMPLE = 24  # questions sampled from all
TOP_K = 12  # best, worst, most confident errors
ERRORS = 100  # sampled from the wrong answers: as many as SAN's authors analysed (section 4.6)
LISTS = ("sample", "best", "worst", "confident", "errors")
TOP = 5  # answers stored per question
SIDE = 320  # pixels of the longer side of a stored image
DIGITS = 4  # of probabilities and weights

# Limits of what is read back: run folders may be untrusted.
MAX_FILE = 2**24  # bytes of gallery.json
MAX_IMAGE = 2**18  # bytes
MAX_QUESTIONS = 1000
MAX_TEXT = 1000  # characters
MAX_REGIONS = 128**2  # of the largest picture_size
MAX_MAPS = 100  # of SAN with MAX_LAYERS
Text = Annotated[str, Meta(max_length=MAX_TEXT)]
Texts = Annotated[list[Text], Meta(max_length=MAX_TEXT)]
Share = Annotated[float, Meta(ge=0, le=1)]
Weights = Annotated[list[Share], Meta(min_length=1, max_length=MAX_REGIONS)]
MapName = Annotated[str, Meta(max_length=100)]
Positions = Annotated[list[Annotated[int, Meta(ge=0)]], Meta(max_length=MAX_QUESTIONS)]


class ExampleRecord(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    rename={"label_probability": "of_label"},
):
    """A question, the annotators' answers and the model's, as in gallery.json.

    Attention is as in ``Prediction``.
    """

    question_id: int
    question: Text
    words: Texts  # as the model read them
    human: Texts  # the human answers; none if they are hidden
    label: Text | None
    accuracy: Share | None  # None if the answers are hidden
    label_probability: Share | None  # None if the label is not in the answer vocabulary
    # Most probable first.
    answers: Annotated[list[tuple[Text, Share]], Meta(min_length=1, max_length=TOP)]
    attention: Annotated[dict[MapName, Weights], Meta(max_length=MAX_MAPS)]
    # Name of a file in gallery/; None: no image.
    picture: Annotated[str, Meta(pattern=r"^[0-9]{1,4}\.jpg\Z")] | None


@dataclass(frozen=True)
class Gallery:
    """The examples of a run."""

    lists: dict[str, list[int]]  # name, of LISTS -> positions in ``records``
    records: list[ExampleRecord]
    wrong: int | None  # number of wrong answers, of which ERRORS were sampled; None if hidden
    images: dict[str, bytes]  # file name -> JPEG
    fingerprint: str  # of gallery.json


def make(
    run: Run,
    network: VQAModel,
    loader: FeatureLoader,
    questions: Questions,
    split: Split,
    predictions: Predictions,
    results: Mapping[int, str],
) -> Gallery:
    """Choose examples and write gallery.json and their images into the run's folder.

    questions: the encoded ``split``. results: question id -> answer. Raise UserError for an image
    that is missing or damaged, unless the model uses no images.
    """
    examples = {example.question_id: example for example in split.examples}
    scores = {} if split.hidden else vqa_accuracy.per_question(results, split.examples)
    ids = questions.question_id.tolist()
    label_probability = dict(zip(ids, predictions.label_probability.tolist(), strict=True))
    chosen = choose(
        examples,
        scores,
        confidence=dict(zip(ids, predictions.confidence.tolist(), strict=True)),
        label_probability=label_probability,
    )
    chosen_ids = {question_id for listed in chosen.values() for question_id in listed}
    positions = [position for position, i in enumerate(ids) if i in chosen_ids]
    names, images = _small_images(
        split,
        dict.fromkeys(examples[ids[position]].image for position in positions),
        required=run.recipe.data.features != "none",
    )
    records = []
    for position, (answers, attention) in zip(
        positions, _top_answers_and_attention(network, loader, questions, positions), strict=True
    ):
        example = examples[ids[position]]
        length = int(questions.lengths[position])
        in_vocabulary = int(questions.label[position]) >= 0
        probability = round(label_probability[example.question_id], DIGITS)
        records.append(
            ExampleRecord(
                question_id=example.question_id,
                question=example.question,
                words=tokenize(example.question)[:length] or [example.question.strip()],
                human=list(example.answers),
                label=example.answer,
                accuracy=scores.get(example.question_id),
                label_probability=probability if in_vocabulary else None,
                answers=[(run.vocabulary.answers[c], p) for c, p in answers],
                attention=_without_padding(attention, length),
                picture=names.get(example.image),
            )
        )
    position_of = {record.question_id: position for position, record in enumerate(records)}
    lists = {name: [position_of[i] for i in listed] for name, listed in chosen.items()}
    wrong = sum(score == 0 for score in scores.values()) if scores else None
    return _write(run.folder, Gallery(lists, records, wrong, images, ""))


def _without_padding(attention: Mapping[str, list[float]], length: int) -> dict[str, list[float]]:
    return {
        name: weights[:length] if name.endswith("/question") else weights
        for name, weights in attention.items()
    }


def choose(
    examples: Mapping[int, Example],
    scores: Mapping[int, float],
    *,
    confidence: Mapping[int, float],
    label_probability: Mapping[int, float],
) -> dict[str, list[int]]:
    """Return list -> question ids; all arguments are by question id.

    Right means a full score, wrong a score of zero; without ``scores`` there is only a sample. All
    lists but the errors contain an image only once. The random order of the test questions is the
    same for all runs, so that their samples overlap.
    """
    order = [int(i) for i in np.random.default_rng(0).permutation(sorted(examples))]

    def first(ids: Iterable[int], count: int) -> list[int]:
        first_of_image: dict[str, int] = {}
        for question_id in ids:
            first_of_image.setdefault(examples[question_id].image, question_id)
            if len(first_of_image) == count:
                break
        return list(first_of_image.values())

    lists = {"sample": first(order, SAMPLE)}
    if scores:
        right = [i for i in order if scores[i] == 1]
        wrong = [i for i in order if scores[i] == 0]
        lists |= {
            "best": first(sorted(right, key=lambda i: -confidence[i]), TOP_K),
            "worst": first(sorted(wrong, key=lambda i: label_probability[i]), TOP_K),
            "confident": first(sorted(wrong, key=lambda i: -confidence[i]), TOP_K),
            "errors": wrong[:ERRORS],
        }
    return lists


def _top_answers_and_attention(
    network: VQAModel, loader: FeatureLoader, questions: Questions, positions: Sequence[int]
) -> list[tuple[list[tuple[int, float]], dict[str, list[float]]]]:
    """Return the most probable (class, probability) and the attention maps of a few questions."""
    selected = Questions(
        *(getattr(questions, f)[positions] for f in questions.__dataclass_fields__)
    )
    top = []
    for _, (logits, attention) in outputs(network, loader, selected):
        values, classes = logits.float().softmax(1).topk(min(TOP, logits.shape[1]))
        for n in range(len(logits)):
            probabilities = [round(p, DIGITS) for p in values[n].tolist()]
            maps = {
                name: [round(w, DIGITS) for w in weights[n].float().tolist()]
                for name, weights in attention.items()
            }
            top.append((list(zip(classes[n].tolist(), probabilities, strict=True)), maps))
    return top


def _small_images(
    split: Split, keys: Iterable[str], *, required: bool
) -> tuple[dict[str, str], dict[str, bytes]]:
    """Return image key -> file name, and file name -> JPEG."""
    names: dict[str, str] = {}
    images: dict[str, bytes] = {}
    for key in keys:
        path = split.images[key]
        if not required and not path.exists():
            continue
        names[key] = f"{len(names) + 1}.jpg"
        images[names[key]] = _small(path)
    return names, images


def _small(path: Path) -> bytes:
    """Return the image as JPEG in its original aspect ratio, SIDE pixels on the longer side."""
    square = Image.fromarray(read_image(path, SIDE))
    width, height = _size(path)
    scale = SIDE / max(width, height)
    small = square.resize((max(1, round(scale * width)), max(1, round(scale * height))))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=75, optimize=True)
    return buffer.getvalue()


def _size(path: Path) -> tuple[int, int]:
    """Return width and height of the image, with its EXIF orientation applied."""
    with open_image(path) as image:
        width, height = image.size
        rotated = orientation(image) >= 5
    return (height, width) if rotated else (width, height)


def _write(folder: Path, gallery: Gallery) -> Gallery:
    """Write ``gallery``. Raise UserError, writing nothing, for one that ``read`` would refuse."""
    content = {
        "lists": gallery.lists,
        "wrong": gallery.wrong,
        "asked": msgspec.to_builtins(gallery.records),
    }
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    try:
        _check(msgspec.convert(content, _Content))
        if len(text) > MAX_FILE:
            raise ValueError(f"more than {MAX_FILE:,} bytes")
    except ValueError as error:  # msgspec's are ValueErrors
        raise UserError(f"{folder / 'gallery.json'}: not written: {first_line(error)}") from None
    (folder / "gallery").mkdir(exist_ok=True)
    for name in gallery.images:
        _write_bytes(folder / "gallery" / name, gallery.images[name])
    _write_bytes(folder / "gallery.json", text)
    return replace(gallery, fingerprint=_fingerprint(text))


def _write_bytes(path: Path, data: bytes) -> None:
    write_atomic(path, lambda file: file.write(data))


def _fingerprint(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


class _Content(msgspec.Struct, frozen=True, rename={"records": "asked"}):
    """The content of gallery.json."""

    lists: dict[str, Positions]
    wrong: Annotated[int, Meta(ge=0)] | None
    records: Annotated[list[ExampleRecord], Meta(max_length=MAX_QUESTIONS)]


def read(folder: Path) -> Gallery | None:
    """Return the examples in a run's folder; None if there are none.

    Raise UserError, naming the file, if it is damaged, too large or names a file elsewhere.
    """
    path = folder / "gallery.json"
    if not path.exists():
        return None
    data = read_bounded(path, MAX_FILE)
    try:
        content = msgspec.convert(json.loads(data), _Content)
        _check(content)
    except (ValueError, RecursionError) as error:  # msgspec's and json's errors are ValueErrors
        raise UserError(
            f"{path}: damaged: {first_line(error)}; rewrite it with "
            f"python -m vqa_repro.report --examples {shlex.quote(str(folder))}"
        ) from None
    names = sorted({record.picture for record in content.records if record.picture is not None})
    images = {name: _read_image(folder / "gallery" / name) for name in names}
    return Gallery(content.lists, content.records, content.wrong, images, _fingerprint(data))


def _check(content: _Content) -> None:
    """Raise ValueError for what the types cannot express."""
    if not set(content.lists) <= set(LISTS):
        raise ValueError("unknown lists")
    for name, positions in content.lists.items():
        if any(position >= len(content.records) for position in positions):
            raise ValueError(f"{name}: no such question")
    for record in content.records:
        for name, weights in record.attention.items():
            side = round(len(weights) ** 0.5)
            over_words = name.endswith("/question")
            if len(weights) != (len(record.words) if over_words else side * side):
                raise ValueError(
                    f"question {record.question_id}: {name!r}: wrong number of weights"
                )


def _read_image(path: Path) -> bytes:
    data = read_bounded(path, MAX_IMAGE)
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            size = image.size
            image.verify()
    except Exception as error:  # Pillow's decoders raise many kinds
        raise UserError(f"{path}: not a JPEG image: {first_line(error)}") from None
    if max(size) > 4 * SIDE:
        raise UserError(f"{path}: {size[0]}x{size[1]} pixels: not made by this program")
    return data
