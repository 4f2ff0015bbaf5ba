"""What the program does in a second, beside what the machine could do. One command prints it all:

    python benchmarks/run.py                   # on a GPU at the full size of VQA v2 train + val
    python benchmarks/run.py --share 0.005     # a share of its pictures; the default on a CPU
    python benchmarks/run.py --only step --json
    python benchmarks/run.py --only targets    # the goals, and what was measured of them

Features are made up, never zeros: as many numbers differ from zero as in VGG-19's pool5 (8%).
Times are medians of several repetitions after a warm-up, but for decoding and for photos to store:
one pass, by the clock on the wall. Figures that belong together come from one run, in turn, because
machines change their speed. With one thread on the CPU (OMP_NUM_THREADS=1) the other seconds are
those of the processor, which others on the machine do not lengthen much. Nothing here learns
anything.
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
from vqa_repro.utils.device import add_device_option, choose_device, describe, has_bfloat16
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


def made_up(share: float, device: torch.device) -> tuple[Tensor, Questions]:
    """Synthetic features and questions: a ``share`` of VQA v2."""
    return synthetic_data(max(40, round(VQA_IMAGES * share)), device)


def clock() -> float:
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    return time.process_time() if alone else time.perf_counter()


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device, repetitions: int) -> float:
    """Median seconds of ``work``, once warmed up."""
    work()
    times = []
    for _ in range(repetitions):
        wait(device)
        began = clock()
        work()
        wait(device)
        times.append(clock() - began)
    return statistics.median(times)


def peak(device: torch.device, dtype: torch.dtype) -> float:
    """Multiply-adds a second of one large matrix product: what is called the limit below."""
    n = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return float(n**3 / seconds(lambda: a @ b, device, 5))


class Macs(NamedTuple):
    """Multiply-adds of a forward pass."""

    picture: float
    question: float

    def a_question_learnt(self) -> float:
        """Those of a training step for a question, with its part of its picture's.

        Backward costs twice the forward pass, but for the features, which need no gradient.
        """
        shared = 3 * self.picture - REGIONS * CHANNELS
        return shared * VQA_IMAGES / VQA_QUESTIONS + 3 * self.question


def san_macs(
    words: float, layers: int, embedding: int, hidden: int, attention: int, **_: object
) -> Macs:
    """Multiply-adds of SAN's forward pass."""
    picture = REGIONS * hidden * (CHANNELS + layers * attention)
    hop = hidden * attention + REGIONS * (attention + hidden)
    lstm = words * 4 * hidden * (embedding + hidden)
    return Macs(picture, lstm + layers * hop + hidden * ANSWERS)


def hiecoatt_macs(words: float, hidden: int, last_hidden: int, **_: object) -> Macs:
    """Multiply-adds of parallel HieCoAtt's forward pass."""
    d = hidden
    picture = REGIONS * d * (CHANNELS + 3 * d)
    level = words * d * (2 * d + 3 * REGIONS) + REGIONS * 2 * d + words * 2 * d
    phrases, lstm = words * d * d * 6, words * 8 * d * d
    head = d * d + 2 * d * d + 2 * d * last_hidden + last_hidden * ANSWERS
    return Macs(picture, phrases + lstm + 3 * level + head)


# As the papers' code trains. The rate is small, because nothing is there to be learnt.
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
    macs: Callable[..., Macs]  # by the words of a question and the options

    def ours(self, precision: torch.dtype) -> VQAModel:
        return VQAModel(
            None, self.answerer(WORDS, ANSWERS, CHANNELS, **self.options), 1.0, precision
        )

    def macs_a_question(self, questions: Questions) -> float:
        words = float(questions.lengths.float().mean())
        return self.macs(words, **self.options).a_question_learnt()


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
    """Training steps of a yardstick: every question its own copy of the features, torch's own
    optimiser, one kernel after the other."""

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


def rate(
    step: Callable[[Batch, float], object], plan: Iterator[Batch], steps: int, device: torch.device
) -> float:
    """Questions a second."""
    wait(device)
    done, began = 0, clock()
    for _ in range(steps):
        batch = next(plan)
        step(batch, 1e-5)
        done += len(batch)
    wait(device)
    return done / (clock() - began)


def step_figures(
    rows: Tensor, questions: Questions, which: str | None, steps: int, precision: torch.dtype
) -> Iterator[Figure]:
    """The package's training step beside the plain one, in turn; of both models, or of one."""
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
        theirs = PlainStep(plain, device)
        in_groups = forever(training, rows, questions)
        singly = forever(dataclasses.replace(training, order="iid"), rows, questions)
        # On a GPU sizes of batches are recorded as they come.
        rate(ours, in_groups, 500 if device.type == "cuda" else 1, device)
        rate(theirs, singly, 1, device)
        pairs = [
            (rate(ours, in_groups, steps, device), rate(theirs, singly, steps, device))
            for _ in range(3)
        ]
        ours_a_second = statistics.median(pair[0] for pair in pairs)
        macs = model.macs_a_question(questions)
        yield Figure(f"{name}, batch 100, grouped", ours_a_second, "questions/s")
        yield Figure(
            "  an epoch of VQA v2 train + val would take", VQA_QUESTIONS / ours_a_second, "s"
        )
        yield Figure("  of the limit by matrix products", 100 * ours_a_second * macs / limit, "%")
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
        first = plan_batches(questions, 1024, "stored")[0]
        batch = collate(questions, first, rows.index_select(0, first.rows))
        with torch.inference_mode():
            took = seconds(lambda: forward(network, batch), device, 3)  # noqa: B023
        yield Figure("  answering, 1,024 at a time", len(batch) / took, "questions/s")


def at_place(rows: Tensor, place: Placement) -> Tensor | FeatureLoader:
    """``rows`` as train.py keeps those of a store; on the disk they are a file that is gone."""
    if place == "device":  # they are there already, and twice they might not fit
        return rows
    numbers: np.ndarray[Any, Any] = rows.cpu().numpy()
    if place == "disk":
        with tempfile.TemporaryFile() as file:
            numbers.tofile(file)
            numbers = np.memmap(file, numbers.dtype, "r", shape=numbers.shape)
    return FeatureLoader(Store(Path("made-up"), numbers, {}, {}), rows.device, place)


def epoch_figures(
    rows: Tensor | FeatureLoader,
    questions: Questions,
    precision: torch.dtype,
    world: World,
    batch_size: int,
    model: Model,
) -> Iterator[Figure]:
    """An epoch as train.py has it, dealing out included; of all processes that torchrun started.

    rows: of this process.
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

    # Before the clock: libraries, and on a GPU a recording of every size that is met.
    epoch(0, None if device.type == "cuda" else 1)
    wait(device)
    world.any(False)
    began = clock()
    epoch(1)
    wait(device)
    world.any(False)
    took = clock() - began
    yield Figure(f"an epoch of {len(questions):,} questions", took, "s", f"batch {batch_size}")
    yield Figure("  a question", 1e6 * took / len(questions), "microseconds")
    macs = model.macs_a_question(questions) * len(questions) / world.size
    yield Figure("  of the limit by matrix products", 100 * macs / took / limit, "%")
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(device) - before
        what = "of the GPU, besides the features"
    else:
        memory, what = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "of a process"
    yield Figure("  memory", memory / 1e9, "GB", what)


def again(*arguments: object, processes: int = 1) -> dict[str, float]:
    """The figures that this file prints when called with ``arguments``, in processes of its own.

    Each with one thread, so that more processes are more processors.
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
    """How an epoch of SAN grows with the data, and what more processes make of it."""
    options = ("--only", "epoch", "--device", device, "--precision", precision)

    def figures(name: str, found: dict[str, float]) -> Iterator[Figure]:
        (took,) = (value for key, value in found.items() if key.startswith("an epoch of"))
        yield Figure(name, took, "s", f"{found['  memory']:.2f} GB a process")

    for part in (1 / 8, 1 / 4, 1 / 2, 1):
        yield from figures(
            f"an epoch of {part:g} of {share:.2%} of VQA v2",
            again(*options, "--share", share * part),
        )
    for processes in (1, 2, 4):
        # On the CPU the seconds are the first process's own: others may share its core.
        if device != "cpu" and processes > torch.cuda.device_count():
            print(f"  {processes} processes: not measured, there are not as many GPUs")
            continue
        yield from figures(
            f"an epoch of {share:.2%}, {processes} processes",
            again(*options, "--share", share, processes=processes),
        )


def target_rows(device: torch.device, precision: str) -> Iterator[tuple[str, str, str]]:
    """(what, goal, measured): the project's goals. Without a GPU most are not measured."""
    if device.type == "cuda":
        gpu = ("--device", "cuda", "--precision", precision)

        def epoch(*options: object) -> dict[str, float]:
            return again("--only", "epoch", *gpu, *options)

        def took(found: dict[str, float]) -> str:
            return next(f"{v:.2f} s" for k, v in found.items() if k.startswith("an epoch of"))

        san = epoch()
        yield "SAN(2, LSTM), VQA v2 train + val, batch 100", "4 s an epoch", took(san)
        large = epoch("--batch", 512)
        share = f"{large['  of the limit by matrix products']:.0f}% of the limit"
        yield "the same, batch 512", "2 s an epoch, 40% of the limit", f"{took(large)}, {share}"
        yield "HieCoAtt, parallel", "8 s an epoch", took(epoch("--model", "hiecoatt"))
        beside = f"{san['  memory']:.2f} GB besides the features"
        yield "memory of training with the features on disk", "8 GB", beside
        resident, pinned = (
            epoch("--share", 0.25, "--feature-placement", place)["  a question"]
            for place in ("device", "pinned")
        )
        yield "from pinned host memory : resident", "1.3 times", f"{pinned / resident:.2f} times"
        found = again("--only", "extraction", "--share", 0.001, *gpu)
        reached = found.get("  of the limit, photos to store in bfloat16")
        measured = f"{reached:.0f}%" if reached else "this GPU has no bfloat16"
        yield "photos to store, VGG-19 in bfloat16", "50% of the limit", measured
    else:
        for what, goal in (
            ("SAN(2, LSTM), VQA v2 train + val, batch 100", "4 s an epoch"),
            ("the same, batch 512", "2 s an epoch, 40% of the limit"),
            ("HieCoAtt, parallel", "8 s an epoch"),
            ("memory of training with the features on disk", "8 GB"),
            ("from pinned host memory : resident", "1.3 times"),
            ("photos to store, VGG-19 in bfloat16", "50% of the limit"),
        ):
            yield what, goal, "not measured: no GPU"
    goal = "10 times" if device.type == "cuda" else "3 times on 2 CPU cores"
    for model in ("san", "hiecoatt"):
        options = ("--model", model, "--device", device.type, "--precision", precision)
        found = again("--only", "step", *options)
        yield f"ours : plain ({model})", goal, f"{found['  ours : plain']:.1f} times"


def extraction_figures(device: torch.device) -> Iterator[Figure]:
    """VGG-19 at 448 x 448 with random weights, which cost what trained ones do.

    The network alone, decoding alone, and from photos to a store as ``extract`` does it.
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
        photos = made_up_photos(Path(folder))
        images = {str(i): photos[i % len(photos)] for i in range(count)}

        def decode() -> None:
            with ThreadPoolExecutor(num_threads()) as pool:
                list(pool.map(lambda path: read_image(path, 448), some))

        some = [photos[i % len(photos)] for i in range(16 * num_threads())]
        decode()
        began = time.perf_counter()  # the clock on the wall: of many threads, not of one processor
        decode()
        rate = len(some) / (time.perf_counter() - began)
        yield Figure("decoding photos of 640 x 480", rate, "pictures/s", f"{num_threads()} threads")
        for precision in ("float32", "bfloat16") if has_bfloat16(device) else ("float32",):
            network = FrozenBackbone("vgg19", weights, "caffe", device, precision)
            pictures = torch.from_numpy(Extractor(network).buffer()).to(device).random_()

            def look() -> None:
                with torch.inference_mode():
                    network(pictures)  # noqa: B023

            limit = peak(device, getattr(torch, precision)) / VGG19_MACS
            rate = len(pictures) / seconds(look, device, 3)
            yield Figure(f"VGG-19 at 448 x 448, {precision}", rate, "pictures/s")
            yield Figure(f"  of the limit, network in {precision}", 100 * rate / limit, "%")
            began = time.perf_counter()
            extract(images, Path(folder, f"{precision}.safetensors"), network)
            rate = count / (time.perf_counter() - began)
            yield Figure(f"photos to store, {precision}", rate, "pictures/s")
            yield Figure(f"  of the limit, photos to store in {precision}", 100 * rate / limit, "%")


def made_up_photos(folder: Path) -> list[Path]:
    """JPEG files of 640 x 480, of about as many bytes as photos have: 130 kB."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{number}.jpg" for number in range(16)]
    for path in paths:
        coarse = Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8)).resize((640, 480))
        fine = rng.normal(0, 5, (480, 640, 1))
        Image.fromarray(np.clip(coarse + fine, 0, 255).astype(np.uint8)).save(path, quality=90)
    return paths


def store_figures(rows: Tensor) -> Iterator[Figure]:
    """A store of made-up features: opening it, and random pictures out of the mapped file."""
    from vqa_repro.features.store import StoreWriter, open_store

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
    parser.add_argument("--steps", type=int, help="training steps a repetition")
    parser.add_argument(
        "--only", choices=("extraction", "store", "step", "epoch", "growth", "targets")
    )
    parser.add_argument("--batch", type=int, default=100, help="questions, for --only epoch")
    parser.add_argument(
        "--feature-placement", choices=PLACEMENTS, default="device", help="for --only epoch"
    )
    parser.add_argument("--model", choices=tuple(MODELS), help="this one alone")
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        help="of ours; by default bfloat16, where the device has it",
    )
    parser.add_argument("--json", action="store_true", help="everything, for programs")
    add_device_option(parser)
    args = parser.parse_args()
    with init_distributed(args.device) as (world, device_name):
        measure(args, world, choose_device(device_name))
    return 0


def measure(args: argparse.Namespace, world: World, device: torch.device) -> None:
    share = args.share or (1.0 if device.type == "cuda" else 0.004)
    if args.precision == "bfloat16" and not has_bfloat16(device):
        raise UserError("--precision bfloat16: no known instructions for it here")
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
    rows, questions = made_up(share, device)
    data = (
        f"made-up features of {len(rows):,} pictures ({share:.2%} of VQA v2 train + val), "
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
            at_place(rows[world.rank :: world.size], args.feature_placement),
            questions,
            precision,
            world,
            args.batch,
            model,
        ),
    }.items():
        if args.only in (None, name):
            # Programs get their JSON alone: what the package itself says goes to the errors.
            with redirect_stdout(sys.stderr if args.json else sys.stdout):
                for figure in part():
                    figures.append(figure)
                    if not args.json:
                        print(figure, flush=True)
    if args.json:
        found = [dataclasses.asdict(figure) for figure in figures]
        print(json.dumps({"machine": machine, "data": data, "figures": found}, indent=2))


if __name__ == "__main__":
    main_guard(main)
