"""The NVIDIA driver and its cards, as nvidia-smi reports them without torch."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

from vqa_repro.utils.subprocesses import run_limited

# Older drivers reject the whole query if they do not know one of its fields.
FIELDS = ("driver_version", "name", "memory.total", "memory.free")
NEWER_FIELDS = ("compute_cap", "mig.mode.current")
VERSION = re.compile(r"\d+\.\d+(\.\d+)?")


def driver_facts(seconds: float) -> dict[str, Any]:
    """Return what the driver reports: its version and ``gpus``, memory in MiB, None if unknown.

    ``nvidia_smi`` is "answers", "not installed" or "failed: REASON"; it gets ``seconds`` to answer.
    ``remarks`` are the lines of its answer that describe no card: warnings, a card that is lost.
    """
    proc, module = Path("/proc/driver/nvidia/version"), Path("/sys/module/nvidia/version")
    facts: dict[str, Any] = {
        "nvidia_smi": "not installed",
        "version": None,
        "gpus": [],
        "remarks": [],
        "kernel_driver": proc.exists() or module.exists(),
        # /dev/dxg is how Windows lends its GPU to Linux.
        "device_files": any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists(),
        "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
    }
    program = shutil.which("nvidia-smi")
    if program is None:
        return facts
    for fields in ((*FIELDS, *NEWER_FIELDS), FIELDS):
        query = [program, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
        answer = run_limited(query, seconds, dict(os.environ))
        if "not a valid field" not in answer.stdout:
            break
    if answer.failure:
        reason = "; ".join(answer.stdout.splitlines()[:2])  # printed on standard output
        return facts | {"nvidia_smi": f"failed: {reason or answer.failure}"}
    facts["nvidia_smi"] = "answers"
    for line in filter(None, map(str.strip, answer.stdout.splitlines())):
        values = re.split(r"\s*,\s*", line)
        card = dict(zip(fields, values, strict=False))
        lost = card.get("name", "").startswith(("[", "ERR"))  # "[GPU is lost]", "ERR!"
        if lost or len(values) != len(fields) or not VERSION.fullmatch(card["driver_version"]):
            facts["remarks"].append(line)
            continue
        facts["version"] = card["driver_version"]
        facts["gpus"].append(
            {
                "name": card["name"],
                "memory_total_mib": _number(card["memory.total"]),
                "memory_free_mib": _number(card["memory.free"]),
                "compute_capability": _number(card.get("compute_cap")),
                "mig": card.get("mig.mode.current") == "Enabled",
            }
        )
    return facts


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:  # "[N/A]", "[Unknown Error]"
        return None
