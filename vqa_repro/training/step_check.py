"""Check a recipe's training step on a device against float32 on the CPU, and time it.

On the CPU everything is small: a rehearsal, in which a stand-in takes the place of CUDA graphs.
"""

import copy
import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqa_repro.data.batching import Batch, collate, plan_batches
from vqa_repro.models import MODELS
from vqa_repro.models.network import VQAModel
from vqa_repro.models.ops import attention
from vqa_repro.recipe import Recipe, Training, load_recipe
from vqa_repro.training.cuda_graphs import CudaGraphs, GraphedStep, Recomputed, reason_for_eager
from vqa_repro.training.step import Step
from vqa_repro.training.synthetic import VQA_QUESTIONS, Sizes, synthetic_data
from vqa_repro.utils.device import has_bfloat16, synchronize, use_precision

CPU = torch.device("cpu")
SMALL, SMALL_WIDTH = Sizes(regions=9, channels=16, words=60, answers=10), 16
QUESTIONS = 32  # of a batch that is compared; the CPU computes it too
# Largest error of losses and gradients, relative to a tensor's largest value. float32 has 24 bits,
# and sums of up to 20,000 terms in another order lose some of them, more where terms cancel out.
# bfloat16 has 8 bits; there a tensor's error is measured by its norm.
TOLERANCE = {"float32": (1e-4, 5e-3), "bfloat16": (5e-2, 0.25)}
TIMED_BATCHES, ROUNDS = 8, 5

Result = dict[str, Any]


class Case:
    """A recipe's model and training step, on synthetic data."""

    def __init__(self, recipe: Recipe, small: bool) -> None:
        self.sizes = SMALL if small else Sizes()
        # Sampled answers are random, and the CPU draws others than the GPU.
        self.training = replace(recipe.training, answers="label", regions=1.0)
        self._options = dict(recipe.model)
        self._model = MODELS[self._options.pop("name")]
        if small:
            self._options |= {name: narrow(value) for name, value in self._sizes().items()}

    def _sizes(self) -> dict[str, Any]:
        parameters = inspect.signature(self._model).parameters.values()
        options = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        return {
            name: value
            for name, value in {**options, **self._options}.items()
            if isinstance(value, int | list | tuple) and not isinstance(value, bool)
        }

    def network(self, *, dropout: bool, precision: str = "float32") -> VQAModel:
        """Return the untrained network, always with the same weights."""
        options = self._options
        if not dropout and "dropout" in inspect.signature(self._model).parameters:
            options = {**options, "dropout": 0.0}
        torch.manual_seed(0)
        sizes = self.sizes
        answerer = self._model(sizes.words, sizes.answers, sizes.channels, **options)
        return VQAModel(None, answerer, 1.0, getattr(torch, precision)).train()

    def batches(self, size: int, count: int, device: torch.device) -> list[Batch]:
        """Return ``count`` batches of about ``size`` questions in the recipe's order."""
        features, questions = synthetic_data(max(40, count * size // 4), device, self.sizes)
        plan = plan_batches(questions, size, self.training.order)[:count]
        return [collate(questions, i, features.index_select(0, i.rows)) for i in plan]


def narrow(value: Any) -> Any:
    """Return a size of a model, made small if it is one of a layer's width."""
    if isinstance(value, list | tuple):
        return type(value)(map(narrow, value))
    return min(value, SMALL_WIDTH)


def to(batch: Batch, device: torch.device) -> Batch:
    parts: dict[str, Any] = {name: getattr(batch, name) for name in Batch.__dataclass_fields__}
    for name, part in parts.items():
        if isinstance(part, Tensor):
            parts[name] = part.to(device)
    return Batch(**parts)


def relative_error(result: Tensor, expected: Tensor) -> float:
    """Return max|result - expected| / max|expected|; NaN if anything is not finite."""
    expected = expected.double()
    largest = expected.abs().max().clamp(min=1e-30)
    return float((result.cpu().double() - expected).abs().max() / largest)


def norm_error(result: Tensor, expected: Tensor) -> float:
    """Return |result - expected| / |expected| (L2)."""
    expected = expected.detach().double()
    difference = result.detach().cpu().double() - expected
    return float(difference.norm() / expected.norm().clamp(min=1e-30))


def gradients(step: Step, batch: Batch) -> tuple[Tensor, list[tuple[str, Tensor]]]:
    """Return the totals of ``batch`` and the named gradients of the float32 weights, on the CPU."""
    totals = step.compute_gradients(batch).cpu()
    return totals, [
        (name, p.grad.float().cpu())
        for name, p in step.network.named_parameters()
        if p.grad is not None
    ]


def compare_gradients(
    case: Case, device: torch.device, precision: str, forms: AbstractContextManager[None]
) -> Result:
    """Compare loss and gradients of one batch with the CPU's plain float32."""
    (batch,) = case.batches(QUESTIONS, 1, CPU)
    training = replace(case.training, precision="float32")
    with attention.plain_forms():
        expected_totals, expected = gradients(Step(training, case.network(dropout=False)), batch)
    step = Step(training, case.network(dropout=False, precision=precision).to(device))
    with forms:
        totals, found = gradients(step, to(batch, device))
    loss_tolerance, tolerance = TOLERANCE[precision]
    measure = norm_error if precision == "bfloat16" else relative_error
    loss = relative_error(totals[:1], expected_totals[:1])
    name, worst = max(
        ((name, measure(a, b)) for (name, a), (_, b) in zip(found, expected, strict=True)),
        key=lambda pair: (pair[1] != pair[1], pair[1]),
    )
    ok = loss <= loss_tolerance and worst <= tolerance
    detail = (
        f"loss off by {loss:.1e} (at most {loss_tolerance:.0e}), gradients by {worst:.1e} "
        f"(at most {tolerance:.0e}; {name.removeprefix('answerer.')})"
    )
    return {"ok": ok, "detail": detail}


def compare_graph(case: Case, device: torch.device) -> Result:
    """Compare five steps, replayed as soon as possible, with the CPU's; batches differ in size."""
    batches = [*case.batches(QUESTIONS, 2, CPU)] * 3
    training = replace(case.training, precision="float32")
    eager = Step(training, case.network(dropout=False))
    step = Step(training, copy.deepcopy(eager.network).to(device))
    before = [p.detach().clone() for p in eager.parameters]
    graphed = GraphedStep(step, graphs_for(device))
    rate, worst = case.training.learning_rate / 10, 0.0
    for batch in batches:
        with attention.plain_forms():
            expected = eager(batch, rate)
        totals = graphed(to(batch, device), rate).cpu()
        worst = max(worst, relative_error(totals[:1], expected[:1]))
    moved = torch.cat([(a - b).flatten() for a, b in zip(eager.parameters, before, strict=True)])
    pairs = zip(step.parameters, before, strict=True)
    ours = torch.cat([(a.detach().cpu() - b).flatten() for a, b in pairs])
    off = norm_error(ours, moved)
    detail = f"losses of {len(batches)} steps off by {worst:.1e}, weights by {off:.1e} of their way"
    if graphed.failure:
        return {"ok": False, "detail": f"not captured: {graphed.failure}"}
    # RMSprop divides a gradient by its size, so that rounding errors of tiny ones count in full.
    return {"ok": worst <= 1e-3 and off <= 0.05 and graphed.captured > 0, "detail": detail}


def replays_draw_new_dropout(case: Case, device: torch.device) -> Result | None:
    """Replay one batch at learning rate 0: only dropout can change the loss, and must."""
    network = case.network(dropout=True).to(device)
    if not any(isinstance(m, torch.nn.Dropout) and m.p for m in network.modules()):
        return None
    step = Step(replace(case.training, precision="float32"), network)
    graphed = GraphedStep(step, graphs_for(device))
    (batch,) = case.batches(QUESTIONS, 1, device)
    losses = [float(graphed(batch, 0.0)[0]) for _ in range(5)]
    return {"ok": len(set(losses[1:])) == 4, "detail": f"losses {losses[1]:.4f} to {losses[4]:.4f}"}


def graphs_for(device: torch.device) -> CudaGraphs | Recomputed:
    return CudaGraphs() if device.type == "cuda" else Recomputed()


def time_steps(case: Case, device: torch.device, fast: bool) -> Iterator[Result]:
    """Time a step of the recipe, or of its fast form: bfloat16, questions grouped by image."""
    training = case.training
    if fast:
        training = replace(training, precision="bfloat16", order="grouped")
    case = copy.copy(case)
    case.training = training
    use_precision(training.precision)
    on_gpu = device.type == "cuda"
    count, size = (TIMED_BATCHES, training.batch_size) if on_gpu else (1, QUESTIONS)
    batches = case.batches(size, count, device)
    steps_an_epoch = -(-VQA_QUESTIONS // training.batch_size)
    for how in ("eager", "graph"):
        network = case.network(dropout=True, precision=autocast_dtype(training)).to(device)
        step = Step(training, network)
        run: Callable[[Batch, float], Tensor] = step
        if how == "graph":
            if reason := reason_for_eager(network, torch.device("cuda")):
                yield {"time": how, "skipped": reason}
                continue
            run = GraphedStep(step, graphs_for(device))
        milliseconds = time_rounds(run, batches, device)
        result: Result = {
            "time": how,
            "form": f"{training.precision}, {training.order}, batch {size}",
            "milliseconds": milliseconds,
        }
        if on_gpu:
            result["epoch_seconds"] = milliseconds * steps_an_epoch / 1000
            result["reserved_gb"] = torch.cuda.max_memory_reserved(device) / 1e9
        yield result


def autocast_dtype(training: Training) -> str:
    return "bfloat16" if training.precision == "bfloat16" else "float32"


def time_rounds(
    run: Callable[[Batch, float], Tensor], batches: list[Batch], device: torch.device
) -> float:
    """Return the milliseconds of a step: the median round over ``batches``, after a warm-up."""
    rounds = []
    for number in range(3 + ROUNDS if device.type == "cuda" else 3):
        synchronize(device)
        start = time.perf_counter()
        for batch in batches:
            run(batch, 1e-5)
        synchronize(device)
        if number >= 2:  # every batch size was seen twice, and captured
            rounds.append((time.perf_counter() - start) / len(batches))
    return 1000 * float(np.median(rounds))


def check_recipe(name: str, device: torch.device) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield (what, check) of one recipe's training step."""
    case = Case(load_recipe(name, {}), small=device.type == "cpu")
    on_gpu = device.type == "cuda"
    plain, fast = ("plain PyTorch", "Triton") if on_gpu else ("plain PyTorch", "CPU kernels")
    yield (
        f"{plain}, float32",
        lambda: compare_gradients(case, device, "float32", attention.plain_forms()),
    )
    yield f"{fast}, float32", lambda: compare_gradients(case, device, "float32", nullcontext())
    if has_bfloat16(device):
        yield (
            f"{fast}, bfloat16",
            lambda: compare_gradients(case, device, "bfloat16", nullcontext()),
        )
    yield "CUDA graph" if on_gpu else "CUDA graph (stand-in)", lambda: compare_graph(case, device)
    yield "new dropout mask each replay", lambda: replays_draw_new_dropout(case, device)
    yield "", lambda: list(time_steps(case, device, fast=False))
    if has_bfloat16(device):
        yield "", lambda: list(time_steps(case, device, fast=True))
