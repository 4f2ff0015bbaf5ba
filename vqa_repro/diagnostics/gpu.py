"""Why torch cannot use the cards that the driver reports, and how to fix it."""

import re
from typing import Any, NamedTuple

from vqa_repro.install.torch_builds import BUILDS, USE_CPU, hides_all, reinstall_advice, release

REINSTALL = "delete .venv, then ./bootstrap.sh env"
SYNC = "./bootstrap.sh env, which installs what the lock names"
REBOOT = "reboot; if it persists, see the driver's messages: sudo dmesg | grep -i -e nvrm -e xid"
# CUDA's own error codes that no setting of CUDA_VISIBLE_DEVICES causes (cudaError_t).
CUDA_NO_DEVICE = (100, 101)  # no device, invalid device ordinal
CUDA_FIXES = {
    46: "another process uses the GPU exclusively: wait, or sudo nvidia-smi -c DEFAULT",
    802: "the NVSwitch fabric is not up: sudo systemctl restart nvidia-fabricmanager",
    803: "libcuda and the kernel driver differ: unset LD_LIBRARY_PATH if it names a CUDA "
    "compatibility folder; otherwise reboot after the driver update",
    804: "a CUDA compatibility library is first in LD_LIBRARY_PATH: unset LD_LIBRARY_PATH",
    999: f"sudo modprobe -r nvidia_uvm && sudo modprobe nvidia_uvm; or {REBOOT}",
}


class Finding(NamedTuple):
    """A problem or a note: what is the case, and what to do about it."""

    what: str
    fix: str


def diagnose(
    driver: dict[str, Any], torch: dict[str, Any], requested: str = ""
) -> tuple[list[Finding], list[Finding]]:
    """Return (problems, notes) about cards that the driver reports and torch cannot use.

    ``driver`` comes from ``driver_facts``, ``torch`` from ``kernel_check.torch_facts``;
    ``requested`` is the build of torch that the user chose.
    """
    smi, gpus = driver["nvidia_smi"], driver["gpus"]
    visible: str | None = driver["cuda_visible_devices"]
    notes = [Finding(f"nvidia-smi {smi}", REBOOT)] if smi.startswith("failed") else []
    notes += [Finding(f"nvidia-smi: {line}", REBOOT) for line in driver["remarks"]]
    if torch["gpus"]:
        if torch["gpus"] < len(gpus):
            what = f"torch sees {torch['gpus']} of {len(gpus)} GPUs; CUDA_VISIBLE_DEVICES={visible}"
            notes.append(Finding(what, "unset CUDA_VISIBLE_DEVICES to use all"))
        return [], notes
    if hides_all(visible):
        what = f"CUDA_VISIBLE_DEVICES={visible!r} hides every GPU"
        return [], [Finding(what, "unset CUDA_VISIBLE_DEVICES to use them")]
    if not gpus and not driver["kernel_driver"]:
        return [], notes
    if requested == "cpu" and torch["cuda"] is None:
        what = "torch is the build for the CPU, as requested: the GPU is not used"
        return [], [Finding(what, "to use it: ./bootstrap.sh env --torch auto")]
    reason, fix = refusal(driver, torch)
    names = f" ({', '.join(gpu['name'] for gpu in gpus)})" if gpus else ""
    return [Finding(f"torch cannot use the GPU{names}: {reason}", fix)], []


def refusal(driver: dict[str, Any], torch: dict[str, Any]) -> tuple[str, str]:
    """Return (reason, fix) for cards that torch does not see."""
    gpus, visible, warning = driver["gpus"], driver["cuda_visible_devices"], torch["warning"] or ""
    error = re.search(r"Error (\d+)", warning)
    code = int(error[1]) if error else 0
    advice = reinstall_advice(
        driver["version"], [g["compute_capability"] for g in gpus if g["compute_capability"]]
    )
    if code in CUDA_FIXES:
        return warning, CUDA_FIXES[code]
    if gpus and torch["cuda"] is None:
        return f"torch {torch['version']} is a build without CUDA", advice
    if gpus and release(driver["version"]) < oldest_driver(torch["cuda"]):
        return f"driver {driver['version']} is too old for CUDA {torch['cuda']}", advice
    if not driver["device_files"]:
        reason = "a driver is loaded, but no /dev/nvidia* is visible from here"
        return reason, f"start the container with its GPUs (docker run --gpus all); {USE_CPU}"
    if not gpus:
        reason = f"a driver is loaded, but nvidia-smi {driver['nvidia_smi']}"
        return reason, f"{REBOOT}; {USE_CPU}"
    if all(gpu["mig"] for gpu in gpus) and visible is None:
        reason = "MIG is enabled, and there is no MIG instance to use"
        fix = "create instances (sudo nvidia-smi mig -cgi ... -C), or sudo nvidia-smi -mig 0"
        return reason, fix
    if visible is not None and code in (0, *CUDA_NO_DEVICE):  # else CUDA's own trouble
        detail = f" ({warning})" if warning else ""
        reason = f"no card matches CUDA_VISIBLE_DEVICES={visible!r}{detail}"
        return reason, "unset CUDA_VISIBLE_DEVICES, or set it to numbers: 0,1"
    return warning or "it gives no reason", REBOOT


def oldest_driver(cuda: str | None) -> tuple[int, ...]:
    """Return the oldest driver that runs this version of CUDA."""
    major = (cuda or "").partition(".")[0]
    return min((b.driver for b in BUILDS.values() if b.cuda.startswith(major)), default=(580,))


def kernel_fix(failure: str, driver: dict[str, Any], capabilities: list[float]) -> str:
    """Return what to do about kernels that failed with ``failure`` on cards like these."""
    if "no kernel image" in failure:
        return reinstall_advice(driver["version"], capabilities)
    if "out of memory" in failure:
        return "free the GPU: nvidia-smi lists the processes that use its memory"
    if "busy or unavailable" in failure:
        return CUDA_FIXES[46]
    if "no answer" in failure:
        return f"retry with --timeout 600; if it still hangs, {REBOOT}"
    return f"{REINSTALL}; then {REBOOT}" if driver["gpus"] else REINSTALL
