"""What requirements.lock asks for on this machine, and what is installed instead."""

import importlib.metadata
import re


def installed_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def read_lock(text: str) -> dict[str, set[str]]:
    """name -> versions the lock allows here, for every package that must be here.

    A package whose version depends on Python or the platform has several lines. Without
    ``packaging`` to judge their markers, any of its versions will do, and it may be missing.
    """
    pattern = r"^([A-Za-z0-9][\w.-]*)==([^\s;\\]+)(?:[ ]*;[ ]*([^\\\n]*[^\\\s]))?"
    allowed: dict[str, set[str]] = {}
    for name, version, marker in re.findall(pattern, text, re.MULTILINE):
        if marker and not _applies(marker, name):
            continue
        allowed.setdefault(name, set()).add(version)
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


def _applies(marker: str, name: str) -> bool:
    try:
        from packaging.markers import Marker
    except ImportError:
        return installed_version(name) is not None
    return Marker(marker).evaluate()
