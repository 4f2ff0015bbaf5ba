"""Check a device with real work: kernels, training steps, feature placements.

    python -m vqa_repro.training.gpu_check DEVICE CHECK

CHECK is the name of a recipe, "kernels" (Triton) or "placements" (of features). Prints one JSON
object a line as soon as a result is there, since a GPU may crash or hang in the next one.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqa_repro.data.batching import plan_batches
from vqa_repro.features.loader import PLACEMENTS, FeatureLoader, Placement
from vqa_repro.features.store import Store
from vqa_repro.models.common import group_by_image
from vqa_repro.models.ops import attention
from vqa_repro.training.cuda_graphs import CudaGraphs
from vqa_repro.training.step_check import CPU, SMALL, Result, check_recipe
from vqa_repro.training.synthetic import Sizes, synthetic_data
from vqa_repro.utils.device import choose_device, synchronize, use_precision
from vqa_repro.utils.errors import first_line


def check_kernels(device: torch.device) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield the checks of Triton's kernels; none on the CPU, where they do not run."""
    if device.type == "cuda":
        yield "Triton kernels match the plain forms", lambda: triton_self_test(device)
        yield "a replay draws a new mask in Triton, too", lambda: triton_replays(device)
        yield "fused update matches PyTorch's", lambda: update_self_test(device)


def triton_self_test(device: torch.device) -> Result:
    try:
        from vqa_repro.models.ops import triton_kernels
    except ImportError as error:
        return {"ok": False, "detail": first_line(error)}
    failure = triton_kernels.self_test(device)
    return {"ok": failure is None, "detail": failure or f"Triton {triton_kernels.triton_version()}"}


def triton_replays(device: torch.device) -> Result:
    """Replay the scores with dropout: each replay has to draw another mask."""
    torch.manual_seed(0)
    image, question, w = (
        torch.randn(shape, device=device) for shape in ((4, 196, 512), (8, 512), (512,))
    )
    groups = group_by_image(torch.arange(8, device=device) // 2, image)
    scores, graphs = torch.empty(8, 196, device=device), CudaGraphs()

    def work() -> Tensor:
        return scores.copy_(attention.additive_scores(image, question, w, groups, 0.5))

    def captured() -> None:
        work()

    graphs.warm_up(work)
    replay = graphs.capture(captured)
    masks = []
    for _ in range(3):
        replay()
        masks.append(scores.clone())
    same = sum(torch.equal(a, b) for a, b in pairwise(masks))
    return {"ok": same == 0, "detail": f"{same} of 2 replays repeated the mask before"}


def update_self_test(device: torch.device) -> Result:
    try:
        from vqa_repro.training import fused_update
    except ImportError as error:
        return {"ok": False, "detail": first_line(error)}
    failure = fused_update.self_test(device)
    return {"ok": failure is None, "detail": failure or "SGD and RMSprop"}


def check_placements(device: torch.device) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield a check of each feature placement: the same features, and the time of a batch."""
    for placement in PLACEMENTS:
        yield f"features: {placement}", partial(try_placement, placement, device)


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
    facts["cudnn"] = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
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
