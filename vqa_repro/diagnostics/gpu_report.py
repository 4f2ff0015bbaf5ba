"""Check a GPU with real training steps and write a report to paste into an issue.

Each check runs in a process of its own (``vqa_repro.training.gpu_check``), because a failed
kernel may crash the process, poison its CUDA context or hang. All together get ten minutes.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vqa_repro.diagnostics.checks import child_environ
from vqa_repro.diagnostics.facts import NVIDIA_SMI_SECONDS, Facts, git_commit, private, python_facts
from vqa_repro.install.driver import driver_facts
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.files import check_writable, write_output
from vqa_repro.utils.subprocesses import run_limited

BUDGET, CHECK_SECONDS = 600.0, 180.0
# The most important first: the last ones are skipped when time runs out.
CHECKS = (
    "kernels",
    "san-2-lstm-vqa-v1-val2",
    "hiecoatt-parallel-vqa-v1-test",
    "placements",
    "hiecoatt-alternating-vqa-v1-val",
    "san-1-lstm-vqa-v1-val2",
    "san-2-cnn-vqa-v1-val2",
    "san-1-cnn-vqa-v1-val2",
    "show-ask-attend-daquar",
    "question-only-vqa-v2",
    "deeper-lstm-daquar",
    "bag-of-words-daquar",
)
# Seconds an epoch on an H200, grouped and in bfloat16 (docs/performance.md).
GOALS = {"san-2-lstm-vqa-v1-val2": 4, "hiecoatt-parallel-vqa-v1-test": 8}
EXPLANATION = """\
Losses and gradients are compared with float32 on the CPU, dropout off, relative to the largest
value of each tensor. float32 may be off by 5e-3, because long sums are added in another order and
some terms cancel out; bfloat16, with 8 bits, by 0.25 of a gradient's norm. Times are medians on
synthetic data; an epoch is VQA v2, train + val: 658,111 questions, computed from the time of a
step. Goals are for an H200, grouped by image, in bfloat16."""


class CheckRun(NamedTuple):
    """The results of one check, and why it ended early or was skipped ("" if neither)."""

    name: str
    results: list[Facts]
    failure: str
    skipped: str


def check_gpu(device: str, report: Path, say: Callable[[str], None]) -> bool:
    """Run all checks on ``device``, write ``report`` (Markdown); return whether all passed.

    Raise UserError where there is no such GPU, or ``report`` cannot be written.
    """
    check_writable(report, "--report")
    start = time.monotonic()
    facts: Facts = {}
    runs = []
    for name in CHECKS:
        left = BUDGET - (time.monotonic() - start)
        run, found = _run(device, name, min(left, CHECK_SECONDS), left)
        facts = facts or found
        runs.append(run)
        for line in _lines(run):
            say(line)
    text = private(as_markdown(facts, runs, device, time.monotonic() - start))
    write_output(report, lambda file: file.write(text.encode()))
    say(f"wrote {report}")
    return not any(failures(run) for run in runs)


def _run(device: str, name: str, seconds: float, left: float) -> tuple[CheckRun, Facts]:
    """Return what the check ``name`` found, and the facts about the machine."""
    if left < 10:
        return CheckRun(name, [], "", f"out of time ({BUDGET / 60:g} minutes)"), {}
    command = [sys.executable, "-m", "vqa_repro.training.gpu_check", device, name]
    outcome = run_limited(command, seconds, child_environ())
    whole = [line for line in outcome.stdout.splitlines() if line[:1] + line[-1:] == "{}"]
    lines = [json.loads(line) for line in whole]
    if not lines and "--device" in outcome.failure:
        reason = outcome.failure.partition("UserError: ")[2]
        raise UserError(f"no GPU to check ({reason}); --device cpu rehearses the checks")
    facts: Facts = next((line["facts"] for line in lines if "facts" in line), {})
    results = [line for line in lines if "facts" not in line]
    return CheckRun(name, results, outcome.failure, ""), facts


def failures(run: CheckRun) -> list[str]:
    """Return what failed, in words."""
    failed = [f"{r['what']}: {r['detail']}" for r in run.results if not r.get("ok", True)]
    return failed + ([run.failure] if run.failure else [])


def _lines(run: CheckRun) -> Iterator[str]:
    if run.skipped:
        yield f"  skipped {run.name}: {run.skipped}"
    for result in run.results:
        if "ok" in result:
            yield f"  {'ok  ' if result['ok'] else 'FAIL'} {run.name}: {_words(result)}"
        elif "milliseconds" in result:
            yield f"       {run.name}: {result['milliseconds']:.2f} ms a step, {_form(result)}"
    if run.failure:
        yield f"  FAIL {run.name}: {run.failure}"


def _words(result: Facts) -> str:
    return f"{result['what']}: {result['detail']}"


def _form(result: Facts) -> str:
    return f"{result['time']}, {result['form']}"


def as_markdown(facts: Facts, runs: list[CheckRun], device: str, seconds: float) -> str:
    """Return the report."""
    failed = sum(len(failures(run)) for run in runs)
    passed = sum(r.get("ok", False) for run in runs for r in run.results)
    skipped = sum(bool(run.skipped) for run in runs)
    rehearsal = " This was a rehearsal on the CPU, with small models." if device == "cpu" else ""
    return "\n".join(
        [
            "# GPU check of vqa_repro",
            "",
            f"**{passed} passed, {failed} failed, {skipped} skipped** in {seconds:.0f} s."
            + rehearsal,
            "",
            *(f"- {key}: {value}" for key, value in _machine(facts)),
            "",
            "## Results",
            "",
            "| check | part | result | detail |",
            "|---|---|---|---|",
            *(_row(*cells) for run in runs for cells in _result_rows(run)),
            "",
            "## Times",
            "",
            "| recipe | form | step | ms a step | s an epoch | goal, s | memory, GB |",
            "|---|---|---|---:|---:|---:|---:|",
            *(_row(*cells) for run in runs for cells in _time_rows(run)),
            "",
            EXPLANATION,
            "",
        ]
    )


def _machine(facts: Facts) -> Iterator[tuple[str, Any]]:
    from vqa_repro import __version__

    driver, python = driver_facts(NVIDIA_SMI_SECONDS), python_facts()
    yield "vqa_repro", f"{__version__}, commit {git_commit() or 'unknown'}"
    if "name" in facts:
        yield (
            "card",
            f"{facts['name']}, {facts['memory_gib']} GiB, "
            f"compute capability {facts['compute_capability']}",
        )
    yield "driver", driver["version"] or f"none (nvidia-smi {driver['nvidia_smi']})"
    for name, label in (("torch", "torch"), ("cuda", "CUDA"), ("cudnn", "cuDNN")):
        yield label, facts.get(name)
    yield "Triton", facts.get("triton") or "not installed"
    yield "Python", f"{python['version']}, {python['platform']}, glibc {python['glibc']}"


def _result_rows(run: CheckRun) -> Iterator[tuple[Any, ...]]:
    for result in run.results:
        if "ok" in result:
            yield run.name, result["what"], "ok" if result["ok"] else "**FAIL**", result["detail"]
        elif "skipped" in result:
            yield run.name, result["time"], "skipped", result["skipped"]
    if run.failure:
        yield run.name, "", "**FAIL**", run.failure
    if run.skipped:
        yield run.name, "", "skipped", run.skipped


def _time_rows(run: CheckRun) -> Iterator[tuple[Any, ...]]:
    for result in run.results:
        if "milliseconds" in result:
            fast = result["form"].startswith("bfloat16, grouped")
            yield (
                run.name,
                result["form"],
                result["time"],
                f"{result['milliseconds']:.2f}",
                f"{result['epoch_seconds']:.1f}" if "epoch_seconds" in result else "",
                GOALS.get(run.name, "") if fast else "",
                f"{result['reserved_gb']:.1f}" if "reserved_gb" in result else "",
            )


def _row(*cells: Any) -> str:
    # A message may hold anything: it must not end its cell.
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
