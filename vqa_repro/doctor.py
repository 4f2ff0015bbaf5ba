"""Check the environment: what is installed, whether it computes, and how to fix what is broken.

    python -m vqa_repro.doctor [--json] [--deep] [--checkpoint NAME] [--timeout SECONDS]
    python -m vqa_repro.doctor --gpu [--device cuda:N|cpu] [--report FILE]

--gpu checks a GPU with the training step of every model, compares it with the CPU, times it, and
writes a report that can be pasted into an issue; at most 10 minutes. Without a GPU, --device cpu
rehearses it with small models.

Exit code 0: healthy (a machine without a GPU is; a missing checkpoint is a note). 1: something is
broken; each problem is listed with its fix. 2: --gpu, and there is no GPU.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vqa_repro.install import checkpoints
from vqa_repro.install.errors import InstallError
from vqa_repro.utils.arguments import path_argument
from vqa_repro.utils.errors import UserError, main_guard

EXIT_BROKEN = 1

Facts = dict[str, Any]


def as_text(report: Facts) -> str:
    """Return the report for a person: a line or two for each part, the verdict, the problems."""
    rows = [*_software_rows(report), *_gpu_rows(report), *_kernel_rows(report)]
    rows += _machine_rows(report)
    lines = [f"{label:24}{value}" for label, value in rows]
    lines += ["", *(f"note: {note['what']}\n      {note['fix']}" for note in report["notes"])]
    lines.append(report["verdict"])
    for number, problem in enumerate(report["problems"], 1):
        lines += [f"{number}. {problem['what']}", f"   fix: {problem['fix']}"]
    return "\n".join(lines)


def _software_rows(report: Facts) -> Iterator[tuple[str, str]]:
    python = report["python"]
    yield "python", f"{python['version']}, {python['platform']}, glibc {python['glibc']}"
    yield "venv", python["venv"] or "none: this is the system's Python"
    for name, package in report["packages"].items():
        lock = " or ".join(package["locked"]) or "not listed"
        match = "as locked" if package["installed"] in package["locked"] else f"lock: {lock}"
        imports = {True: "imports", False: "DOES NOT IMPORT", None: "import not tried"}
        version = package["installed"] or "missing"
        yield name, f"{version} ({match}), {imports[package['imports']]}"


def _gpu_rows(report: Facts) -> Iterator[tuple[str, str]]:
    driver, torch = report["driver"], report["torch"]
    version = driver["version"] or "none seen"
    yield "NVIDIA driver", f"{version} (nvidia-smi {driver['nvidia_smi']})"
    if driver["cuda_visible_devices"] is not None:
        yield "", f"CUDA_VISIBLE_DEVICES={driver['cuda_visible_devices']!r}"
    for card in driver["gpus"]:
        free, total = ((card[f"memory_{which}_mib"] or 0) / 1024 for which in ("free", "total"))
        capability = card["compute_capability"] or "unknown"
        text = f"{card['name']}, {free:.1f} of {total:.1f} GiB free"
        mig = ", MIG is on" if card["mig"] else ""
        yield "", f"{text}, compute capability {capability}{mig}"
    if torch:
        arches = " ".join(torch["arch_list"]) or "none"
        yield "torch sees", f"{torch['gpus']} GPUs; CUDA {torch['cuda']}, built for {arches}"


def _kernel_rows(report: Facts) -> Iterator[tuple[str, str]]:
    for device in report["devices"]:
        yield device["device"], device.get("name", report["cpu"]["model"])
        for kernel in device["kernels"]:
            result = kernel.get("failure") or (
                f"{kernel['milliseconds']:9.3f} ms, error {kernel['error']:.0e} "
                f"(at most {kernel['tolerance']:.0e})"
            )
            ok = "ok" if kernel["ok"] else "WRONG"
            yield "", f"{kernel['kernel']:11} {kernel['dtype']:8} {ok:5} {result}"
        if "matmul_tflops" in device:
            speed = f"{device['matmul_tflops']:g} TFLOP/s"
            yield "", f"{speed} in a large {device['matmul_dtype']} matmul"


def _machine_rows(report: Facts) -> Iterator[tuple[str, str]]:
    cpu, weights = report["cpu"], report["checkpoint"]
    sets = ", ".join(cpu["instruction_sets"]) or "no AVX2"
    if report["torch"]:
        sets += f"; torch uses {report['torch']['cpu_capability']}"
    threads = cpu["omp_num_threads"] or "not set"
    yield "checkpoint", f"{weights['name']}: {weights['state']} ({weights['path']})"
    yield "processor", f"{cpu['model']}, {cpu['cores']} cores, {sets}; OMP_NUM_THREADS {threads}"
    for folder, free in report["disk"].items():
        yield "disk", f"{free} GiB free at {folder}"


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line. Raise UserError for a bad value."""
    parser = argparse.ArgumentParser(prog="python -m vqa_repro.doctor", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.add_argument(
        "--deep", action="store_true", help="compare the hashes of all installed files: minutes"
    )
    parser.add_argument(
        "--checkpoint", default="vgg19", metavar="NAME", help="checkpoint to check; default: vgg19"
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=120.0,
        metavar="SECONDS",
        help="limit for each step that may hang; default 120, more where a first import is slow",
    )
    parser.add_argument(
        "--gpu", action="store_true", help="check a GPU with real training steps: up to 10 minutes"
    )
    parser.add_argument(
        "--device", default="cuda", metavar="cuda|cuda:N|cpu", help="for --gpu; default: cuda"
    )
    parser.add_argument(
        "--report",
        type=path_argument,
        default=Path("gpu-report.md"),
        metavar="FILE",
        help="where --gpu writes its report; default: gpu-report.md",
    )
    args = parser.parse_args(arguments)
    if not 0 < args.timeout < float("inf"):
        raise UserError(f"--timeout {args.timeout:g}: give a number of seconds above 0")
    try:
        checkpoints.lookup(args.checkpoint)
    except InstallError as error:
        raise UserError(f"--checkpoint: {error}") from None
    return args


def main(arguments: list[str] | None = None) -> int:
    args = parse_args(arguments)
    if args.gpu:
        from vqa_repro.diagnostics.gpu_report import check_gpu

        return 0 if check_gpu(args.device, args.report, print) else EXIT_BROKEN
    if sys.stderr.isatty():
        print("importing torch; the first time this may take minutes ...", file=sys.stderr)
    from vqa_repro.diagnostics.checks import examine

    report = examine(args.checkpoint, args.timeout, args.deep)
    print(json.dumps(report, indent=2) if args.json else as_text(report))
    return 0 if report["healthy"] else EXIT_BROKEN


if __name__ == "__main__":
    main_guard(main)
