"""Facts about the machine and its packages, collected without importing torch."""

import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

from vqa_repro.install.driver import driver_facts
from vqa_repro.install.lockfile import installed_version
from vqa_repro.install.redact import redact
from vqa_repro.utils.subprocesses import run_limited

ROOT = Path(__file__).resolve().parents[2]
NVIDIA_SMI_SECONDS = 30.0

# Distribution -> the module that it provides.
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
    """``value`` with the home folder shown as ~ and without credentials (install/redact.py)."""
    if isinstance(value, dict):
        return {private(key): private(item) for key, item in value.items()}
    if isinstance(value, list):
        return [private(item) for item in value]
    if not isinstance(value, str):
        return value
    home = os.path.expanduser("~")
    if len(Path(home).parts) > 1:
        value = re.sub(r"(?<![\w.-])" + re.escape(home) + r"(?![\w.-])", "~", value)
    return redact(value)


def git_commit() -> str | None:
    """The commit of the project, with "-dirty" behind it if files differ; None outside git."""
    if not (ROOT / ".git").exists():
        return None
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    answer = run_limited([*command, "--exclude=*"], 10, dict(os.environ))
    return None if answer.failure else answer.stdout.strip()


def python_facts() -> Facts:
    return {
        "version": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "glibc": platform.libc_ver()[1] or None,
        "venv": sys.prefix if sys.prefix != sys.base_prefix else None,
    }


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
