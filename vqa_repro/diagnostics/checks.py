"""Checks of the environment: each returns facts, and findings that name a fix.

Nothing here imports torch: whatever may crash or hang runs in a process of its own with a time
limit.
"""

import json
import os
import shutil
import sys
from pathlib import Path

from vqa_repro.diagnostics.facts import (
    NVIDIA_SMI_SECONDS,
    PACKAGES,
    ROOT,
    Facts,
    cpu_facts,
    private,
    python_facts,
)
from vqa_repro.diagnostics.gpu import REINSTALL, SYNC, Finding, diagnose, kernel_fix
from vqa_repro.diagnostics.installed import check_installed_files
from vqa_repro.diagnostics.variables import MIN_ADDRESS_SPACE, check_variables
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
from vqa_repro.utils.errors import address_space_limit
from vqa_repro.utils.plurals import plural
from vqa_repro.utils.subprocesses import ProcessResult, run_limited

LOCK = ROOT / lock_of(build_here())
MIN_FREE_GIB = 1.0


def examine(checkpoint: str, seconds: float, deep: bool = False) -> Facts:
    """Return the whole report, ready for JSON; each step that may hang is given ``seconds``.

    ``deep`` compares the hashes of all installed files, not only their sizes.
    """
    python, problems, notes = python_facts(), [], []
    if not (3, 10) <= sys.version_info[:2] <= (3, 15):
        what = f"Python {python['version']} is none of 3.10 to 3.15"
        problems.append(Finding(what, REINSTALL))
    if not LOCK.exists():
        notes.append(Finding(f"no {LOCK}: versions were not compared", f"git checkout {LOCK.name}"))
    driver = driver_facts(min(seconds, NVIDIA_SMI_SECONDS))
    torch, devices, imported, found = examine_torch(driver, seconds)
    problems += found
    if torch:
        found, remarks = diagnose(driver, torch, build_here())
        problems, notes = problems + found, notes + remarks
    locked = read_lock(LOCK.read_text(encoding="utf-8")) if LOCK.exists() else {}
    packages, found = examine_packages(torch is not None, imported, seconds, locked)
    problems += found
    found, remarks = check_variables(torch is not None)
    # These two first: they may be why others fail.
    problems = found + check_installed_files(set(locked), deep) + problems
    notes += remarks
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
        return f"broken: {problems} {plural(problems, 'problem', 'problems')}."
    if not torch["gpus"]:
        cores = f"{torch['threads']} {plural(torch['threads'], 'core', 'cores')}"
        return f"healthy: CPU only (no GPU seen); training will use {cores}."
    cards = ", ".join(device["name"] for device in devices)
    return f"healthy: {torch['gpus']} {plural(torch['gpus'], 'GPU', 'GPUs')} ({cards})."


def examine_packages(
    torch_imports: bool, imported: set[str], seconds: float, locked: dict[str, set[str]]
) -> tuple[Facts, list[Finding]]:
    """Each package's version, the lock's, and whether it imports (None: that was not tried).

    What is not among the modules ``imported`` already is tried in a process of its own.
    """
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
                problems.append(Finding(what, import_fix(failure)))
        versions = {"installed": installed_version(name), "locked": sorted(locked.get(name, ()))}
        packages[name] = {**versions, "imports": imports}
    if differing := differences(locked):
        problems.append(Finding(f"not as in {LOCK.name}: {'; '.join(differing)}", SYNC))
    return packages, problems


def import_fix(failure: str) -> str:
    if (address_space_limit() or MIN_ADDRESS_SPACE) < MIN_ADDRESS_SPACE:
        return "raise the limit of virtual memory (ulimit -v unlimited), then run the doctor again"
    if check_variables(True)[0]:  # PYTHONPATH: reinstalling would not help
        return "unset PYTHONPATH, then run the doctor again"
    if "no answer" in failure:
        return "a first import from a network disk may take minutes: again with --timeout 600"
    if ".so" in failure and "LD_LIBRARY_PATH" in os.environ:
        return f"unset LD_LIBRARY_PATH, which may bring other libraries; then {REINSTALL}"
    if "No module" in failure and sys.prefix == sys.base_prefix:
        return "this is the system's Python; ./bootstrap.sh env, then .venv/bin/python"
    return REINSTALL


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
    """Return torch's facts, each device and its kernels, the other modules that import, problems.

    No facts: it does not import.
    """
    answers, outcome, imported = ask_torch(["machine", *PACKAGES.values()], seconds)
    if not imported:
        what = f"torch does not import: {outcome.failure}"
        return None, [], set(), [Finding(what, import_fix(outcome.failure))]
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
    try:
        checkpoints.require_absolute_dir()
    except InstallError as error:
        return facts, [], [Finding(error.what, error.next)]
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


def examine_disk() -> tuple[Facts, list[Finding]]:
    """GiB free where the project and the checkpoints lie."""
    disk: Facts = {}
    problems = []
    for folder in filter(Path.is_absolute, (ROOT, checkpoints.checkpoint_dir())):
        there = next(path for path in (folder, *folder.parents) if os.path.exists(path))
        free = shutil.disk_usage(there).free / 2**30
        disk[str(folder)] = round(free, 1)
        if free < MIN_FREE_GIB:
            what = f"only {free:.2f} GiB are free at {folder}"
            problems.append(Finding(what, f"free at least {MIN_FREE_GIB:g} GiB: du -sh runs/*"))
    return disk, problems
