"""Compare the installed files with what their wheels recorded (the RECORD of each package)."""

import csv
import importlib.metadata
import os
from collections.abc import Collection
from pathlib import Path

from vqa_repro.diagnostics.facts import ROOT
from vqa_repro.diagnostics.gpu import REINSTALL, Finding
from vqa_repro.install.scripts import record_hash

SHOWN = 3  # damaged files named for each package
# Places with a certificate authority of their own append it here; that is no damage.
EXTENDABLE = {"certifi/cacert.pem"}


def damaged_files(
    distribution: importlib.metadata.Distribution, deep: bool
) -> tuple[list[str], bool]:
    """Return the files that are missing or differ, and whether one is hard-linked to others.

    Sizes are compared, with ``deep`` also SHA-256 hashes. Files that a wheel did not record
    (compiled modules, the installer's own notes) are not checked.
    """
    damaged, linked = [], False
    rows = csv.reader((distribution.read_text("RECORD") or "").splitlines())
    for name, recorded, size in (row for row in rows if len(row) == 3):
        if not recorded.startswith("sha256=") or not size.isdigit():
            continue
        path = Path(str(distribution.locate_file(name)))
        try:
            status = path.stat()
            extended = name in EXTENDABLE and status.st_size > int(size)
            same = extended or status.st_size == int(size)
            if extended or (same and deep):
                same = record_hash(path, int(size)) == recorded
        except OSError:
            damaged.append(f"{name} (unreadable or missing)")
            continue
        if not same:
            damaged.append(name)
            linked |= status.st_nlink > 1
    return damaged, linked


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
