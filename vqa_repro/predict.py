"""Answer questions about an image with a trained run.

python -m vqa_repro.predict runs/easy-vqa --image cat.jpg --question "what is it?"
python -m vqa_repro.predict RUN --image I --question Q --attention attention.png --json
python -m vqa_repro.predict RUN --questions questions.jsonl > answers.jsonl

Each line of questions.jsonl is {"image": "cat.jpg", "question": "what is it?"}; "image" may be left
out if --image is given, and other fields are copied to the answers ("answers" and others that the
output has, too, into "given").
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqa_repro.utils.arguments import (
    add_device_option,
    add_weights_option,
    parse_arguments,
    path_argument,
)
from vqa_repro.utils.errors import UserError, main_guard

if TYPE_CHECKING:
    from vqa_repro.data.images import ImageSource
    from vqa_repro.evaluation.inference import Prediction, Predictor

SHOWN_SIZE = 320  # pixels a side of the image under the attention
MAX_LINE = 100_000  # characters


def draw(prediction: Prediction, image: ImageSource, path: Path) -> None:
    """Write the image with the prediction's attention over it as PNG."""
    from vqa_repro.data.images import read_image
    from vqa_repro.reporting import figures

    figures.attention(
        read_image(image, SHOWN_SIZE),
        prediction.question,
        prediction.answers,
        prediction.attention,
        path,
        words=prediction.words,
    )


def read_questions(file: Path, image: Path | None) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the image of each line of a JSON Lines file, and its object, which has a "question".

    ``image`` is for lines that name none; relative paths start at the file's folder. Raise
    UserError for a line that is not such an object.
    """
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(iter(lambda: lines.readline(MAX_LINE), ""), 1):
                if line.strip():
                    yield _record(line, f"{file}, line {number}", file.parent, image)
    except OSError as error:
        raise UserError(f"--questions {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"--questions {file}: not UTF-8 text; save it as UTF-8") from None


def _record(line: str, where: str, folder: Path, image: Path | None) -> tuple[Path, dict[str, Any]]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("question"), str):
        raise UserError(f'{where}: not a JSON object with a "question"')
    if not record["question"].strip():
        raise UserError(f"{where}: the question is empty; write one, or remove the line")
    if isinstance(record.get("image"), str):
        return folder / record["image"], record
    if "image" in record or image is None:
        raise UserError(f'{where}: no "image" with a path; add it, or give --image')
    return image, record


def answer_file(predictor: Predictor, file: Path, image: Path | None) -> None:
    """Print a JSON line with the prediction for each question of ``file``.

    The question's other fields are copied to it; those that have the name of a field of the
    prediction ("answers", such as the true ones) are kept in an object "given".
    """
    encoded, features = None, None
    for path, record in list(read_questions(file, image)):  # all are checked before the first
        if path != encoded:  # questions about the same image in a row share its features
            encoded, features = path, predictor.extract(path)
        assert features is not None
        predicted = to_json(predictor.answer(features, record["question"]))
        given = {key: record[key] for key in record if key in predicted and key != "question"}
        print(json.dumps({**record, **predicted, **({"given": given} if given else {})}))


def to_json(prediction: Prediction) -> dict[str, Any]:
    """Return the prediction with the shape of each attention map: [rows, columns] or [words]."""
    shapes = {
        name: [len(weights)] if name.endswith("/question") else [round(len(weights) ** 0.5)] * 2
        for name, weights in prediction.attention.items()
    }
    return {**prediction.to_json(), "attention_shape": shapes}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", type=path_argument, nargs="?", metavar="RUN", help="a run")
    parser.add_argument("--run", type=path_argument, help=argparse.SUPPRESS)
    parser.add_argument("--image", type=path_argument, help="an image file")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--question",
        action="append",
        help="a question about the image, in English; may be repeated",
    )
    what.add_argument(
        "--questions", type=path_argument, metavar="FILE.jsonl", help="many questions, one per line"
    )
    parser.add_argument(
        "--attention", type=path_argument, metavar="OUT.png", help="draw the attention maps"
    )
    add_weights_option(parser)
    add_device_option(parser)
    parser.add_argument("--json", action="store_true", help="print the whole prediction as JSON")


def main(arguments: list[str] | None = None) -> int:
    parser, args = parse_arguments("predict", __doc__, add_arguments, arguments)
    folder = args.run_folder or args.run
    if folder is None:
        parser.error("name a run folder")
    if args.attention and (args.questions or len(args.question) > 1):
        parser.error("--attention draws the maps of one --question")
    if args.question is not None:
        "".join(args.question).encode()  # main_guard reports what the locale could not decode
        if args.image is None:
            parser.error("--question needs --image")

    import vqa_repro
    from vqa_repro.evaluation.titles import model_title
    from vqa_repro.release import as_given

    predictor = vqa_repro.load(folder, device=args.device, weights=args.weights)
    if note := predictor.run.note():
        print(note, file=sys.stderr)
    if args.questions:
        answer_file(predictor, args.questions, args.image)
        return 0
    features = predictor.extract(args.image)
    predictions = [predictor.answer(features, question) for question in args.question]
    if args.attention:
        draw(predictions[0], args.image, args.attention)
    print_notes(predictions)
    if args.json:
        for prediction in predictions:
            print(json.dumps(to_json(prediction)))
        return 0
    print(f"{model_title(predictor.run.recipe)} ({as_given(folder)})")
    for prediction in predictions:
        print(prediction.question)
        for text, probability in prediction.answers:
            print(f"{probability:7.2%}  {text}")
    if args.attention:
        print(f"attention: {args.attention}")
    return 0


def print_notes(predictions: Sequence[Prediction]) -> None:
    """Print what makes the answers to questions about one image doubtful."""
    if unknown := {word: None for p in predictions for word in p.unknown_words}:
        print(f"note: out-of-vocabulary words: {', '.join(unknown)}", file=sys.stderr)
    distance = predictions[0].image_distance
    if distance and distance > 1:
        print(
            f"note: the image is unlike the training images ({distance:.1f} times "
            "as far from their mean as 99% of them): the probabilities say little about it",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main_guard(main)
