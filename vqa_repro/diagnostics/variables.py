"""Environment variables and limits of a cluster that change or break what runs here."""

import locale
import os
import re
import resource
import sys
from pathlib import Path

from vqa_repro.diagnostics.facts import PACKAGES
from vqa_repro.diagnostics.gpu import Finding
from vqa_repro.utils.errors import address_space_limit

MIN_ADDRESS_SPACE = 16 << 30  # bytes: torch maps several GiB of libraries, CUDA far more
MIN_OPEN_FILES = 256


def check_variables(torch_imports: bool) -> tuple[list[Finding], list[Finding]]:
    """Return (problems, notes); each names the variable or limit and how to change it."""
    problems = _shadowing_packages()
    notes = [*_threads(), *_text(), *_open_files()]
    limit = address_space_limit()
    if limit is not None and limit < MIN_ADDRESS_SPACE:
        what = f"virtual memory is limited to {limit / 2**30:.1f} GiB (ulimit -v)"
        fix = "raise it (ulimit -v unlimited), or request more memory for the job"
        (notes if torch_imports else problems).append(Finding(what, fix))
    return problems, notes


def _shadowing_packages() -> list[Finding]:
    """Find packages that PYTHONPATH puts before those of this environment."""
    problems = []
    for entry in filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)):
        names = {module.partition(".")[0] for module in PACKAGES.values()}
        present = sorted(
            name
            for name in names
            if Path(entry, name).is_dir() or Path(entry, f"{name}.py").is_file()
        )
        if present and Path(entry).resolve() not in map(Path.resolve, map(Path, _site_folders())):
            what = f"PYTHONPATH={entry} brings another {', '.join(present)}"
            problems.append(Finding(what, "unset PYTHONPATH"))
    return problems


def _site_folders() -> list[str]:
    return [path for path in sys.path if path.startswith(sys.prefix)]


def _threads() -> list[Finding]:
    value = os.environ.get("OMP_NUM_THREADS")
    if value is None or re.fullmatch(r"\s*[1-9]\d*\s*(,\s*[1-9]\d*\s*)*", value):
        return []
    what = f"OMP_NUM_THREADS={value!r} is not a number of threads and is ignored"
    return [Finding(what, "set it to the number of cores of the job, or unset it")]


def _text() -> list[Finding]:
    notes = []
    encoding = locale.getpreferredencoding(False)
    if encoding.lower().replace("-", "") not in ("utf8", "utf8mb4"):
        name = next((n for n in ("LC_ALL", "LC_CTYPE", "LANG") if os.environ.get(n)), "LC_ALL")
        what = f"the locale's encoding is {encoding} ({name}={os.environ.get(name)!r}): "
        what += "other characters are printed as \\uXXXX"
        notes.append(Finding(what, "export LC_ALL=C.UTF-8"))
    return notes


def _open_files() -> list[Finding]:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY or limit >= MIN_OPEN_FILES:
        return []
    return [Finding(f"open files are limited to {limit} (ulimit -n)", "ulimit -n 1024")]
