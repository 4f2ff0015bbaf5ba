"""Compare the installed files with what their wheels recorded (the RECORD of each package)."""

import importlib.metadata
import os
from collections.abc import Collection

from vqa_repro.diagnostics.facts import ROOT
from vqa_repro.diagnostics.gpu import REINSTALL, Finding
from vqa_repro.install.records import damaged_files

SHOWN = 3  # damaged files named for each package


def check_installed_files(names: Collection[str], deep: bool) -> list[Finding]:
    """Return a problem for each of the packages ``names`` with damaged files.

    A damaged file that is hard-linked from uv's cache would be installed again: the fix clears the
    cache first.
    """
    problems = []
    for distribution in importlib.metadata.distributions():
        name = str(distribution.metadata["Name"]).lower().replace("_", "-").replace(".", "-")
        if name not in names:
            continue
        damaged, linked = damaged_files(distribution, deep)
        if damaged:
            more = f" and {len(damaged) - SHOWN} more" if len(damaged) > SHOWN else ""
            what = f"{name} {distribution.version}: files differ from the wheel's RECORD: "
            fix = f"{_cache_clean(name)}, then {REINSTALL}" if linked else REINSTALL
            problems.append(Finding(f"{what}{', '.join(damaged[:SHOWN])}{more}", fix))
    return problems


def _cache_clean(name: str) -> str:
    uv = next((path for path in sorted(ROOT.glob(".bootstrap/uv-*/uv")) if path.is_file()), None)
    return f"{os.path.relpath(uv) if uv else 'uv'} cache clean {name}"
