"""Check real training steps on a device against float32 on the CPU, and time them.

    python -m vqa_repro.training.step_check DEVICE CHECK

CHECK is the name of a recipe, "kernels" (Triton) or "placements" (of features). Prints one JSON
object a line as soon as a result is there, since a GPU may crash or hang in the next one. On the
CPU everything is small: a rehearsal, in which a stand-in takes the place of CUDA graphs.
"""

import copy
import inspect
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqa_repro.data.batching import Batch, collate, plan_batches
from vqa_repro.features.loader import PLACEMENTS, FeatureLoader, Placement
from vqa_repro.features.store import Store
from vqa_repro.models import MODELS
from vqa_repro.models.network import VQAModel
from vqa_repro.models.ops import attention
from vqa_repro.recipe import Recipe, Training, load_recipe
from vqa_repro.training.cuda_graphs import CudaGraphs, GraphedStep, Recomputed, reason_for_eager
from vqa_repro.training.optim import use_precision
from vqa_repro.training.step import Step
from vqa_repro.training.synthetic import VQA_QUESTIONS, Sizes, synthetic_data
from vqa_repro.utils.device import choose_device, has_bfloat16
from vqa_repro.utils.errors import first_line

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
    parts = {name: getattr(batch, name) for name in Batch.__dataclass_fields__}
    moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in parts.items()}
    return Batch(**moved)


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


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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


def check_kernels(device: torch.device) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield the checks of Triton's kernels; none on the CPU, where they do not run."""
    if device.type == "cuda":
        yield "Triton kernels match the plain forms", lambda: triton_self_test(device)


def triton_self_test(device: torch.device) -> Result:
    try:
        from vqa_repro.models.ops import triton_kernels
    except ImportError as error:
        return {"ok": False, "detail": first_line(error)}
    failure = triton_kernels.self_test(device)
    return {"ok": failure is None, "detail": failure or f"Triton {triton_kernels.triton_version()}"}


def check_placements(device: torch.device) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield a check of each feature placement: the same features, and the time of a batch."""
    for placement in PLACEMENTS:
        yield f"features: {placement}", lambda placement=placement: try_placement(placement, device)


def try_placement(placement: Placement, device: torch.device) -> Result:
    small = device.type == "cpu"
    features, questions = synthetic_data(64 if small else 2048, CPU, SMALL if small else Sizes())
    with tempfile.TemporaryDirectory() as folder:
        numbers = features.numpy()
        file = Path(folder, "features")
        numbers.tofile(file)
        rows: Any = np.memmap(file, numbers.dtype, "r", shape=numbers.shape)
        loader = FeatureLoader(Store(file, rows, {}, {}), device, placement)
        questions = questions.to(device)
        plan = plan_batches(questions, 100, "grouped")
        same, start = True, 0.0
        for timed in (False, True):
            synchronize(device)
            start = time.perf_counter()
            for batch, indices in zip(loader.epoch(questions, plan), plan, strict=True):
                if not timed:
                    expected = features[indices.rows.cpu()]
                    same = same and torch.equal(batch.features.cpu(), expected)
            synchronize(device)
        milliseconds = 1000 * (time.perf_counter() - start) / len(plan)
        return {"ok": same, "detail": f"{milliseconds:.2f} ms a batch of 100 questions"}


def machine_facts(device: torch.device) -> Result:
    """Return what a report says about the device and the libraries."""
    facts: Result = {"torch": torch.__version__, "cuda": torch.version.cuda}
    facts["cudnn"] = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    try:
        import triton

        facts["triton"] = triton.__version__
    except ImportError:
        facts["triton"] = None
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts["name"] = properties.name
        facts["compute_capability"] = f"{properties.major}.{properties.minor}"
        facts["memory_gib"] = round(properties.total_memory / 2**30, 1)
    return facts


def run_check(name: str, device: torch.device) -> Iterator[Result]:
    """Yield the results of the check called ``name``; a failure is a result, too."""
    checks = {"kernels": check_kernels, "placements": check_placements}.get(name)
    for what, check in checks(device) if checks else check_recipe(name, device):
        start = time.perf_counter()
        try:
            found = check()
        except Exception as error:
            detail = f"{type(error).__name__}: {first_line(error)}"
            found = {"ok": False, "detail": detail}
        for result in found if isinstance(found, list) else [found]:
            if result is not None:
                yield {"check": name, "what": what, **result, "took": time.perf_counter() - start}


def main(arguments: list[str]) -> None:
    if len(arguments) != 2:
        raise SystemExit(__doc__)
    device = choose_device(arguments[0])
    use_precision("float32")
    print(json.dumps({"facts": machine_facts(device)}), flush=True)
    for result in run_check(arguments[1], device):
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
