"""Measure training steps, and epochs with their data loading."""

import dataclasses
import resource
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.measuring import Figure, clock, peak, seconds
from benchmarks.models import ANSWERS, CHANNELS, MODELS, WORDS, Model
from vqa_repro.data.batching import Batch, collate, plan_batches
from vqa_repro.data.questions import Questions
from vqa_repro.evaluation.inference import forward
from vqa_repro.features.loader import FeatureLoader, Placement
from vqa_repro.features.store import Store
from vqa_repro.recipe import Training
from vqa_repro.training.cuda_graphs import reason_for_eager
from vqa_repro.training.loop import choose_step
from vqa_repro.training.step import Step
from vqa_repro.training.synthetic import VQA_QUESTIONS
from vqa_repro.utils.device import synchronize
from vqa_repro.utils.distributed import World


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
