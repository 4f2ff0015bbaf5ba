"""What the program does in a second, beside what the machine could do. One command prints it all:

    python benchmarks/run.py                   # on a GPU at the full size of VQA v2 train + val
    python benchmarks/run.py --share 0.005     # a share of its pictures; the default on a CPU
    python benchmarks/run.py --only step --json

Features are made up, never zeros: as many numbers differ from zero as in VGG-19's pool5 (8%).
Times are medians of several repetitions after a warm-up; figures that belong together come from
one run, in turn, because machines change their speed. Nothing here learns anything.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.plain import PlainHieCoAtt, PlainSAN
from vqa_repro.answering import ask
from vqa_repro.device import add_device_option, choose_device, describe
from vqa_repro.hiecoatt import HieCoAtt
from vqa_repro.model import Network
from vqa_repro.optim import before_step, make_optimizer
from vqa_repro.questions import Batch, Questions, batches
from vqa_repro.recipe import Training
from vqa_repro.san import SAN

# VQA v2, train + val.
PICTURES, QUESTIONS = 123_287, 658_111
REGIONS, CHANNELS = 196, 512
WORDS, ANSWERS = 14_770, 1_000
NON_ZERO = 0.08
VGG19_MACS = 4 * 19.51e9  # of the convolutions at 448 x 448: four times those at 224 x 224
SAN_OPTIONS: dict[str, Any] = {
    "layers": 2,
    "embedding": 500,
    "hidden": 1024,
    "attention": 512,
    "dropout": 0.5,
}
HIECOATT_OPTIONS: dict[str, Any] = {"hidden": 512, "last_hidden": 1024, "dropout": 0.5}


@dataclasses.dataclass(frozen=True)
class Figure:
    name: str
    value: float
    unit: str
    note: str = ""

    def __str__(self) -> str:
        return f"  {self.name:<44} {self.value:>12,.4g} {self.unit:<14} {self.note}".rstrip()


def made_up(share: float, device: torch.device) -> tuple[Tensor, Questions]:
    """Features (pictures, 196, 512) float16, of mean square 1, and questions about them."""
    pictures = max(40, round(PICTURES * share))
    generator = torch.Generator(device).manual_seed(0)
    rows = torch.empty(pictures, REGIONS, CHANNELS, dtype=torch.float16, device=device)
    for part in rows.split(1024):
        value = torch.rand(part.shape, generator=generator, device=device)
        part.copy_(torch.relu(value - (1 - NON_ZERO)) / NON_ZERO * (3 / NON_ZERO) ** 0.5)
    rng = np.random.default_rng(0)
    count = round(QUESTIONS * pictures / PICTURES)
    lengths = np.clip(np.rint(rng.gamma(9.0, 0.8, count)), 3, 23).astype(np.int64)  # mean 7.2
    tokens = rng.integers(2, WORDS, (count, int(np.max(lengths))))
    tokens[np.arange(tokens.shape[1]) >= lengths[:, None]] = 0
    arrays = {
        "question_id": np.arange(count),
        "tokens": tokens,
        "lengths": lengths,
        "row": np.sort(rng.integers(0, pictures, count)),
        "label": rng.integers(0, ANSWERS, count),
        "answers": rng.integers(0, ANSWERS, (count, 10)),
    }
    questions = Questions(**{name: torch.from_numpy(array) for name, array in arrays.items()})
    return rows, questions.to(device)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device, repetitions: int) -> float:
    """Median seconds of ``work``, once warmed up."""
    work()
    times = []
    for _ in range(repetitions):
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def peak(device: torch.device, dtype: torch.dtype) -> float:
    """Multiply-adds a second of one large matrix product: what is called the limit below."""
    n = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return float(n**3 / seconds(lambda: a @ b, device, 5))


def san_macs(layers: int, embedding: int, hidden: int, attention: int, words: float) -> tuple:
    """Multiply-adds of SAN's forward pass, (per picture, per question)."""
    picture = REGIONS * hidden * (CHANNELS + layers * attention)
    hop = hidden * attention + REGIONS * (attention + hidden)
    lstm = words * 4 * hidden * (embedding + hidden)
    return picture, lstm + layers * hop + hidden * ANSWERS


def hiecoatt_macs(hidden: int, last_hidden: int, words: float) -> tuple:
    """Multiply-adds of parallel HieCoAtt's forward pass, (per picture, per question)."""
    d = hidden
    picture = REGIONS * d * (CHANNELS + 3 * d)
    level = words * d * (2 * d + 3 * REGIONS) + REGIONS * 2 * d + words * 2 * d
    phrases, lstm = words * d * d * 6, words * 8 * d * d
    head = d * d + 2 * d * d + 2 * d * last_hidden + last_hidden * ANSWERS
    return picture, phrases + lstm + 3 * level + head


class Step:
    """Training steps of one model, over and over the same made-up questions."""

    def __init__(
        self, network: nn.Module, training: Training, rows: Tensor, questions: Questions
    ) -> None:
        self.network, self.training = network.to(rows.device).train(), training
        self.rows, self.questions = rows, questions
        self.optimizer = make_optimizer(training, network)
        self.done = 0  # questions
        self._batches = self._forever()

    def _forever(self) -> Iterator[Batch]:
        epoch = 0
        while True:
            yield from batches(self.questions, self.training.batch_size, self.training.order, epoch)
            epoch += 1

    def logits(self, batch: Batch) -> Tensor:
        if isinstance(self.network, Network):
            return ask(self.network, self.rows, self.questions, batch).logits
        which = batch.questions
        features = self.rows[batch.rows][batch.image_of].float()  # every question its own copy
        answer: Tensor = self.network(
            features, self.questions.tokens[which], self.questions.lengths[which]
        )
        return answer

    def __call__(self) -> None:
        batch = next(self._batches)
        loss = F.cross_entropy(self.logits(batch).float(), self.questions.label[batch.questions])
        self.optimizer.zero_grad()
        loss.backward()
        before_step(self.training, self.network)
        self.optimizer.step()
        self.done += len(batch.questions)

    def rate(self, repetitions: int) -> float:
        """Questions a second."""
        self()
        wait(self.rows.device)
        self.done, began = 0, time.perf_counter()
        for _ in range(repetitions):
            self()
        wait(self.rows.device)
        return self.done / (time.perf_counter() - began)


def step_figures(
    rows: Tensor, questions: Questions, steps: int, precision: torch.dtype
) -> Iterator[Figure]:
    """The package's training step beside the plain one, in turn."""
    device = rows.device
    limit = peak(device, precision)
    yield Figure(f"one large matrix product, {precision}", 2 * limit / 1e9, "GFLOP/s")
    words = float(questions.lengths.float().mean())
    models = {
        "SAN(2, LSTM)": (
            Network(None, SAN(WORDS, ANSWERS, CHANNELS, **SAN_OPTIONS), 1.0, precision),
            PlainSAN(WORDS, ANSWERS, CHANNELS, **SAN_OPTIONS),
            san_macs(2, 500, 1024, 512, words),
        ),
        "HieCoAtt (parallel)": (
            Network(None, HieCoAtt(WORDS, ANSWERS, CHANNELS, **HIECOATT_OPTIONS), 1.0, precision),
            PlainHieCoAtt(WORDS, ANSWERS, CHANNELS, **HIECOATT_OPTIONS),
            hiecoatt_macs(512, 1024, words),
        ),
    }
    for name, (network, plain, (per_picture, per_question)) in models.items():
        training = Training(epochs=1, learning_rate=1e-4, batch_size=100, order="grouped")
        ours = Step(network, training, rows, questions)
        theirs = Step(plain, dataclasses.replace(training, order="iid"), rows, questions)
        pairs = [(ours.rate(steps), theirs.rate(steps)) for _ in range(3)]
        rate = statistics.median(pair[0] for pair in pairs)
        # Backward costs twice the forward pass, but for the features, which need no gradient.
        shared = 3 * per_picture - REGIONS * CHANNELS * (per_picture > 0)
        macs = shared * PICTURES / QUESTIONS + 3 * per_question
        yield Figure(f"{name}, batch 100, grouped", rate, "questions/s")
        yield Figure("  an epoch of VQA v2 train + val would take", QUESTIONS / rate, "s")
        yield Figure("  of the limit by matrix products", 100 * rate * macs / limit, "%")
        yield Figure(
            "  plain: float32, questions drawn singly",
            statistics.median(pair[1] for pair in pairs),
            "questions/s",
        )
        ratios = [a / b for a, b in pairs]
        yield Figure(
            "  ours : plain",
            statistics.median(ratios),
            "times",
            f"({min(ratios):.2f} to {max(ratios):.2f})",
        )
        network.eval()
        batch = next(batches(questions, 1024, "stored"))
        with torch.inference_mode():
            took = seconds(lambda: ask(network, rows, questions, batch), device, 3)  # noqa: B023
        yield Figure("  answering, 1,024 at a time", len(batch.questions) / took, "questions/s")


def extraction_figures(device: torch.device) -> Iterator[Figure]:
    """VGG-19 at 448 x 448 with random weights, which cost what trained ones do."""
    from torchvision.models import vgg19

    from vqa_repro.backbone import preprocess

    batch = 64 if device.type == "cuda" else 2
    network = vgg19().features.eval().requires_grad_(False).to(device)
    network = network.to(memory_format=torch.channels_last)
    pictures = torch.randint(0, 256, (batch, 448, 448, 3), dtype=torch.uint8, device=device)

    def look() -> None:
        with torch.inference_mode():
            network(preprocess(pictures, "caffe").contiguous(memory_format=torch.channels_last))

    rate = batch / seconds(look, device, 3)
    limit = peak(device, torch.float32)
    yield Figure("VGG-19 at 448 x 448, float32", rate, "pictures/s")
    yield Figure("  of the limit", 100 * rate * VGG19_MACS / limit, "%")


def store_figures(rows: Tensor) -> Iterator[Figure]:
    """A store of made-up features: opening it, and random pictures out of the mapped file."""
    from vqa_repro.store import StoreWriter, open_store

    kept = rows[:512].cpu().numpy()
    keys = [str(i) for i in range(len(kept))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "made-up.safetensors")
        writer = StoreWriter(path, keys, kept.shape[1:], kept.dtype, {"backbone": "made up"})
        for row, values in enumerate(kept):
            writer.write(row, values)
        writer.finish()
        began = time.perf_counter()
        store = open_store(path)
        yield Figure("opening a store", 1000 * (time.perf_counter() - began), "ms")
        which = np.random.default_rng(0).integers(0, len(kept), 256)
        took = seconds(lambda: store.rows[which], torch.device("cpu"), 5)
        yield Figure("random pictures from the mapped file, cached", 256 / took, "pictures/s")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--share", type=float, help="of VQA v2's pictures")
    parser.add_argument("--steps", type=int, default=10, help="training steps a repetition")
    parser.add_argument("--only", choices=("extraction", "store", "step"))
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16"), default="bfloat16", help="of ours"
    )
    parser.add_argument("--json", action="store_true", help="everything, for programs")
    add_device_option(parser)
    args = parser.parse_args()
    device = choose_device(args.device)
    share = args.share or (1.0 if device.type == "cuda" else 0.004)
    rows, questions = made_up(share, device)
    machine = f"{describe(device)}, torch {torch.__version__}, Python {sys.version.split()[0]}"
    data = (
        f"made-up features of {len(rows):,} pictures ({share:.2%} of VQA v2 train + val), "
        f"{len(questions):,} questions of {float(questions.lengths.float().mean()):.1f} words"
    )
    if not args.json:
        print(f"{machine}\n{data}", flush=True)
    figures = []
    for name, part in {
        "extraction": lambda: extraction_figures(device),
        "store": lambda: store_figures(rows),
        "step": lambda: step_figures(rows, questions, args.steps, getattr(torch, args.precision)),
    }.items():
        if args.only in (None, name):
            for figure in part():
                figures.append(figure)
                if not args.json:
                    print(figure, flush=True)
    if args.json:
        found = [dataclasses.asdict(figure) for figure in figures]
        print(json.dumps({"machine": machine, "data": data, "figures": found}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
