"""Measure throughput, and compare it with the limits of the machine.

    python benchmarks/run.py                   # on a GPU at the full size of VQA v2 train + val
    python benchmarks/run.py --share 0.005     # a share of its images; the default on a CPU
    python benchmarks/run.py --only step --json
    python benchmarks/run.py --only targets    # the goals, with measurements

Features are synthetic but not zero: as many values are non-zero as in VGG-19's pool5 (8%). Times
are medians of several repetitions after a warm-up; decoding and extraction of photos are one pass,
in wall-clock time. Figures to be compared are measured alternately in one run, because the speed of
a machine varies. With one thread on the CPU (OMP_NUM_THREADS=1) other times are CPU time, which
other processes on the machine hardly affect. Nothing is learnt here.
"""

import argparse
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.plain import PlainHieCoAtt, PlainSAN
from vqa_repro.data.batching import Batch, collate, plan_batches
from vqa_repro.data.questions import Questions
from vqa_repro.evaluation.inference import forward
from vqa_repro.features.loader import PLACEMENTS, FeatureLoader, Placement
from vqa_repro.features.store import Store
from vqa_repro.models.hiecoatt import HieCoAtt
from vqa_repro.models.network import VQAModel
from vqa_repro.models.san import SAN
from vqa_repro.recipe import Training
from vqa_repro.training.cuda_graphs import reason_for_eager
from vqa_repro.training.loop import choose_step
from vqa_repro.training.step import Step
from vqa_repro.training.synthetic import VQA_IMAGES, VQA_QUESTIONS, Sizes, synthetic_data
from vqa_repro.utils.arguments import add_device_option
from vqa_repro.utils.device import choose_device, describe, has_bfloat16
from vqa_repro.utils.distributed import World, init_distributed
from vqa_repro.utils.errors import UserError, main_guard

SIZES = Sizes()
REGIONS, CHANNELS, WORDS, ANSWERS = SIZES.regions, SIZES.channels, SIZES.words, SIZES.answers
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


def synthetic(share: float, device: torch.device) -> tuple[Tensor, Questions]:
    """Return synthetic features and questions: a ``share`` of VQA v2."""
    return synthetic_data(max(40, round(VQA_IMAGES * share)), device)


def clock() -> float:
    """Return the CPU time in seconds with one thread and no GPU; else the wall-clock time."""
    single_thread = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    return time.process_time() if single_thread else time.perf_counter()


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device, repetitions: int) -> float:
    """Return the median seconds of ``work``, after a warm-up."""
    work()
    times = []
    for _ in range(repetitions):
        synchronize(device)
        start = clock()
        work()
        synchronize(device)
        times.append(clock() - start)
    return statistics.median(times)


def peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return the multiply-adds per second of one large matrix product, the "limit" below."""
    n = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return float(n**3 / seconds(lambda: a @ b, device, 5))


class Macs(NamedTuple):
    """Multiply-adds of a forward pass."""

    image: float
    question: float

    def per_training_question(self) -> float:
        """Return those of a training step per question, including its share of its image's.

        The backward pass costs twice the forward pass, except for features, which need no gradient.
        """
        shared = 3 * self.image - REGIONS * CHANNELS
        return shared * VQA_IMAGES / VQA_QUESTIONS + 3 * self.question


def san_macs(
    words: float, layers: int, embedding: int, hidden: int, attention: int, **_: object
) -> Macs:
    """Return the multiply-adds of SAN's forward pass."""
    image = REGIONS * hidden * (CHANNELS + layers * attention)
    hop = hidden * attention + REGIONS * (attention + hidden)
    lstm = words * 4 * hidden * (embedding + hidden)
    return Macs(image, lstm + layers * hop + hidden * ANSWERS)


def hiecoatt_macs(words: float, hidden: int, last_hidden: int, **_: object) -> Macs:
    """Return the multiply-adds of parallel HieCoAtt's forward pass."""
    d = hidden
    image = REGIONS * d * (CHANNELS + 3 * d)
    level = words * d * (2 * d + 3 * REGIONS) + REGIONS * 2 * d + words * 2 * d
    phrases, lstm = words * d * d * 6, words * 8 * d * d
    head = d * d + 2 * d * d + 2 * d * last_hidden + last_hidden * ANSWERS
    return Macs(image, phrases + lstm + 3 * level + head)


# As in the papers' code. The learning rate is small, because the data are random.
SAN_TRAINING = Training(
    epochs=1,
    learning_rate=1e-5,
    optimizer="sgd",
    weight_decay=1e-3,
    clip=0.1,
    clip_per="tensor",
    batch_size=100,
    order="grouped",
)
HIECOATT_TRAINING = dataclasses.replace(
    SAN_TRAINING, optimizer="rmsprop", weight_decay=1e-8, clip=0.0
)


@dataclasses.dataclass(frozen=True)
class Model:
    name: str
    answerer: Callable[..., nn.Module]
    plain: Callable[..., nn.Module]
    options: dict[str, Any]
    training: Training
    macs: Callable[..., Macs]  # of the words per question and the options

    def ours(self, precision: torch.dtype) -> VQAModel:
        return VQAModel(
            None, self.answerer(WORDS, ANSWERS, CHANNELS, **self.options), 1.0, precision
        )

    def macs_per_question(self, questions: Questions) -> float:
        words = float(questions.lengths.float().mean())
        return self.macs(words, **self.options).per_training_question()


MODELS = {
    "san": Model(
        "SAN(2, LSTM)",
        SAN,
        PlainSAN,
        SAN_OPTIONS,
        SAN_TRAINING,
        san_macs,
    ),
    "hiecoatt": Model(
        "HieCoAtt (parallel)",
        HieCoAtt,
        PlainHieCoAtt,
        HIECOATT_OPTIONS,
        HIECOATT_TRAINING,
        hiecoatt_macs,
    ),
}


class PlainStep:
    """Training steps of a plain model: a copy of the features per question, torch's optimiser,
    eager execution."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self._network = network.to(device).train()
        self._optimizer = torch.optim.SGD(network.parameters(), lr=1e-5, momentum=0.9)

    def __call__(self, batch: Batch, rate: float) -> None:
        features = batch.features[batch.image_index].float()
        logits = self._network(features, batch.tokens, batch.lengths)
        loss = F.cross_entropy(logits, batch.label)
        self._optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self._network.parameters(), 0.1)
        self._optimizer.step()


def forever(training: Training, rows: Tensor, questions: Questions) -> Iterator[Batch]:
    epoch = 0
    while True:
        for indices in plan_batches(questions, training.batch_size, training.order, epoch):
            yield collate(questions, indices, rows.index_select(0, indices.rows))
        epoch += 1


def questions_per_second(
    step: Callable[[Batch, float], object], plan: Iterator[Batch], steps: int, device: torch.device
) -> float:
    """Return the questions per second of ``steps`` training steps."""
    synchronize(device)
    done, start = 0, clock()
    for _ in range(steps):
        batch = next(plan)
        step(batch, 1e-5)
        done += len(batch)
    synchronize(device)
    return done / (clock() - start)


def step_figures(
    rows: Tensor, questions: Questions, which: str | None, steps: int, precision: torch.dtype
) -> Iterator[Figure]:
    """Compare the package's training step with the plain one, for one or all models."""
    device = rows.device
    limit = peak(device, precision)
    yield Figure(f"one large matrix product, {precision}", 2 * limit / 1e9, "GFLOP/s")
    for key, model in MODELS.items():
        if which not in (None, key):
            continue
        name, training, network = model.name, model.training, model.ours(precision)
        eager = reason_for_eager(network.to(device), device)
        ours = choose_step(Step(training, network.train()), device)
        if device.type == "cuda":
            yield Figure(f"{name}: CUDA graphs", float(eager is None), "1: used", eager or "")
        plain = model.plain(WORDS, ANSWERS, CHANNELS, **model.options)
        plain_step = PlainStep(plain, device)
        grouped = forever(training, rows, questions)
        independent = forever(dataclasses.replace(training, order="iid"), rows, questions)
        # On a GPU batch sizes are captured as they occur.
        questions_per_second(ours, grouped, 500 if device.type == "cuda" else 1, device)
        questions_per_second(plain_step, independent, 1, device)
        pairs = [
            (
                questions_per_second(ours, grouped, steps, device),
                questions_per_second(plain_step, independent, steps, device),
            )
            for _ in range(3)
        ]
        ours_a_second = statistics.median(pair[0] for pair in pairs)
        macs = model.macs_per_question(questions)
        yield Figure(f"{name}, batch 100, grouped", ours_a_second, "questions/s")
        yield Figure(
            "  an epoch of VQA v2 train + val would take", VQA_QUESTIONS / ours_a_second, "s"
        )
        yield Figure("  of the limit by matrix products", 100 * ours_a_second * macs / limit, "%")
        yield Figure(
            "  plain: float32, questions drawn independently",
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
        first = plan_batches(questions, 1024, "stored")[0]
        batch = collate(questions, first, rows.index_select(0, first.rows))
        with torch.inference_mode():
            took = seconds(lambda: forward(network, batch), device, 3)  # noqa: B023
        yield Figure("  answering, 1,024 at a time", len(batch) / took, "questions/s")


def place_features(rows: Tensor, placement: Placement) -> Tensor | FeatureLoader:
    """Return ``rows`` where train.py would keep them; on the disk, in a deleted file."""
    if placement == "device":  # already there, and a copy might not fit
        return rows
    values: np.ndarray[Any, Any] = rows.cpu().numpy()
    if placement == "disk":
        with tempfile.TemporaryFile() as file:
            values.tofile(file)
            values = np.memmap(file, values.dtype, "r", shape=values.shape)
    return FeatureLoader(Store(Path("synthetic"), values, {}, {}), rows.device, placement)


def epoch_figures(
    rows: Tensor | FeatureLoader,
    questions: Questions,
    precision: torch.dtype,
    world: World,
    batch_size: int,
    model: Model,
) -> Iterator[Figure]:
    """Measure an epoch as in train.py, including batching, over all processes of torchrun.

    rows: those of this process.
    """
    device = rows.device
    limit = peak(device, precision)
    training = dataclasses.replace(model.training, batch_size=batch_size)
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
    torch.manual_seed(0)
    step = choose_step(Step(training, model.ours(precision).to(device).train(), world), device)

    def epoch(number: int, most: int | None = None) -> None:
        plan = plan_batches(questions, batch_size, training.order, number, world)[:most]
        if isinstance(rows, FeatureLoader):
            batches: Iterator[Batch] = rows.epoch(questions, plan)
        else:
            batches = (collate(questions, i, rows.index_select(0, i.rows)) for i in plan)
        for batch in batches:
            step(batch, 1e-5)

    # Warm-up: loads libraries, and on a GPU captures every batch size.
    epoch(0, None if device.type == "cuda" else 1)
    synchronize(device)
    world.any(False)
    start = clock()
    epoch(1)
    synchronize(device)
    world.any(False)
    took = clock() - start
    yield Figure(f"an epoch of {len(questions):,} questions", took, "s", f"batch {batch_size}")
    yield Figure("  per question", 1e6 * took / len(questions), "microseconds")
    macs = model.macs_per_question(questions) * len(questions) / world.size
    yield Figure("  of the limit by matrix products", 100 * macs / took / limit, "%")
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(device) - before
        what = "of the GPU, besides the features"
    else:
        memory, what = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "of a process"
    yield Figure("  memory", memory / 1e9, "GB", what)


def run_again(*arguments: object, processes: int = 1) -> dict[str, float]:
    """Run this file with ``arguments`` in separate processes; return its figures by name.

    Each process has one thread, so that more processes use more cores.
    """
    command = [sys.executable, *("-m", "torch.distributed.run", "--nproc-per-node", str(processes))]
    done = subprocess.run(
        [*command, __file__, *map(str, arguments), "--json"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return {figure["name"]: figure["value"] for figure in json.loads(done.stdout)["figures"]}


def growth_figures(share: float, device: str, precision: str) -> Iterator[Figure]:
    """Measure how the time of an epoch of SAN scales with data and processes."""
    options = ("--only", "epoch", "--device", device, "--precision", precision)

    def figures(name: str, measured: dict[str, float]) -> Iterator[Figure]:
        (took,) = (value for key, value in measured.items() if key.startswith("an epoch of"))
        yield Figure(name, took, "s", f"{measured['  memory']:.2f} GB per process")

    for part in (1 / 8, 1 / 4, 1 / 2, 1):
        yield from figures(
            f"an epoch of {part:g} of {share:.2%} of VQA v2",
            run_again(*options, "--share", share * part),
        )
    for processes in (1, 2, 4):
        # On the CPU the seconds are the CPU time of the main process: others may share its core.
        if device != "cpu" and processes > torch.cuda.device_count():
            print(f"  {processes} processes: not measured: not enough GPUs")
            continue
        yield from figures(
            f"an epoch of {share:.2%}, {processes} processes",
            run_again(*options, "--share", share, processes=processes),
        )


def target_rows(device: torch.device, precision: str) -> Iterator[tuple[str, str, str]]:
    """Yield (what, goal, measured) of the project's goals. Most need a GPU."""
    if device.type == "cuda":
        gpu = ("--device", "cuda", "--precision", precision)

        def epoch(*options: object) -> dict[str, float]:
            return run_again("--only", "epoch", *gpu, *options)

        def took(figures: dict[str, float]) -> str:
            return next(f"{v:.2f} s" for k, v in figures.items() if k.startswith("an epoch of"))

        san = epoch()
        yield "SAN(2, LSTM), VQA v2 train + val, batch 100", "4 s an epoch", took(san)
        large = epoch("--batch", 512)
        share = f"{large['  of the limit by matrix products']:.0f}% of the limit"
        yield "the same, batch 512", "2 s an epoch, 40% of the limit", f"{took(large)}, {share}"
        yield "HieCoAtt, parallel", "8 s an epoch", took(epoch("--model", "hiecoatt"))
        memory = f"{san['  memory']:.2f} GB besides the features"
        yield "memory of training with the features on disk", "8 GB", memory
        resident, pinned = (
            epoch("--share", 0.25, "--feature-placement", placement)["  per question"]
            for placement in ("device", "pinned")
        )
        yield "pinned host memory : GPU memory", "1.3 times", f"{pinned / resident:.2f} times"
        figures = run_again("--only", "extraction", "--share", 0.001, *gpu)
        reached = figures.get("  of the limit, extraction in bfloat16")
        measured = f"{reached:.0f}%" if reached else "this GPU has no bfloat16"
        yield "extraction of photos, VGG-19 in bfloat16", "50% of the limit", measured
    else:
        for what, goal in (
            ("SAN(2, LSTM), VQA v2 train + val, batch 100", "4 s an epoch"),
            ("the same, batch 512", "2 s an epoch, 40% of the limit"),
            ("HieCoAtt, parallel", "8 s an epoch"),
            ("memory of training with the features on disk", "8 GB"),
            ("pinned host memory : GPU memory", "1.3 times"),
            ("extraction of photos, VGG-19 in bfloat16", "50% of the limit"),
        ):
            yield what, goal, "not measured: no GPU"
    goal = "10 times" if device.type == "cuda" else "3 times on 2 CPU cores"
    for model in ("san", "hiecoatt"):
        options = ("--model", model, "--device", device.type, "--precision", precision)
        figures = run_again("--only", "step", *options)
        yield f"ours : plain ({model})", goal, f"{figures['  ours : plain']:.1f} times"


def extraction_figures(device: torch.device) -> Iterator[Figure]:
    """Measure VGG-19 at 448 x 448 with random weights, which are as fast as trained ones.

    Only the network, only decoding, and the whole extraction of photos into a store.
    """
    from torchvision.models import vgg19

    from vqa_repro.data.images import read_image
    from vqa_repro.features.backbones import FrozenBackbone
    from vqa_repro.features.extraction import num_threads
    from vqa_repro.features.extractor import Extractor, extract

    count = 8192 if device.type == "cuda" else 8
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder, "vgg19.pth")
        torch.save({f"features.{k}": v for k, v in vgg19().features.state_dict().items()}, weights)
        photos = synthetic_photos(Path(folder))
        images = {str(i): photos[i % len(photos)] for i in range(count)}

        def decode() -> None:
            with ThreadPoolExecutor(num_threads()) as pool:
                list(pool.map(lambda path: read_image(path, 448), sample))

        sample = [photos[i % len(photos)] for i in range(16 * num_threads())]
        decode()
        start = time.perf_counter()  # wall-clock time, because there are many threads
        decode()
        rate = len(sample) / (time.perf_counter() - start)
        yield Figure("decoding photos of 640 x 480", rate, "images/s", f"{num_threads()} threads")
        for precision in ("float32", "bfloat16") if has_bfloat16(device) else ("float32",):
            network = FrozenBackbone("vgg19", weights, "caffe", device, precision)
            batch = torch.from_numpy(Extractor(network).buffer()).to(device).random_()

            def compute() -> None:
                with torch.inference_mode():
                    network(batch)  # noqa: B023

            limit = peak(device, getattr(torch, precision)) / VGG19_MACS
            rate = len(batch) / seconds(compute, device, 3)
            yield Figure(f"VGG-19 at 448 x 448, {precision}", rate, "images/s")
            yield Figure(f"  of the limit, network in {precision}", 100 * rate / limit, "%")
            start = time.perf_counter()
            extract(images, Path(folder, f"{precision}.safetensors"), network)
            rate = count / (time.perf_counter() - start)
            yield Figure(f"extraction, {precision}", rate, "images/s")
            yield Figure(f"  of the limit, extraction in {precision}", 100 * rate / limit, "%")


def synthetic_photos(folder: Path) -> list[Path]:
    """Write JPEG files of 640 x 480 of about the size of photos: 130 kB."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{number}.jpg" for number in range(16)]
    for path in paths:
        coarse = Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8)).resize((640, 480))
        fine = rng.normal(0, 5, (480, 640, 1))
        Image.fromarray(np.clip(coarse + fine, 0, 255).astype(np.uint8)).save(path, quality=90)
    return paths


def store_figures(rows: Tensor) -> Iterator[Figure]:
    """Measure opening a store of synthetic features, and reading random rows of it."""
    from vqa_repro.features.store import StoreWriter, open_store

    values = rows[:512].cpu().numpy()
    keys = [str(i) for i in range(len(values))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "synthetic.safetensors")
        writer = StoreWriter(path, keys, values.shape[1:], values.dtype, {"backbone": "synthetic"})
        for row, value in enumerate(values):
            writer.write(row, value)
        writer.finish()
        start = time.perf_counter()
        store = open_store(path)
        yield Figure("opening a store", 1000 * (time.perf_counter() - start), "ms")
        which = np.random.default_rng(0).integers(0, len(values), 256)
        took = seconds(lambda: store.rows[which], torch.device("cpu"), 5)
        yield Figure("random images from the mapped file, cached", 256 / took, "images/s")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--share", type=float, help="share of VQA v2's images")
    parser.add_argument("--steps", type=int, help="training steps per repetition")
    parser.add_argument(
        "--only",
        choices=("extraction", "store", "step", "epoch", "growth", "targets"),
        help="measure only this",
    )
    parser.add_argument(
        "--batch", type=int, default=100, help="questions per batch, for --only epoch"
    )
    parser.add_argument(
        "--feature-placement", choices=PLACEMENTS, default="device", help="for --only epoch"
    )
    parser.add_argument("--model", choices=tuple(MODELS), help="measure only this model")
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        help="of the package's models; default: bfloat16 if the device supports it",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_device_option(parser)
    args = parser.parse_args()
    with init_distributed(args.device) as (world, device_name):
        measure(args, world, choose_device(device_name))
    return 0


def measure(args: argparse.Namespace, world: World, device: torch.device) -> None:
    share = args.share or (1.0 if device.type == "cuda" else 0.004)
    if args.precision == "bfloat16" and not has_bfloat16(device):
        raise UserError("--precision bfloat16: not supported by this device")
    args.precision = args.precision or ("bfloat16" if has_bfloat16(device) else "float32")
    precision = getattr(torch, args.precision)
    machine = (
        f"{describe(device)}, {world.size} process{'es' if world.size > 1 else ''}, "
        f"torch {torch.__version__}, Python {sys.version.split()[0]}"
    )
    if args.only == "targets":
        print(machine, flush=True)
        for what, goal, measured in target_rows(device, args.precision):
            print(f"| {what} | {goal} | {measured} |", flush=True)
        return
    if args.only == "growth":
        print(machine, flush=True)
        for figure in growth_figures(share, device.type, args.precision):
            print(figure, flush=True)
        return
    rows, questions = synthetic(share, device)
    data = (
        f"synthetic features of {len(rows):,} images ({share:.2%} of VQA v2 train + val), "
        f"{len(questions):,} questions of {float(questions.lengths.float().mean()):.1f} words"
    )
    if not args.json:
        print(f"{machine}\n{data}", flush=True)
    model = MODELS[args.model or "san"]
    steps = args.steps or (200 if device.type == "cuda" else 2)
    figures = []
    for name, part in {
        "extraction": lambda: extraction_figures(device),
        "store": lambda: store_figures(rows),
        "step": lambda: step_figures(rows, questions, args.model, steps, precision),
        "epoch": lambda: epoch_figures(
            place_features(rows[world.rank :: world.size], args.feature_placement),
            questions,
            precision,
            world,
            args.batch,
            model,
        ),
    }.items():
        if args.only in (None, name):
            # With --json standard output is for the JSON only.
            with redirect_stdout(sys.stderr if args.json else sys.stdout):
                for figure in part():
                    figures.append(figure)
                    if not args.json:
                        print(figure, flush=True)
    if args.json:
        records = [dataclasses.asdict(figure) for figure in figures]
        print(json.dumps({"machine": machine, "data": data, "figures": records}, indent=2))


if __name__ == "__main__":
    main_guard(main)
