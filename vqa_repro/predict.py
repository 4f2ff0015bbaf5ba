"""Ask a trained run one question about one picture.

python -m vqa_repro.predict --run runs/easy-vqa --image cat.jpg --question "what is it?"
python -m vqa_repro.predict --run R --image I --question Q --attention look.png --json
"""

import argparse
import json
import sys
from pathlib import Path

from vqa_repro.data.images import Picture, read_image
from vqa_repro.evaluation.inference import Prediction, Predictor
from vqa_repro.reporting import figures
from vqa_repro.run import open_run
from vqa_repro.utils.device import add_device_option, choose_device
from vqa_repro.utils.errors import main_guard

SHOWN_SIZE = 320  # pixels a side of the picture under the attention


def draw(prediction: Prediction, picture: Picture, path: Path, note: str = "") -> None:
    """Write the picture with the prediction's attention over it as PNG."""
    shown = read_image(picture, SHOWN_SIZE)
    figures.attention(
        shown,
        prediction.question,
        prediction.answers,
        prediction.attention,
        path,
        note,
        prediction.words,
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m vqa_repro.predict", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--run", type=Path, required=True, help="a run folder")
    parser.add_argument("--image", type=Path, required=True, help="a picture file")
    parser.add_argument("--question", required=True)
    parser.add_argument("--attention", type=Path, metavar="OUT.png", help="draw where it looked")
    parser.add_argument("--weights", type=Path, help="the backbone's checkpoint, if not seeded")
    add_device_option(parser)
    parser.add_argument("--json", action="store_true", help="everything, for programs")
    args = parser.parse_args(arguments)
    predictor = Predictor(open_run(args.run), choose_device(args.device), args.weights)
    prediction = predictor.predict(args.image, args.question)
    if args.attention:
        draw(prediction, args.image, args.attention)
    if prediction.unknown_words:
        words = ", ".join(prediction.unknown_words)
        print(f"note: no training question held these words: {words}", file=sys.stderr)
    if args.json:
        print(json.dumps(prediction.to_json()))
        return 0
    for text, probability in prediction.answers:
        print(f"{probability:7.2%}  {text}")
    if args.attention:
        print(f"attention: {args.attention}")
    return 0


if __name__ == "__main__":
    main_guard(main)
