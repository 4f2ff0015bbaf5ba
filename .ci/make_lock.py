"""Make the lock files from pyproject.toml, or check that they are up to date.

    python .ci/make_lock.py            # keep the pins, add and drop what pyproject.toml changed
    python .ci/make_lock.py --upgrade  # newest versions of everything
    python .ci/make_lock.py --check    # change nothing; exit 1 if a lock is out of date
    python .ci/make_lock.py --torch cpu     # requirements-cpu.lock, from PyTorch's download site

A universal lock serves Linux, macOS and Windows and every supported Python. It contains the hashes
of wheels only, so an installer that requires hashes cannot use a source distribution: building is
impossible, not merely switched off. It contains no address, so any mirror of the index will do.

Three locks, one for each CUDA build of torch in the ordinary package index:

    requirements.lock        cu130: the newest torch (CUDA 13)
    requirements-cu128.lock  cu128: torch 2.10.0 (CUDA 12.8), the last one for V100 and for drivers
                             older than 580
    requirements-cu126.lock  cu126: torch 2.7.1 (CUDA 12.6), the last one for Maxwell and Pascal

The last two serve Linux x86_64; apart from torch and what it pins, they share the versions of
requirements.lock. A build without CUDA exists on PyTorch's own download site only: make its lock
with --torch cpu where that site can be reached.

wordnet.lock names one package that is installed for its data files alone, without dependencies.

Exit codes: 0 made or up to date; 1 a lock differs or cannot be made; 3 no package index could be
reached, so nothing was compiled.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

try:
    from packaging.markers import Marker
    from packaging.tags import Tag, compatible_tags, cpython_tags, mac_platforms
    from packaging.utils import parse_wheel_filename

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
except ImportError as error:
    sys.exit(f"error: {error}: run this with the environment's Python, .venv/bin/python")

PROJECT = Path(__file__).resolve().parent.parent
PYPROJECT = PROJECT / "pyproject.toml"
# What uv compiles each lock from.
TRAINING = ["pyproject.toml", "--group", "dev", "--group", "installer"]
LOCKS = {
    PROJECT / "requirements.lock": TRAINING,
    PROJECT / "requirements-cu128.lock": TRAINING,
    PROJECT / "requirements-cu126.lock": TRAINING,
    PROJECT / "wordnet.lock": ["--group", "wordnet", "--no-deps"],
    PROJECT / "jupyter.lock": ["--group", "jupyter"],
    PROJECT / "docs.lock": ["--group", "docs"],
}
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14", "3.15")
DOWNLOAD_SITE = "https://download.pytorch.org/whl/"


class Build(NamedTuple):
    """A build of torch besides that of requirements.lock, and what its lock must serve."""

    systems: tuple[str, ...]
    pythons: tuple[str, ...]
    versions: Mapping[str, str] = MappingProxyType({})  # as the ordinary index has them


BUILDS = {
    "cu128": Build(("Linux x86_64",), PYTHONS[:-1], {"torch": "2.10.0", "torchvision": "0.25.0"}),
    "cu126": Build(("Linux x86_64",), PYTHONS[:-2], {"torch": "2.7.1", "torchvision": "0.22.1"}),
    "cpu": Build(("Linux x86_64", "Linux aarch64"), PYTHONS),
}
# Each system a lock must serve: values of its markers, and the platform tags it can install.
SYSTEMS = {
    "Linux x86_64": ("linux", "Linux", "x86_64", "manylinux_2_{}_x86_64", range(28, 4, -1)),
    "Linux aarch64": ("linux", "Linux", "aarch64", "manylinux_2_{}_aarch64", range(28, 16, -1)),
    "macOS arm64": ("darwin", "Darwin", "arm64", "macosx_{}_0_arm64", range(14, 10, -1)),
    "Windows x86_64": ("win32", "Windows", "AMD64", "win_amd64", range(1)),
}
# glibc versions that have an older second name.
ALIASES = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
NO_NETWORK = re.compile(
    r"error sending request|dns error|connect|timed? ?out|Failed to fetch|offline", re.IGNORECASE
)


class NoNetwork(Exception):
    """No package index answered."""


def dependencies_digest(pyproject: Path = PYPROJECT) -> str:
    """sha256 of the tables that the locks are made from."""
    table = tomllib.loads(pyproject.read_text(encoding="utf-8"))
    inputs = [
        table["project"]["requires-python"],
        table["project"]["dependencies"],
        table["dependency-groups"],
        table.get("tool", {}).get("uv", {}),
    ]
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def pyproject_for(build: str, index: str) -> str:
    """Return pyproject.toml for uv, with torch in this build and for its systems only."""
    newest = int(BUILDS[build].pythons[-1].removeprefix("3."))
    environments = [
        f"sys_platform == 'linux' and platform_machine == '{SYSTEMS[system][2]}' "
        f"and python_full_version < '3.{newest + 1}' "
        "and platform_python_implementation == 'CPython'"
        for system in BUILDS[build].systems
    ]
    pins = [f"{name}=={version}" for name, version in BUILDS[build].versions.items()]
    text = PYPROJECT.read_text(encoding="utf-8")
    uv_table = f"""
[tool.uv]
environments = {json.dumps(environments)}
constraint-dependencies = {json.dumps(pins)}
"""
    if pins:  # from the ordinary index
        return text + uv_table
    return f"""{text}{uv_table}
[[tool.uv.index]]
name = "torch"
url = {json.dumps(index)}
explicit = true
[tool.uv.sources]
torch = {{ index = "torch" }}
torchvision = {{ index = "torch" }}
"""


def uv(*arguments: str | Path, cwd: Path = PROJECT) -> None:
    """Run the uv of this environment; its error, or NoNetwork, where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "uv", "--quiet", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
    )
    if done.returncode == 0:
        return
    # 1 is uv's "these requirements have no solution"; everything else may be the network.
    if done.returncode != 1 and NO_NETWORK.search(done.stderr):
        raise NoNetwork(done.stderr.strip())
    sys.exit(f"error: uv could not compile pyproject.toml:\n{done.stderr.strip()}")


def lock_of(build: str) -> Path:
    return PROJECT / f"requirements-{build}.lock"


def compile_lock(lock: Path, upgrade: bool, index: str = "") -> str:
    """Return the text of ``lock``; a build of torch without a version comes from ``index``."""
    build = next((name for name in BUILDS if lock == lock_of(name)), "")
    inputs = LOCKS.get(lock, TRAINING)
    compiling = ["pip", "compile", "--universal", "--generate-hashes", "--python-version"]
    compiling += [PYTHONS[0], *inputs, "--no-annotate", "--no-header"]
    with tempfile.TemporaryDirectory() as folder:
        requirements, pylock = Path(folder, "requirements.txt"), Path(folder, "pylock.toml")
        # uv prefers the versions (and the hashes) of the file it is about to overwrite.
        pinned = PROJECT / "requirements.lock" if build else lock
        if pinned.exists() and not upgrade:
            requirements.write_bytes(pinned.read_bytes())
        where = PROJECT
        if build:
            where = Path(folder)
            (where / "pyproject.toml").write_text(pyproject_for(build, index), encoding="utf-8")
        uv(*compiling, "-o", requirements, cwd=where)
        # The same resolution once more, in the format that tells wheels from source archives.
        again = ["--constraint", requirements, "--format", "pylock.toml", "-o", pylock]
        uv(*compiling, *again, cwd=where)
        wheels = wheels_of(tomllib.loads(pylock.read_text(encoding="utf-8")))
        served = BUILDS.get(build, Build(tuple(SYSTEMS), PYTHONS))
        text = requirements.read_text(encoding="utf-8")
        body, problems = keep_wheels(text, wheels, served.systems, served.pythons)
    if build == "cpu" and not re.search(rf"(?m)^torch==\S*\+{build}\b", body):
        problems.append(f"{index} has no torch of the build {build}")
    if problems:
        sys.exit(f"error: no {lock.name}, because\n  " + "\n  ".join(problems))
    header = [
        "# Made by `python .ci/make_lock.py` from pyproject.toml; do not edit by hand.",
        "# Hashes of wheels only: nothing can be built from source.",
        f"# dependencies sha256: {dependencies_digest()}",
    ]
    if build:
        source = ", from PyTorch's download site" if build == "cpu" else ""
        header.append(f"# The {build} build of torch{source}; for {', '.join(served.systems)}.")
    if "--no-deps" in inputs:
        header.append("# Without dependencies: install it with --no-deps.")
    return "\n".join([*header, body])


def wheels_of(pylock: dict[str, Any]) -> dict[tuple[str, str], dict[str, str]]:
    """(name, version) -> {"sha256:...": file name} of its wheels."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for package in pylock["packages"]:
        files = found.setdefault((package["name"], package["version"]), {})
        for wheel in package.get("wheels", []):
            name = wheel.get("name") or wheel["url"].rsplit("/", 1)[1]
            files["sha256:" + wheel["hashes"]["sha256"]] = name.replace("%2B", "+")
    return found


def keep_wheels(
    text: str,
    wheels: dict[tuple[str, str], dict[str, str]],
    systems: Iterable[str] = SYSTEMS,
    pythons: Iterable[str] = PYTHONS,
) -> tuple[str, list[str]]:
    """The requirements without the hashes of source archives, and what is wrong with them."""
    lines, problems = [], []
    for entry in text.replace(" \\\n    ", " ").splitlines():
        requirement, *hashes = entry.split(" --hash=")
        name, version = re.split("==| ;|$", requirement, maxsplit=2)[:2]
        known = wheels.get((name, version.strip()), {})
        kept = [value for value in map(str.strip, hashes) if value in known]
        lines.append(" \\\n    ".join([requirement, *(f"--hash={value}" for value in kept)]))
        problems += uncovered(requirement, [known[value] for value in kept], systems, pythons)
    return "\n".join(lines) + "\n", problems


@cache
def usable_tags(system: str, python: str) -> frozenset[Tag]:
    """Return the tags of the wheels that this Python can install on this system."""
    sys_platform, _, machine, pattern, versions = SYSTEMS[system]
    platforms = [pattern.format(version) for version in versions]
    if sys_platform == "linux":
        platforms += [f"{ALIASES[v]}_{machine}" for v in versions if v in ALIASES]
    if sys_platform == "darwin":  # wheels for both of its processors
        platforms += [tag for tag in mac_platforms((14, 0), machine) if "universal2" in tag]
    version = tuple(map(int, python.split(".")))
    interpreter = "cp" + python.replace(".", "")
    return frozenset(
        (
            *cpython_tags(version, platforms=platforms),
            *compatible_tags(version, interpreter, platforms),
        )
    )


def uncovered(
    requirement: str,
    files: list[str],
    systems: Iterable[str] = SYSTEMS,
    pythons: Iterable[str] = PYTHONS,
) -> list[str]:
    """Return the systems and Pythons that need this requirement but have no wheel of it."""
    marker = requirement.partition(" ; ")[2]
    tags = {tag for file in files for tag in parse_wheel_filename(file)[3]}
    missing = []
    for system in systems:
        sys_platform, platform_system, machine, *_ = SYSTEMS[system]
        for python in pythons:
            environment = {
                "sys_platform": sys_platform,
                "platform_system": platform_system,
                "platform_machine": machine,
                "os_name": "nt" if sys_platform == "win32" else "posix",
                "python_version": python,
                "python_full_version": python + ".0",
                "platform_python_implementation": "CPython",
                "implementation_name": "cpython",
            }
            if marker and not Marker(marker).evaluate(environment):
                continue
            if not tags & usable_tags(system, python):
                missing.append(f"{requirement}: no wheel for {system}, Python {python}")
    return missing


def main() -> int:
    description = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(description=description)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="change nothing; exit 1 if outdated")
    what.add_argument("--upgrade", action="store_true", help="newest versions of everything")
    parser.add_argument("--torch", choices=BUILDS, help="the lock of this build of torch instead")
    parser.add_argument("--torch-index", metavar="URL", help="another index that has this build")
    arguments = parser.parse_args()
    build = arguments.torch or ""
    index = arguments.torch_index or DOWNLOAD_SITE + build
    locks = [lock_of(build)] if build else list(LOCKS)
    try:
        texts = {lock: compile_lock(lock, arguments.upgrade, index) for lock in locks}
    except NoNetwork as reason:
        print(f"not compiled: no package index was reached\n{reason}", file=sys.stderr)
        return 3
    code = 0
    for lock, text in texts.items():
        if not arguments.check:
            scratch = lock.with_name(f"{lock.name}.{os.getpid()}")
            scratch.write_text(text, encoding="utf-8")
            scratch.replace(lock)
            print(f"{lock.name}: {text.count('--hash=')} wheels")
        elif lock.exists() and lock.read_text(encoding="utf-8") == text:
            print(f"{lock.name} is what pyproject.toml compiles to, and holds wheels only")
        else:
            print(f"{lock.name} is not what pyproject.toml compiles to;", file=sys.stderr)
            again = f"python .ci/make_lock.py{f' --torch {build}' if build else ''}"
            print(f"make it again: {again}", file=sys.stderr)
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
