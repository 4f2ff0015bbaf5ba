"""The NVIDIA driver and its cards, as they show without torch; and why torch may not see them."""

import math
import os
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from vqa_repro.utils.subprocesses import run_limited

REINSTALL = "delete .venv, then ./bootstrap.sh env"
REBOOT = "reboot; if it stays, the driver's own words: sudo dmesg | grep -i -e nvrm -e xid"
CPU_IS_WANTED = "if the CPU is wanted, say so: export CUDA_VISIBLE_DEVICES=''"


class Finding(NamedTuple):
    """A problem, or something worth a note: what there is, and what to do about it."""

    what: str
    fix: str


def driver_facts(seconds: float) -> dict[str, Any]:
    """What the driver says of itself and its cards; memory in MiB, None where it will not say.

    ``nvidia_smi`` is "answers", "not installed" or "failed: why"; it is given ``seconds``.
    """
    proc, module = Path("/proc/driver/nvidia/version"), Path("/sys/module/nvidia/version")
    facts: dict[str, Any] = {
        "nvidia_smi": "not installed",
        "version": None,
        "gpus": [],
        "kernel_driver": proc.exists() or module.exists(),
        # /dev/dxg is how Windows lends its GPU to Linux.
        "device_files": any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists(),
        "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
    }
    program = shutil.which("nvidia-smi")
    if program is None:
        return facts
    fields = ["driver_version", "name", "memory.total", "memory.free"]
    newer = ["compute_cap", "mig.mode.current"]  # for these an older driver refuses it all
    for asked in ([*fields, *newer], fields):
        query = [program, f"--query-gpu={','.join(asked)}", "--format=csv,noheader,nounits"]
        answer = run_limited(query, seconds, dict(os.environ))
        if "not a valid field" not in answer.stdout:
            break
    if answer.failure:
        said = "; ".join(answer.stdout.splitlines()[:2])  # it explains itself on standard output
        return facts | {"nvidia_smi": f"failed: {said or answer.failure}"}
    facts["nvidia_smi"] = "answers"
    for line in answer.stdout.strip().splitlines():
        card = dict(zip(asked, re.split(r"\s*,\s*", line.strip()), strict=False))
        facts["version"] = card["driver_version"]
        facts["gpus"].append(
            {
                "name": card.get("name", "?"),
                "memory_total_mib": _number(card.get("memory.total")),
                "memory_free_mib": _number(card.get("memory.free")),
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


def _release(driver: str | None) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", driver or ""))


# NVIDIA's compatibility table: CUDA 13 needs driver 580, CUDA 12 needs 525.60.13. Then the compute
# capabilities that torch's builds have kernels for; 2.14 is the last torch that has a cu126.
BUILDS = {"cu130": ((580,), 7.5, math.inf), "cu126": ((525, 60, 13), 5.0, 9.0)}


def serves(build: str, driver: str | None, capabilities: list[float]) -> bool:
    """Whether this build of torch runs all these cards, the oldest and the newest, as they are.

    Cards of unknown capability are taken for 7.5, which every build serves.
    """
    needed, lowest, highest = BUILDS[build]
    low, high = min(capabilities, default=7.5), max(capabilities, default=7.5)
    return _release(driver) >= needed and lowest <= low and high <= highest


def build_for(driver: str | None, capabilities: list[float]) -> tuple[str, str]:
    """(the build of torch that runs these cards, ""), or ("", why there is none and the mend)."""
    for build in BUILDS:
        if serves(build, driver, capabilities):
            return build, ""
    low, high = min(capabilities, default=7.5), max(capabilities, default=7.5)
    update = f"the driver is {driver or 'unknown'}; update it to 580 or newer"
    if low < 5:
        return "", f"no build of torch serves compute capability {low}; {CPU_IS_WANTED}"
    if low < 7.5 and high > 9:
        return "", (
            f"no build serves compute capability {low} and {high} at once; hide the older cards "
            "from torch with CUDA_VISIBLE_DEVICES, and say --torch cu130"
        )
    return "", f"{update}; until then, {CPU_IS_WANTED}"


def right_build(driver: str | None, capabilities: list[float]) -> str:
    """The mend for a torch that does not suit the driver or the cards' compute capabilities."""
    build, why = build_for(driver, capabilities)
    if build == "cu130":
        return f"install the locked torch again: {REINSTALL}"
    cu126 = "install torch 2.14 in its CUDA 12.6 build: ./bootstrap.sh env --torch cu126"
    if build and min(capabilities, default=7.5) >= 7.5:
        return f"update the NVIDIA driver to 580 or newer, or {cu126}"
    return cu126 if build else why


def hides_all(visible: str | None) -> bool:
    """Whether this value of CUDA_VISIBLE_DEVICES hides every card."""
    return visible is not None and (not visible.strip() or visible.strip().startswith("-1"))


def bootstrap_lines(driver: dict[str, Any], asked: str) -> list[str]:
    """What bootstrap.sh's check says of the cards, and which build of torch it is to install.

    Lines "ok|TEXT" and "note|TEXT" about the cards; then "build|NAME", NAME empty where no card
    decides, or "none|WHY" where no build runs the cards. ``asked`` is the build that the user has
    named or the environment has, which is taken whatever the cards are, or "auto".
    """
    smi, gpus = driver["nvidia_smi"], driver["gpus"]
    unasked = "" if asked == "auto" else asked
    if smi == "not installed" and not driver["kernel_driver"]:
        return ["ok|none (no nvidia-smi): the CPU will do", f"build|{unasked}"]
    if not gpus:
        what = "nvidia-smi names no card" if smi == "answers" else f"nvidia-smi {smi}"
        if smi == "not installed":
            what = "a driver is loaded, but there is no nvidia-smi here to ask for the cards"
        if "no answer" in smi:
            what = "nvidia-smi gives no answer: the driver hangs; reboot"
        if not unasked:
            what += "; without knowing the cards, the build is cu130 or the bundle's (see --torch)"
        return [f"note|{what}", f"build|{unasked}"]
    lines = []
    for gpu in gpus:
        capability, memory = gpu["compute_capability"], gpu["memory_total_mib"]
        size = "" if memory is None else f", {memory:.0f} MiB"
        capability = "?" if capability is None else capability
        text = f"{gpu['name']}{size}, compute capability {capability}, driver {driver['version']}"
        lines.append(f"ok|{text}")
    if hides_all(driver["cuda_visible_devices"]):
        hidden = f"CUDA_VISIBLE_DEVICES={driver['cuda_visible_devices']!r} hides every card"
        return [*lines, f"note|{hidden}: the CPU will do", f"build|{unasked}"]
    known = [gpu["compute_capability"] for gpu in gpus if gpu["compute_capability"]]
    build, why = build_for(driver["version"], known)
    if unasked == "cpu":
        lines.append("note|torch's build cpu, as asked: the cards stay unused")
    elif unasked and not serves(unasked, driver["version"], known):
        wanted = f"--torch {build} does" if build else why
        lines.append(f"note|torch's build {unasked}, as asked, does not run all of them; {wanted}")
    elif not unasked and build == "cu126":
        lines.append("note|torch's build for CUDA 12.6 (cu126) is the one for this driver and card")
    build = unasked or build
    return [*lines, f"build|{build}" if build else f"none|{why}"]


def diagnose(
    driver: dict[str, Any], torch: dict[str, Any], wanted: str = ""
) -> tuple[list[Finding], list[Finding]]:
    """(problems, notes) about cards that the driver has and torch cannot use.

    ``driver`` as of ``driver_facts``, ``torch`` as of ``kernels_check.torch_facts``; ``wanted`` is
    the build of torch that the user chose.
    """
    smi, gpus = driver["nvidia_smi"], driver["gpus"]
    visible: str | None = driver["cuda_visible_devices"]
    smi_note = [Finding(f"nvidia-smi {smi}", REBOOT)] if smi.startswith("failed") else []
    if torch["gpus"]:
        if torch["gpus"] < len(gpus):
            what = f"torch sees {torch['gpus']} of {len(gpus)} GPUs; CUDA_VISIBLE_DEVICES={visible}"
            smi_note.append(Finding(what, "unset CUDA_VISIBLE_DEVICES to use all"))
        return [], smi_note
    if hides_all(visible):
        what = f"CUDA_VISIBLE_DEVICES={visible!r} hides every GPU"
        return [], [Finding(what, "unset CUDA_VISIBLE_DEVICES to use them")]
    if not gpus and not driver["kernel_driver"]:
        return [], smi_note
    if wanted == "cpu" and torch["cuda"] is None:
        what = "torch is the build for the CPU, as asked: the GPU stays unused"
        return [], [Finding(what, "./bootstrap.sh env --torch cu130, or cu126, to use it")]

    names = f" ({', '.join(gpu['name'] for gpu in gpus)})" if gpus else ""
    capabilities = [gpu["compute_capability"] for gpu in gpus if gpu["compute_capability"]]
    fix = right_build(driver["version"], capabilities)
    needed = (580,) if (torch["cuda"] or "").startswith("13") else (525, 60, 13)
    if gpus and torch["cuda"] is None:
        why = f"torch {torch['version']} is a build without CUDA"
    elif gpus and _release(driver["version"]) < needed:
        why = f"driver {driver['version']} is too old for CUDA {torch['cuda']}"
    elif not driver["device_files"]:
        why = "a driver is there, but no /dev/nvidia* is visible from here"
        fix = f"start the container with its GPUs (docker run --gpus all); {CPU_IS_WANTED}"
    elif not gpus:
        why, fix = f"a driver is loaded, but nvidia-smi {smi}", f"{REBOOT}; {CPU_IS_WANTED}"
    elif visible is not None:
        why, fix = f"CUDA_VISIBLE_DEVICES={visible} names none", "unset CUDA_VISIBLE_DEVICES"
    elif all(gpu["mig"] for gpu in gpus):
        why = "MIG is on, and no MIG instance is there for us"
        fix = "make instances (sudo nvidia-smi mig -cgi ... -C), or sudo nvidia-smi -mig 0"
    else:
        why, fix = torch["warning"] or "it gives no reason", REBOOT
    return [Finding(f"torch cannot use the GPU{names}: {why}", fix)], []


def kernel_mend(failure: str, driver: dict[str, Any], capabilities: list[float]) -> str:
    """What to do about kernels that ended with ``failure`` on cards of these capabilities."""
    if "no kernel image" in failure:
        return right_build(driver["version"], capabilities)
    if "out of memory" in failure:
        return "free the GPU: nvidia-smi lists the processes that hold its memory"
    if "busy or unavailable" in failure:
        return "another process holds the GPU for itself: wait, or sudo nvidia-smi -c DEFAULT"
    if "no answer" in failure:
        return f"again with --timeout 600; if it hangs still, {REBOOT}"
    return f"{REINSTALL}; then {REBOOT}" if driver["gpus"] else REINSTALL
