"""Kernel self-tests of torch, run by the doctor in a separate process that may crash or hang.

    python -m vqa_repro.diagnostics.kernel_check machine [MODULE ...]
        report torch's build and devices, test the kernels of each device, import the modules
    python -m vqa_repro.diagnostics.kernel_check checkpoint MODEL FILE
        load the weights and run the network on an image

Print {} once torch is imported, then one JSON object per line.
"""

import contextlib
import copy
import importlib
import json
import math
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vqa_repro.utils.device import has_bfloat16, synchronize

# Largest error allowed, relative to the largest value of the float64 result: about ten roundings.
# Not tighter, because GPUs may round the inputs of float32 convolutions to TF32 (2**-11).
TOLERANCE = {torch.float32: 5e-3, torch.bfloat16: 4e-2}


def torch_facts() -> dict[str, Any]:
    """Return version, CUDA build, architectures, usable devices, threads, instruction sets."""
    with warnings.catch_warnings(record=True) as caught:  # torch warns about an unusable GPU
        warnings.simplefilter("always")
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    has_amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: None)
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "arch_list": torch.cuda.get_arch_list(),
        "gpus": gpus,
        "devices": [f"cuda:{index}" for index in range(gpus)] or ["cpu"],  # to be tested
        "warning": str(caught[-1].message).splitlines()[0] if caught else None,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "amx": has_amx(),
    }


def check_device(name: str) -> dict[str, Any]:
    """Run every kernel on the device ``name``; failures are reported, not raised."""
    device = torch.device(name)
    bf16 = has_bfloat16(device)
    report: dict[str, Any] = {"device": name}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        free, total = torch.cuda.mem_get_info(device)
        report |= {"name": properties.name, "memory_total_gib": round(total / 2**30, 1)}
        report |= {"memory_free_gib": round(free / 2**30, 1)}
        report |= {"compute_capability": f"{properties.major}.{properties.minor}"}
    report["bfloat16"] = bf16
    report["kernels"] = []
    for kernel, (module, shape) in kernels().items():
        for dtype in TOLERANCE:
            if dtype == torch.float32 or (bf16 and kernel in ("matmul", "convolution")):
                report["kernels"].append(_check_kernel(kernel, module, shape, device, dtype))
    if all(kernel["ok"] for kernel in report["kernels"]):
        fastest = torch.bfloat16 if bf16 and device.type == "cuda" else torch.float32
        report["matmul_dtype"] = str(fastest).removeprefix("torch.")
        report["matmul_tflops"] = round(throughput(device, fastest), 3)
    return report


def kernels() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """Return name -> (module in float32 on the CPU, shape of its input)."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(32, 64, 3, padding=1).to(memory_format=torch.channels_last)
    return {
        "matmul": (nn.Linear(512, 256, bias=False), (128, 512)),
        "convolution": (convolution, (4, 32, 28, 28)),
        "LSTM": (nn.LSTM(64, 128, batch_first=True), (8, 12, 64)),
        "softmax": (nn.Softmax(dim=-1), (64, 1000)),
    }


def forward_backward(
    module: nn.Module, x: Tensor, device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    """Return the output of a copy of ``module``, and the gradients of input and parameters."""
    module = copy.deepcopy(module).to(device, dtype)
    x = x.to(device, dtype).detach().requires_grad_()
    output = module(x)
    output = output[0] if isinstance(output, tuple) else output
    # Repeating -2..2: the incoming gradient is exact in every dtype.
    gradient = torch.arange(output.numel(), device=device).remainder(5).sub(2).to(dtype)
    output.backward(gradient.view(output.shape))
    gradients = [t.grad for t in (x, *module.parameters()) if t.grad is not None]
    return [output.detach(), *gradients]


def relative_error(results: list[Tensor], references: list[Tensor]) -> float:
    """Return the maximum over all tensors of max|result - reference| / max|reference|."""
    errors = []
    for result, reference in zip(results, references, strict=True):
        difference = (result.cpu().double() - reference).abs().max()
        errors.append(difference / reference.abs().max())
    return torch.stack(errors).max().item()  # NaN wins


def _check_kernel(
    name: str, module: nn.Module, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    report: dict[str, Any] = {"kernel": name, "dtype": str(dtype).removeprefix("torch.")}
    report["tolerance"] = TOLERANCE[dtype]
    try:
        x = torch.randn(shape)
        if x.dim() == 4:
            x = x.to(memory_format=torch.channels_last)
        # Both start from values rounded to ``dtype``: only the computation may differ.
        module, x = copy.deepcopy(module).to(dtype), x.to(dtype)
        reference = forward_backward(module, x, torch.device("cpu"), torch.float64)
        forward_backward(module, x, device, dtype)  # loads libraries, chooses algorithms
        synchronize(device)
        start = time.perf_counter()
        results = forward_backward(module, x, device, dtype)
        synchronize(device)
        report["milliseconds"] = round(1000 * (time.perf_counter() - start), 3)
        error = relative_error(results, reference)
        if not math.isfinite(error):
            raise ArithmeticError("the result is not finite")
        report |= {"error": error, "ok": error <= TOLERANCE[dtype]}
    except Exception as caught:
        report |= {"ok": False, "failure": f"{type(caught).__name__}: {caught}".splitlines()[0]}
    return report


def throughput(device: torch.device, dtype: torch.dtype) -> float:
    """Return the TFLOP/s of a square matmul: size 8192 on a GPU, 1024 on the CPU."""
    n, repeats = (8192, 10) if device.type == "cuda" else (1024, 5)
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    a @ b
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        a @ b
    synchronize(device)
    return 2 * n**3 * repeats / (time.perf_counter() - start) / 1e12


def check_checkpoint(name: str, file: Path) -> dict[str, Any]:
    """Load ``file`` into torchvision's model ``name`` and run it on a synthetic 224x224 image.

    Of a conversion from Caffe ("vgg19-caffe") only the feature extractor is loaded.

    Raise the errors of torch for a file that does not fit, and ValueError for outputs that are not
    finite or all alike.
    """
    import torchvision  # only here: the other checks are about torch alone

    from vqa_repro.features.backbones import load_backbone
    from vqa_repro.utils.torch_utils import empty_weights

    if name.endswith("-caffe"):
        model = load_backbone(name.removesuffix("-caffe"), file)
    else:
        state = torch.load(file, map_location="cpu", weights_only=True)
        with empty_weights():
            model = getattr(torchvision.models, name)()
        model.load_state_dict(state, assign=True)  # strict: every key, every shape
    side = torch.linspace(-2, 2, 224)
    disc = (side[:, None] ** 2 + side**2 < 1).float()
    image = torch.stack([disc, side.expand(224, 224), side[:, None] * disc])[None]
    start = time.perf_counter()
    with torch.inference_mode():
        outputs = model.eval()(image)
    seconds = time.perf_counter() - start
    if not outputs.isfinite().all() or outputs.std() < 1e-3:
        raise ValueError("its outputs for an image are not finite, or all alike")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters": parameters, "seconds": round(seconds, 3)}


def main(arguments: list[str]) -> None:
    # Flushed line by line: the doctor then knows how far a crashed process got.
    print("{}", flush=True)
    match arguments:
        case ["machine", *modules]:
            facts = torch_facts()
            print(json.dumps(facts), flush=True)
            for name in facts["devices"]:
                print(json.dumps(check_device(name)), flush=True)
            for module in modules:
                with contextlib.suppress(Exception):  # the doctor examines failures one by one
                    importlib.import_module(module)
                    print(json.dumps({"imports": module}), flush=True)
        case ["checkpoint", name, file]:
            print(json.dumps(check_checkpoint(name, Path(file))))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
