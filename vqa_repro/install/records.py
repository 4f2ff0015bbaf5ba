"""The RECORD of an installed package: its files, their sizes and hashes."""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.metadata
from pathlib import Path

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


def record_hash(path: Path, size: int) -> str:
    """Return the hash of the first ``size`` bytes of a file, in the form that a RECORD has."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(min(size, 1 << 20)):
            digest.update(block)
            size -= len(block)
    return "sha256=" + base64.urlsafe_b64encode(digest.digest()).rstrip(b"=").decode()
