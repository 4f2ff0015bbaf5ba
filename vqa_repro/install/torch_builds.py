"""The builds of torch that can be installed, and which of them runs the cards of this machine.

Sources: NVIDIA's CUDA compatibility tables for the drivers; ``torch.cuda.get_arch_list()`` of each
build for the compute capabilities; the wheels in the package index for the Pythons.
"""

import math
import os
import platform
import re
import sys
from typing import Any, NamedTuple

from vqa_repro.install.lockfile import lock_of

USE_CPU = "to run on the CPU, export CUDA_VISIBLE_DEVICES=''"
LAST_FOR_OLD_CARDS = 580  # the last driver branch for compute capabilities below 7.5


class Build(NamedTuple):
    """A CUDA build of torch, as its lock file pins it."""

    cuda: str
    torch: str
    lowest: float  # compute capabilities that it has kernels for
    highest: float
    driver: tuple[int, ...]  # the oldest that runs it
    newest_python: int  # minor version
    machines: tuple[str, ...]  # of Linux


# In order of preference.
BUILDS = {
    "cu130": Build("13", "the newest torch", 7.5, math.inf, (580,), 15, ("x86_64", "aarch64")),
    "cu128": Build("12.8", "torch 2.10.0", 7.0, math.inf, (525, 60, 13), 14, ("x86_64",)),
    "cu126": Build("12.6", "torch 2.7.1", 5.0, 9.9, (525, 60, 13), 13, ("x86_64",)),
}
CHOICES = (*BUILDS, "cpu")
BLACKWELL, BLACKWELL_DRIVER = 10.0, (570,)  # no older driver knows these cards


def release(version: str | None) -> tuple[int, ...]:
    """Return the numbers of a version: "525.60.13" -> (525, 60, 13); () for None."""
    return tuple(int(part) for part in re.findall(r"\d+", version or ""))


def extremes(capabilities: list[float]) -> tuple[float, float]:
    """Return the lowest and highest compute capability; 7.5, which all builds have, if unknown."""
    return min(capabilities, default=7.5), max(capabilities, default=7.5)


def runs(name: str, driver: str | None, capabilities: list[float]) -> bool:
    """Return whether build ``name`` runs all cards of these capabilities under this driver."""
    build = BUILDS[name]
    low, high = extremes(capabilities)
    oldest = max(build.driver, BLACKWELL_DRIVER) if high >= BLACKWELL else build.driver
    return release(driver) >= oldest and build.lowest <= low and high <= build.highest


def choose(
    driver: str | None, capabilities: list[float], machine: str | None = None
) -> tuple[str, str]:
    """Return (build, "") for these cards, or ("", the reason why there is none and the fix).

    machine: the processor, as ``platform.machine()`` says.
    """
    machine = machine or platform.machine()
    here = [name for name in BUILDS if machine in BUILDS[name].machines]
    for name in here:
        if runs(name, driver, capabilities):
            return name, ""
    low, high = extremes(capabilities)
    lowest = min(BUILDS[name].lowest for name in here) if here else 7.5
    if low < lowest:
        return "", f"no build of torch supports compute capability {low}; {USE_CPU}"
    if not any(runs(name, "9999", capabilities) for name in here):
        return "", (
            f"no build of torch supports compute capabilities {low} and {high} together; hide the "
            "older cards with CUDA_VISIBLE_DEVICES and use --torch cu128 (7.0 and newer) or "
            "--torch cu126 (5.0 to 9.0)"
        )
    return "", f"the driver is {driver or 'unknown'}; {driver_advice(low, high, here)}; {USE_CPU}"


def driver_advice(low: float, high: float, names: list[str]) -> str:
    """Return which driver the cards need. Cards below 7.5 are not supported after branch 580."""
    supporting = [n for n in names if BUILDS[n].lowest <= low and high <= BUILDS[n].highest]
    oldest = min((BUILDS[name].driver for name in supporting), default=(580,))
    if high >= BLACKWELL:
        oldest = max(oldest, BLACKWELL_DRIVER)
    text = f"update it to {'.'.join(map(str, oldest))} or newer"
    if low < 7.5:
        text += f" (up to the branch {LAST_FOR_OLD_CARDS}, the last one for this card)"
    return text


def reinstall_advice(driver: str | None, capabilities: list[float]) -> str:
    """Return the fix for an installed torch that does not suit the driver or the cards."""
    name, reason = choose(driver, capabilities)
    if not name:
        return reason
    return f"install {BUILDS[name].torch} for CUDA {BUILDS[name].cuda}: {command(name)}"


def how_to_have(name: str) -> str:
    """Return how to have the lock of build ``name`` where its file is missing."""
    if name in BUILDS:
        return f"it is part of the project: git checkout {lock_of(name)}, or copy it from a clone"
    return (
        f"make it where its packages can be reached (.venv/bin/python .ci/make_lock.py --torch "
        f"{name}, after ./bootstrap.sh env), then copy it here"
    )


def command(name: str) -> str:
    return f"./bootstrap.sh env --torch {name}"


def python_problem(name: str, python: tuple[int, int]) -> str:
    """Return why the lock of build ``name`` cannot be installed for this Python; "" if it can."""
    build = BUILDS.get(name)
    if build is None or python[1] <= build.newest_python:
        return ""
    return (
        f"{build.torch} (build {name}) has no wheels for Python {python[0]}.{python[1]}; "
        f"use --python 3.{build.newest_python} or older"
    )


def hides_all(visible: str | None) -> bool:
    """Return whether this value of CUDA_VISIBLE_DEVICES hides every card."""
    return visible is not None and (not visible.strip() or visible.strip().startswith("-1"))


class Advice(NamedTuple):
    """What the check says about the cards, and which build of torch to install."""

    rows: list[tuple[str, str]]  # ("ok" or "note", a text about the cards)
    build: str = ""  # "" also where no card decides
    problem: str = ""  # why no build runs the cards


def advise(driver: dict[str, Any], requested: str, offered: str = "") -> Advice:
    """Look at the cards, and settle on a build of torch.

    ``driver`` comes from ``driver_facts``. ``requested`` is the build that the user named or that
    the environment has, which is used whatever the cards are, or "auto". ``offered`` is the
    bundle's build, "" without a bundle: "auto" prefers it to others that run the cards.
    """
    smi, gpus = driver["nvidia_smi"], driver["gpus"]
    explicit = "" if requested == "auto" else requested
    notes = [("note", f"nvidia-smi: {line}") for line in driver["remarks"]]
    if smi == "not installed" and not driver["kernel_driver"]:
        return Advice([("ok", "none (no nvidia-smi): the CPU is used")], explicit)
    if not gpus:
        default = "" if explicit else "; torch's build is cu130 or the bundle's (see --torch)"
        return Advice([*notes, ("note", f"{without_cards(smi)}{default}")], explicit)
    rows = [*(("ok", card_text(gpu, driver["version"])) for gpu in gpus), *notes]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", driver["cuda_visible_devices"])
    if hides_all(visible):
        text = f"CUDA_VISIBLE_DEVICES={visible!r} hides every card: the CPU is used"
        return Advice([*rows, ("note", text)], explicit)
    known = [gpu["compute_capability"] for gpu in gpus if gpu["compute_capability"]]
    name, reason = choose(driver["version"], known)
    if offered in BUILDS and runs(offered, driver["version"], known):
        name, reason = offered, ""
    if explicit == "cpu":
        rows.append(("note", "torch's build cpu was requested: the cards are not used"))
    elif explicit and not runs(explicit, driver["version"], known):
        better = f"--torch {name} does" if name else reason
        rows.append(("note", f"the requested build {explicit} does not run all cards; {better}"))
    elif not explicit and name in BUILDS and name != "cu130":
        build = BUILDS[name]
        text = f"build {name} ({build.torch}, CUDA {build.cuda}) suits driver and cards"
        rows.append(("note", text))
    name = explicit or name
    problem = reason if not name else python_problem(name, sys.version_info[:2])
    return Advice(rows, problem=problem) if problem else Advice(rows, name)


def without_cards(smi: str) -> str:
    """Return the note for a driver whose cards are unknown."""
    if smi == "answers":
        return "nvidia-smi lists no usable card"
    if smi == "not installed":
        return "a driver is loaded, but there is no nvidia-smi to query it"
    if "no answer" in smi:
        return "nvidia-smi does not answer: the driver hangs; reboot"
    return f"nvidia-smi {smi}"


def card_text(gpu: dict[str, Any], version: str | None) -> str:
    capability, memory = gpu["compute_capability"], gpu["memory_total_mib"]
    size = "" if memory is None else f", {memory:.0f} MiB"
    capability = "unknown" if capability is None else capability
    return f"{gpu['name']}{size}, compute capability {capability}, driver {version}"
