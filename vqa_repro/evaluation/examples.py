"""Test questions worth looking at, kept in the run's folder for its report.

python -m vqa_repro.evaluation.examples runs/old    # for a run without; reads the data

gallery.json    the questions: answers, probabilities, attention; and the lists they are in
gallery/*.jpg   their pictures, small, each once
"""

import argparse
import hashlib
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vqa_repro.data.images import read_image
from vqa_repro.data.questions import Questions
from vqa_repro.data.types import Example, Split
from vqa_repro.data.vocabulary import tokenize
from vqa_repro.evaluation import vqa_accuracy
from vqa_repro.evaluation.inference import Predictions, answers_by_id, outputs, predict_all
from vqa_repro.features.loader import FeatureLoader
from vqa_repro.features.provider import Runtime, open_or_extract
from vqa_repro.models.network import VQAModel, load_model
from vqa_repro.run import Run, open_run, read_bounded
from vqa_repro.training.prepare import PreparedData, load_splits, prepare
from vqa_repro.utils.device import add_device_option, choose_device
from vqa_repro.utils.errors import UserError, first_line, main_guard
from vqa_repro.utils.files import write_atomic

SAMPLE = 24  # questions drawn from all
TOP_K = 12  # best, worst, most confident errors
ERRORS = 100  # drawn from the wrong answers: as many as SAN's authors analysed (section 4.6)
LISTS = ("sample", "best", "worst", "confident", "errors")
TOP = 5  # answers kept of a question
SIDE = 320  # pixels of a kept picture's longer side
DIGITS = 4  # of probabilities and weights

# What is read back may come from strangers.
MAX_FILE = 2**24  # bytes of gallery.json
MAX_PICTURE = 2**18  # bytes
MAX_QUESTIONS = 1000
MAX_TEXT = 1000  # characters
MAX_REGIONS = 64**2
MAX_MAPS = 16
_PICTURE = re.compile(r"[0-9]{1,4}\.jpg")


@dataclass(frozen=True)
class ExampleRecord:
    """A question, what people answered and what the model did.

    Attention is as in ``predict.Prediction``.
    """

    question_id: int
    question: str
    words: list[str]  # as the model read them
    human: list[str]  # the data set's answers; none where it hides them
    label: str | None
    accuracy: float | None  # 0 to 1; None where the answers are hidden
    label_probability: float | None  # the probability of the label; None where it has no class
    answers: list[tuple[str, float]]  # the likeliest, probability falling
    attention: dict[str, list[float]]
    picture: str | None  # name of a file in gallery/


@dataclass(frozen=True)
class Gallery:
    lists: dict[str, list[int]]  # name, of LISTS -> positions in ``asked``
    asked: list[ExampleRecord]
    wrong: int | None  # how many wrong answers the errors were drawn from; None: hidden
    pictures: dict[str, bytes]  # file name -> JPEG
    fingerprint: str  # of gallery.json


def make(
    run: Run,
    network: VQAModel,
    data: PreparedData,
    answered: Predictions,
    results: Mapping[int, str],
) -> Gallery:
    """Choose, and write gallery.json and the pictures into the run's folder.

    results: question id -> answer. Raises UserError for a picture that is missing or damaged; a
    model that sees none does without.
    """
    split, questions = data.test_split, data.test
    examples = {example.question_id: example for example in split.examples}
    scores = {} if split.hidden else vqa_accuracy.per_question(results, split.examples)
    ids = questions.question_id.tolist()
    chosen = choose(
        examples,
        scores,
        confidence=dict(zip(ids, answered.confidence.tolist(), strict=True)),
        label_probability=dict(zip(ids, answered.label_probability.tolist(), strict=True)),
    )
    wanted = {question_id for listed in chosen.values() for question_id in listed}
    positions = [position for position, i in enumerate(ids) if i in wanted]
    names, pictures = _small_pictures(
        split,
        dict.fromkeys(examples[ids[position]].image for position in positions),
        needed=run.recipe.data.features != "none",
    )
    asked = []
    label_probability = answered.label_probability.tolist()
    for position, (answers, attention) in zip(
        positions, _closer(network, data.loader, questions, positions), strict=True
    ):
        example = examples[ids[position]]
        length = int(questions.lengths[position])
        asked.append(
            ExampleRecord(
                question_id=example.question_id,
                question=example.question,
                words=tokenize(example.question)[:length] or [example.question.strip()],
                human=list(example.answers),
                label=example.answer,
                accuracy=scores.get(example.question_id),
                label_probability=round(label_probability[position], DIGITS)
                if int(questions.label[position]) >= 0
                else None,
                answers=[(run.vocabulary.answers[c], p) for c, p in answers],
                attention={
                    name: weights[:length] if name.endswith("/question") else weights
                    for name, weights in attention.items()
                },
                picture=names.get(example.image),
            )
        )
    where = {a.question_id: position for position, a in enumerate(asked)}
    lists = {name: [where[i] for i in listed] for name, listed in chosen.items()}
    wrong = sum(score == 0 for score in scores.values()) if scores else None
    return _write(run.folder, Gallery(lists, asked, wrong, pictures, ""))


def choose(
    examples: Mapping[int, Example],
    scores: Mapping[int, float],
    *,
    confidence: Mapping[int, float],
    label_probability: Mapping[int, float],
) -> dict[str, list[int]]:
    """Question ids by list; all arguments are by question id. Without ``scores``, a sample alone.

    Right is a full score, wrong a score of zero. Lists but for the errors have a picture once. One
    random order of the test's questions serves all runs, so that they share most of what is drawn.
    """
    order = [int(i) for i in np.random.default_rng(0).permutation(sorted(examples))]

    def first(ids: Iterable[int], count: int) -> list[int]:
        group_by_image: dict[str, int] = {}
        for question_id in ids:
            group_by_image.setdefault(examples[question_id].image, question_id)
            if len(group_by_image) == count:
                break
        return list(group_by_image.values())

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


def _closer(
    network: VQAModel, rows: FeatureLoader, questions: Questions, positions: Sequence[int]
) -> list[tuple[list[tuple[int, float]], dict[str, list[float]]]]:
    """The likeliest (class, probability) and the attention maps of a few questions."""
    few = Questions(*(getattr(questions, f)[positions] for f in questions.__dataclass_fields__))
    found = []

    for _, (logits, attention) in outputs(network, rows, few):
        values, classes = logits.float().softmax(1).topk(min(TOP, logits.shape[1]))
        for n in range(len(logits)):
            probabilities = [round(p, DIGITS) for p in values[n].tolist()]
            maps = {
                name: [round(w, DIGITS) for w in weights[n].float().tolist()]
                for name, weights in attention.items()
            }
            found.append((list(zip(classes[n].tolist(), probabilities, strict=True)), maps))
    return found


def _small_pictures(
    split: Split, keys: Iterable[str], *, needed: bool
) -> tuple[dict[str, str], dict[str, bytes]]:
    """Picture key -> file name, and file name -> JPEG."""
    names: dict[str, str] = {}
    pictures: dict[str, bytes] = {}
    for key in keys:
        path = split.images[key]
        if not needed and not path.exists():
            continue
        names[key] = f"{len(names) + 1}.jpg"
        pictures[names[key]] = _small(path)
    return names, pictures


def _small(path: Path) -> bytes:
    """The picture as JPEG in its own proportions, the longer side SIDE pixels."""
    square = Image.fromarray(read_image(path, SIDE))
    width, height = _shape(path)
    scale = SIDE / max(width, height)
    small = square.resize((max(1, round(scale * width)), max(1, round(scale * height))))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=75, optimize=True)
    return buffer.getvalue()


def _shape(path: Path) -> tuple[int, int]:
    """Width and height of the picture, upright."""
    with Image.open(path) as image:
        width, height = image.size
        try:
            turned = image.getexif().get(0x0112, 1) >= 5
        except Exception:  # broken EXIF data, as in pictures.py
            turned = False
    return (height, width) if turned else (width, height)


def _write(folder: Path, gallery: Gallery) -> Gallery:
    (folder / "gallery").mkdir(exist_ok=True)
    for name in gallery.pictures:
        _write_bytes(folder / "gallery" / name, gallery.pictures[name])
    content = {
        "lists": gallery.lists,
        "wrong": gallery.wrong,
        "asked": [_to_json(record) for record in gallery.asked],
    }
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    _write_bytes(folder / "gallery.json", text)
    return replace(gallery, fingerprint=_fingerprint(text))


def _to_json(record: ExampleRecord) -> dict[str, Any]:
    values = asdict(record)
    values["of_label"] = values.pop("label_probability")  # its name in the file
    return values


def _write_bytes(path: Path, data: bytes) -> None:
    write_atomic(path, lambda file: file.write(data))


def _fingerprint(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def read(folder: Path) -> Gallery | None:
    """The gallery of a run's folder; None where there is none.

    Raises UserError, naming the file, for one that is damaged, too large, or names a file
    elsewhere.
    """
    path = folder / "gallery.json"
    if not path.exists():
        return None
    data = read_bounded(path, MAX_FILE)
    try:
        content = json.loads(data)
        lists, wrong, records = content["lists"], content["wrong"], content["asked"]
        _check(isinstance(lists, dict) and set(lists) <= set(LISTS), "has other lists")
        _check(wrong is None or _is_count(wrong), "wrong: no count")
        _check(isinstance(records, list) and len(records) <= MAX_QUESTIONS, "too many questions")
        for name in lists:
            good = isinstance(lists[name], list) and len(lists[name]) <= MAX_QUESTIONS
            _check(good, f"{name}: no list")
            within = all(_is_count(n) and n < len(records) for n in lists[name])
            _check(within, f"{name}: no such question")
        asked = [_asked(record, f"question {n}") for n, record in enumerate(records, start=1)]
        names = {a.picture for a in asked if a.picture is not None}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        # ValueError: by _check and json; the others: something of a shape unlike a gallery's
        raise UserError(
            f"{path}: damaged: {first_line(error)}; "
            "`python -m vqa_repro.evaluation.examples` makes it anew"
        ) from None
    pictures = {name: _read_picture(folder / "gallery" / name) for name in sorted(names)}
    return Gallery(lists, asked, wrong, pictures, _fingerprint(data))


def _read_picture(path: Path) -> bytes:
    data = read_bounded(path, MAX_PICTURE)
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            size = image.size
            image.verify()
    except Exception as error:  # Pillow's decoders raise many kinds
        raise UserError(f"{path}: no JPEG picture: {first_line(error)}") from None
    if max(size) > 4 * SIDE:
        raise UserError(f"{path}: {size[0]}x{size[1]} pixels: not made by this program")
    return data


def _asked(record: Any, where: str) -> ExampleRecord:
    """A checked Asked from plain values. Raises ValueError, KeyError or TypeError."""
    values = {**record, "answers": [(text, p) for text, p in record["answers"]]}
    asked = ExampleRecord(label_probability=values.pop("of_label"), **values)
    for text in (asked.question, asked.label, asked.picture, *(text for text, _ in asked.answers)):
        _check(text is None or _is_text(text), f"{where}: no text")
    for texts in (asked.words, asked.human):
        good = isinstance(texts, list) and len(texts) <= MAX_TEXT and all(map(_is_text, texts))
        _check(good, f"{where}: no list of texts")
    _check(type(asked.question_id) is int, f"{where}: question_id: no whole number")
    _check(len(asked.answers) <= TOP, f"{where}: too many answers")
    for share in (asked.accuracy, asked.label_probability, *(p for _, p in asked.answers)):
        _check(share is None or _is_share(share), f"{where}: no share of 0 to 1")
    good = isinstance(asked.attention, dict) and len(asked.attention) <= MAX_MAPS
    _check(good, f"{where}: attention: not maps by name")
    for name, weights in asked.attention.items():
        good = isinstance(weights, list) and 0 < len(weights) <= MAX_REGIONS and len(name) <= 100
        _check(good and all(map(_is_share, weights)), f"{where}: attention: no weights")
        if name.endswith("/question"):
            _check(len(weights) == len(asked.words), f"{where}: {name!r}: not a weight a word")
        else:
            side = round(len(weights) ** 0.5)
            _check(len(weights) == side * side, f"{where}: {name!r}: no square grid")
    if asked.picture is not None:
        _check(bool(_PICTURE.fullmatch(asked.picture)), f"{where}: no picture {asked.picture!r}")
    return asked


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def _check(good: bool, what: str) -> None:
    if not good:
        raise ValueError(what)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m vqa_repro.evaluation.examples", description=__doc__.splitlines()[0]
    )
    parser.add_argument("run", type=Path, help="a finished run's folder")
    parser.add_argument("--root", type=Path, default=Path("resources"), help="where data sets lie")
    add_device_option(parser)
    args = parser.parse_args(arguments)
    run, device = open_run(args.run), choose_device(args.device)
    if not run.finished:
        raise UserError(f"{run.folder}: not finished; train it with --resume")
    runtime = Runtime(device, root=args.root)
    splits = load_splits(run.recipe, args.root)
    store = open_or_extract(run.recipe.data, splits, runtime)
    data = prepare(run, splits, store, runtime)
    network = load_model(run, device)
    answered = predict_all(network, data.loader, data.test)
    results = answers_by_id(answered, data.test, run.vocabulary.answers)
    made = make(run, network, data, answered, results)
    print(f"{len(made.asked)} questions: {run.folder / 'gallery.json'}")
    return 0


if __name__ == "__main__":
    main_guard(main)
