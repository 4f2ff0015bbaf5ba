"""The environment, checked and explained: what is there, whether it computes, what to mend.

    python -m vqa_repro.doctor [--json] [--checkpoint NAME] [--timeout SECONDS]

Exit code 0: healthy (a machine without a GPU is; a checkpoint not yet fetched is a note). 1:
something is broken; each problem is named with its mend. This module never imports torch: all that
may crash or hang happens in processes of their own, under a time limit.
"""

import argparse
import json
import os
import platform
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from vqa_repro.diagnostics.gpu import REINSTALL, Finding, diagnose, kernel_fix
from vqa_repro.install import checkpoints
from vqa_repro.install.driver import driver_facts
from vqa_repro.install.errors import InstallError
from vqa_repro.install.lockfile import (
    build_here,
    differences,
    installed_version,
    lock_of,
    read_lock,
)
from vqa_repro.utils.errors import UserError, main_guard
from vqa_repro.utils.subprocesses import ProcessResult, run_limited

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / lock_of(build_here())
EXIT_BROKEN = 1
NVIDIA_SMI_SECONDS = 30.0
MIN_FREE_GIB = 1.0

# Distribution -> the module it brings.
PACKAGES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "opencv-python-headless": "cv2",
    "numpy": "numpy",
    "pillow": "PIL.Image",
    "requests": "requests",
    "safetensors": "safetensors",
    "matplotlib": "matplotlib",
    "easy-vqa": "easy_vqa",
}

Facts = dict[str, Any]


def environment() -> Facts:
    """What a run folder records of where it was made. Computes nothing, takes about a second."""
    driver = driver_facts(NVIDIA_SMI_SECONDS)
    torch = sys.modules.get("torch")
    facts = {
        "python": python_facts(),
        "packages": {name: installed_version(name) for name in PACKAGES},
        "torch_build": torch.__version__ if torch else None,  # with its label, as +cu130
        "driver": driver["version"],
        "gpus": [gpu["name"] for gpu in driver["gpus"]],
        "cpu": cpu_facts(),
        "commit": git_commit(),
    }
    return private(facts)  # type: ignore[no-any-return]


def private(value: Any) -> Any:
    """``value`` with the home folder shown as ~ and without the credentials in URLs."""
    if isinstance(value, dict):
        return {private(key): private(item) for key, item in value.items()}
    if isinstance(value, list):
        return [private(item) for item in value]
    if not isinstance(value, str):
        return value
    home = os.path.expanduser("~")
    if len(Path(home).parts) > 1:
        value = re.sub(r"(?<![\w.-])" + re.escape(home) + r"(?![\w.-])", "~", value)
    return re.sub(r"://[^/\s@]+@", "://***@", value)


def git_commit() -> str | None:
    """The commit of the project, with "-dirty" behind it if files differ; None outside git."""
    if not (ROOT / ".git").exists():
        return None
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    answer = run_limited([*command, "--exclude=*"], 10, dict(os.environ))
    return None if answer.failure else answer.stdout.strip()


# --- Python and its packages -----------------------------------------------------------------


def python_facts() -> Facts:
    return {
        "version": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "glibc": platform.libc_ver()[1] or None,
        "venv": sys.prefix if sys.prefix != sys.base_prefix else None,
    }


def examine_packages(
    torch_imports: bool, imported: set[str], seconds: float
) -> tuple[Facts, list[Finding]]:
    """Each package's version, the lock's, and whether it imports (None: that was not tried).

    What is not among the modules ``imported`` already is tried in a process of its own.
    """
    locked = read_lock(LOCK.read_text(encoding="utf-8")) if LOCK.exists() else {}
    packages: Facts = {}
    problems = []
    for name, module in PACKAGES.items():
        imports: bool | None = torch_imports
        if module in imported:
            imports = True
        elif name == "torchvision" and not torch_imports:
            imports = None
        elif name != "torch":
            command = [sys.executable, "-c", f"import {module}"]
            failure = run_limited(command, seconds, child_environ()).failure
            imports = not failure
            if failure:
                what = f"{name} does not import: {failure}"
                problems.append(Finding(what, import_mend(failure)))
        versions = {"installed": installed_version(name), "locked": sorted(locked.get(name, ()))}
        packages[name] = {**versions, "imports": imports}
    if differing := differences(locked):
        problems.append(Finding(f"not as in {LOCK.name}: {'; '.join(differing)}", REINSTALL))
    return packages, problems


def import_mend(failure: str) -> str:
    if "no answer" in failure:
        return "a first import from a network disk may take minutes: again with --timeout 600"
    if ".so" in failure and "LD_LIBRARY_PATH" in os.environ:
        return f"unset LD_LIBRARY_PATH, which may bring other libraries; then {REINSTALL}"
    if "No module" in failure and sys.prefix == sys.base_prefix:
        return "this is the system's Python; ./bootstrap.sh env, then .venv/bin/python"
    return REINSTALL


# --- torch, which may crash or hang ----------------------------------------------------------


def child_environ() -> dict[str, str]:
    """Our environment, with this project findable from any folder, after all that is the user's."""
    paths = [*filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), str(ROOT)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def ask_torch(question: list[str], seconds: float) -> tuple[list[Facts], ProcessResult, bool]:
    """Put a question to ``kernels_check``: its answers, how it ended, whether torch imported."""
    command = [sys.executable, "-m", "vqa_repro.diagnostics.kernel_check", *question]
    outcome = run_limited(command, seconds, child_environ())
    lines = [line for line in outcome.stdout.splitlines() if line.startswith("{")]
    return [json.loads(line) for line in lines[1:]], outcome, bool(lines)


def examine_torch(
    driver: Facts, seconds: float
) -> tuple[Facts | None, list[Facts], set[str], list[Finding]]:
    """(torch's facts, each device and its kernels, modules that import beside it, problems).

    No facts: it does not import.
    """
    answers, outcome, imported = ask_torch(["machine", *PACKAGES.values()], seconds)
    if not imported:
        what = f"torch does not import: {outcome.failure}"
        return None, [], set(), [Finding(what, import_mend(outcome.failure))]
    if not answers:
        what = f"torch imports, but fails when it looks for GPUs: {outcome.failure}"
        return {}, [], set(), [Finding(what, kernel_fix(outcome.failure, driver, []))]
    torch, *others = answers
    devices = [answer for answer in others if "device" in answer]
    modules = {answer["imports"] for answer in others if "imports" in answer}
    for device in devices:
        device["failure"] = kernel_failure(device["kernels"])
    if len(devices) < len(torch["devices"]):  # it ended at this one; those behind: not reached
        name = torch["devices"][len(devices)]
        devices.append({"device": name, "kernels": [], "failure": outcome.failure})
    problems = []
    for device in devices:
        if device["failure"]:
            capability = [float(device.get("compute_capability", 7.5))]
            what = f"{device['device']} does not compute: {device['failure']}"
            fix = kernel_fix(device["failure"], driver, capability)
            problems.append(Finding(what, fix))
    return torch, devices, modules, problems


def kernel_failure(kernels: list[Facts]) -> str | None:
    """The first kernel that failed, in words."""
    for kernel in kernels:
        if not kernel["ok"]:
            wrong = f"off by {kernel.get('error', 0):.1e}, {kernel['tolerance']:.0e} is allowed"
            return f"{kernel['kernel']} in {kernel['dtype']}: {kernel.get('failure', wrong)}"
    return None


def examine_checkpoint(
    name: str, torch_works: bool, seconds: float
) -> tuple[Facts, list[Finding], list[Finding]]:
    """The file (hash, keys, shapes) and what it computes, as (facts, problems, notes)."""
    checkpoint = checkpoints.lookup(name)
    path = checkpoints.checkpoint_dir() / checkpoint.filename
    fetch = f"python checkpoints_setup.py {checkpoint.name}"
    facts: Facts = {"name": checkpoint.name, "path": str(path), "state": "absent"}
    if not os.path.lexists(path):
        note = Finding(f"the checkpoint {checkpoint.name} is not there yet ({path})", fetch)
        return facts, [], [note]
    try:
        failure = "" if checkpoints.is_verified(name) else "not the published file"
    except OSError as error:
        failure = f"cannot be read: {error.strerror}"
    if failure:
        bad = Finding(f"the checkpoint {path} is bad: {failure}", fetch)
        return facts | {"state": "bad"}, [bad], []
    facts["state"] = "hash verified"
    if torch_works:
        model = checkpoint.name.removesuffix("-v2")
        answers, outcome, _ = ask_torch(["checkpoint", model, str(path)], seconds)
        if outcome.failure:
            bad = Finding(f"the checkpoint {path} does not run: {outcome.failure}", fetch)
            return facts | {"state": "does not run"}, [bad], []
        facts |= answers[0] | {"state": "hash verified, loads and computes"}
    return facts, [], []


# --- processor and disk ----------------------------------------------------------------------


def cpu_facts() -> Facts:
    """Model, cores this process may use, and the instruction sets that matter for training."""
    model, flags = platform.processor() or platform.machine(), ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
            if line.startswith("flags"):
                flags = line
    affinity = getattr(os, "sched_getaffinity", None)
    wanted = {"avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16"}
    return {
        "model": model,
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "instruction_sets": sorted(wanted & set(flags.split())),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
    }


def examine_disk() -> tuple[Facts, list[Finding]]:
    """GiB free where the project and the checkpoints lie."""
    disk: Facts = {}
    problems = []
    for folder in (ROOT, checkpoints.checkpoint_dir().absolute()):
        there = next(path for path in (folder, *folder.parents) if os.path.exists(path))
        free = shutil.disk_usage(there).free / 2**30
        disk[str(folder)] = round(free, 1)
        if free < MIN_FREE_GIB:
            what = f"only {free:.2f} GiB are free at {folder}"
            problems.append(Finding(what, f"free at least {MIN_FREE_GIB:g} GiB: du -sh runs/*"))
    return disk, problems


# --- the whole -------------------------------------------------------------------------------


def examine(checkpoint: str, seconds: float) -> Facts:
    """The whole report, ready for JSON; every step that may hang is given ``seconds``."""
    python, problems, notes = python_facts(), [], []
    if not (3, 10) <= sys.version_info[:2] <= (3, 14):
        what = f"Python {python['version']} is none of 3.10 to 3.14"
        problems.append(Finding(what, REINSTALL))
    if not LOCK.exists():
        notes.append(Finding(f"no {LOCK}: versions were not compared", f"git checkout {LOCK.name}"))
    driver = driver_facts(min(seconds, NVIDIA_SMI_SECONDS))
    torch, devices, imported, found = examine_torch(driver, seconds)
    problems += found
    if torch:
        found, remarks = diagnose(driver, torch, build_here())
        problems, notes = problems + found, notes + remarks
    packages, found = examine_packages(torch is not None, imported, seconds)
    problems += found
    weights, found, remarks = examine_checkpoint(checkpoint, bool(torch), seconds)
    problems, notes = problems + found, notes + remarks
    disk, found = examine_disk()
    problems += found
    report = {
        "python": python,
        "packages": packages,
        "driver": driver,
        "torch": torch,
        "devices": devices,
        "checkpoint": weights,
        "cpu": cpu_facts(),
        "disk": disk,
        "problems": [problem._asdict() for problem in problems],
        "notes": [note._asdict() for note in notes],
        "verdict": verdict(len(problems), torch, devices),
        "healthy": not problems,
    }
    return private(report)  # type: ignore[no-any-return]


def verdict(problems: int, torch: Facts | None, devices: list[Facts]) -> str:
    if problems or not torch:
        return f"broken: {problems} problem{'s' if problems > 1 else ''}."
    if not torch["gpus"]:
        return f"healthy: CPU only (no GPU seen); training will use {torch['threads']} cores."
    cards = ", ".join(device["name"] for device in devices)
    return f"healthy: {torch['gpus']} GPU{'s' if torch['gpus'] > 1 else ''} ({cards})."


def as_text(report: Facts) -> str:
    """The report for a person: a line or two for each part, the verdict at the end."""
    python, driver, torch, cpu = (report[key] for key in ("python", "driver", "torch", "cpu"))
    weights = report["checkpoint"]
    rows = [
        ("python", f"{python['version']}, {python['platform']}, glibc {python['glibc']}"),
        ("venv", python["venv"] or "none: this is the system's Python"),
    ]
    for name, package in report["packages"].items():
        lock = " or ".join(package["locked"]) or "not in it"
        same = "as locked" if package["installed"] in package["locked"] else f"lock: {lock}"
        imports = {True: "imports", False: "DOES NOT IMPORT", None: "import not tried"}
        said = f"{package['installed'] or 'missing'} ({same}), {imports[package['imports']]}"
        rows.append((name, said))
    smi = f"{driver['version'] or 'none seen'} (nvidia-smi {driver['nvidia_smi']})"
    rows.append(("NVIDIA driver", smi))
    if driver["cuda_visible_devices"] is not None:
        rows.append(("", f"CUDA_VISIBLE_DEVICES={driver['cuda_visible_devices']!r}"))
    for card in driver["gpus"]:
        free, total = (card[f"memory_{which}_mib"] or 0 for which in ("free", "total"))
        said = f"{card['name']}, {free / 1024:.1f} of {total / 1024:.1f} GiB free, "
        said += f"compute capability {card['compute_capability'] or 'not told'}"
        rows.append(("", said + (", MIG is on" if card["mig"] else "")))
    if torch:
        arches = " ".join(torch["arch_list"]) or "none"
        rows.append(
            ("torch sees", f"{torch['gpus']} GPUs; CUDA {torch['cuda']}, made for {arches}")
        )
    for device in report["devices"]:
        rows.append((device["device"], device.get("name", cpu["model"])))
        for kernel in device["kernels"]:
            said = kernel.get("failure") or (
                f"{kernel['milliseconds']:9.3f} ms, error {kernel['error']:.0e} "
                f"(at most {kernel['tolerance']:.0e})"
            )
            ok = "ok" if kernel["ok"] else "WRONG"
            rows.append(("", f"{kernel['kernel']:11} {kernel['dtype']:8} {ok:5} {said}"))
        if "matmul_tflops" in device:
            speed = (
                f"{device['matmul_tflops']:g} TFLOP/s in a large {device['matmul_dtype']} matmul"
            )
            rows.append(("", speed))
    sets = ", ".join(cpu["instruction_sets"]) or "no AVX2"
    if torch:
        sets += f"; torch uses {torch['cpu_capability']}"
    threads = cpu["omp_num_threads"] or "not set"
    rows += [
        ("checkpoint", f"{weights['name']}: {weights['state']} ({weights['path']})"),
        ("processor", f"{cpu['model']}, {cpu['cores']} cores, {sets}; OMP_NUM_THREADS {threads}"),
        *(("disk", f"{free} GiB free at {folder}") for folder, free in report["disk"].items()),
    ]
    lines = [f"{label:24}{said}" for label, said in rows]
    lines += ["", *(f"note: {note['what']}\n      {note['mend']}" for note in report["notes"])]
    lines.append(report["verdict"])
    for number, problem in enumerate(report["problems"], 1):
        lines += [f"{number}. {problem['what']}", f"   mend: {problem['mend']}"]
    return "\n".join(lines)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m vqa_repro.doctor", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.add_argument("--checkpoint", default="vgg19", metavar="NAME", help="default: vgg19")
    parser.add_argument(
        "--timeout",
        type=float,
        default=120.0,
        metavar="SECONDS",
        help="for each step that may hang; default 120, more where a first import is slow",
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
    if sys.stderr.isatty():
        print("importing torch; the first time this may take minutes ...", file=sys.stderr)
    report = examine(args.checkpoint, args.timeout)
    print(json.dumps(report, indent=2) if args.json else as_text(report))
    return 0 if report["healthy"] else EXIT_BROKEN


if __name__ == "__main__":
    main_guard(main)
