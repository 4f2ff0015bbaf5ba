"""What the locks name, for this Python or another; and what is installed instead.

Needs nothing but Python: bundles are made and read before there is an environment.
"""

import ast
import importlib.metadata
import operator
import os
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vqa_repro.utils.errors import UserError

HERE = "{}.{}.{}".format(*sys.version_info)


class Entry(NamedTuple):
    """A package that a lock names."""

    name: str
    version: str
    hashes: frozenset[str]  # sha256, of its wheels for all platforms


def lock_of(build: str) -> str:
    """The name of the lock that has this build of torch."""
    return "requirements.lock" if build == "cu130" else f"requirements-{build}.lock"


def build_here() -> str:
    """The build of torch that bootstrap.sh meant this environment to have."""
    try:
        stamp = Path(sys.prefix, ".finished").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "cu130"
    found = re.search(r"(?m)^torch (cu128|cu126|cpu)$", stamp)
    return found[1] if found else "cu130"


def entries(text: str, python: str = HERE) -> Iterator[Entry]:
    """What the lock names for this Python (3.X.Y) on this machine."""
    for line in text.replace("\\\n", "").splitlines():
        if line.startswith("#") or not line.strip():
            continue
        left, *hashes = re.split(r"\s+--hash=sha256:", line.strip())
        requirement, _, marker = map(str.strip, left.partition(";"))
        if applies(marker, python):
            name, _, version = requirement.partition("==")
            yield Entry(name, version, frozenset(map(str.strip, hashes)))


def read_lock(text: str) -> dict[str, set[str]]:
    """name -> versions the lock allows here."""
    allowed: dict[str, set[str]] = {}
    for entry in entries(text):
        allowed.setdefault(entry.name, set()).add(entry.version)
    return allowed


def differences(allowed: dict[str, set[str]]) -> list[str]:
    """What is installed otherwise than locked, one phrase a package.

    Versions are compared as written: by PEP 440, "2.9+cpu" would satisfy "==2.9", yet it is
    another build.
    """
    phrases = []
    for name, versions in sorted(allowed.items()):
        installed = installed_version(name)
        if installed not in versions:
            phrases.append(f"{name} is {installed or 'missing'}, not {' or '.join(versions)}")
    return phrases


def installed_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


COMPARISONS = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


def applies(marker: str, python: str) -> bool:
    """Whether a lock's marker (PEP 508) holds for this Python (3.X.Y) on this machine.

    What the locks use of markers is also an expression of Python, so Python's own parser reads it;
    nothing is evaluated. Raises UserError for any other.
    """
    names = {
        "python_full_version": python,
        "python_version": python.rpartition(".")[0],
        "sys_platform": sys.platform,
        "platform_system": platform.system(),
        "platform_machine": platform.machine(),
        "os_name": os.name,
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
    }

    def holds(node: ast.expr) -> bool:
        match node:
            case ast.BoolOp(op=ast.And()):
                return all(map(holds, node.values))
            case ast.BoolOp():
                return any(map(holds, node.values))
            case ast.Compare(
                left=ast.Name(id=name), ops=[op], comparators=[ast.Constant(value=str(value))]
            ) if name in names and type(op) in COMPARISONS:
                ours: Any = names[name]
                other: Any = value
                if name.startswith("python"):
                    ours, other = _release(ours), _release(value.removesuffix(".*"))
                    if value.endswith(".*"):
                        ours = ours[: len(other)]
                return bool(COMPARISONS[type(op)](ours, other))
        raise ValueError

    try:
        return not marker or holds(ast.parse(marker, mode="eval").body)
    except (ValueError, SyntaxError):
        raise UserError(f"a lock has a marker that cannot be read here: {marker}") from None


def _release(version: str) -> tuple[int, ...]:
    """ "3.11" -> (3, 11). Zeros at the end mean nothing: 3.11.0 is 3.11."""
    numbers = [int(number) for number in version.split(".")]
    while numbers[-1:] == [0]:
        numbers.pop()
    return tuple(numbers)
