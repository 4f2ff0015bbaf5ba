"""Measure the project's goals, and how an epoch's time grows with data and processes.

Each figure is measured by processes of their own.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.measuring import Figure

RUN = Path(__file__).with_name("run.py")


def run_again(*arguments: object, processes: int = 1) -> dict[str, float]:
    """Run run.py with ``arguments`` in separate processes; return its figures by name.

    Each process has one thread, so that more processes use more cores.
    """
    command = [sys.executable, *("-m", "torch.distributed.run", "--nproc-per-node", str(processes))]
    done = subprocess.run(
        [*command, str(RUN), *map(str, arguments), "--json"],
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
