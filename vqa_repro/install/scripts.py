"""The scripts of an environment that has moved: each names the Python of its folder."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
from pathlib import Path


def rewrite_paths(folder: Path, made_as: Path) -> None:
    """Let the scripts in ``folder``/bin name the folder that they are in now.

    The RECORD of their packages is changed with them: the doctor compares the two.
    """
    # Not where the name continues: after env was moved to env2, env2 is not to become env22.
    old = re.compile(re.escape(os.fsencode(made_as)) + rb"(?![\w. -])")
    rows: dict[str, str] = {}
    for path in (folder / "bin").iterdir():
        if path.is_symlink() or not path.is_file() or path.stat().st_size > 100_000:
            continue
        content = path.read_bytes()
        changed = old.sub(lambda _: os.fsencode(folder), content)
        if changed != content:
            replace_content(path, changed)
            name = f"../../../bin/{path.name}"
            rows[name] = f"{name},{record_hash(path, len(changed))},{len(changed)}"
    for record in folder.glob("lib/python3*/site-packages/*.dist-info/RECORD"):
        lines = record.read_text(encoding="utf-8").splitlines()
        recorded = [rows.get(line.partition(",")[0], line) for line in lines]
        if recorded != lines:
            replace_content(record, "".join(f"{line}\n" for line in recorded).encode())


def record_hash(path: Path, size: int) -> str:
    """Return the hash of the first ``size`` bytes of a file, in the form that a RECORD has."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(min(size, 1 << 20)):
            digest.update(block)
            size -= len(block)
    return "sha256=" + base64.urlsafe_b64encode(digest.digest()).rstrip(b"=").decode()


def replace_content(path: Path, content: bytes) -> None:
    """Write a new file in the place of ``path``, which may be a link into uv's cache."""
    new = path.with_name(path.name + ".new")
    new.write_bytes(content)
    shutil.copymode(path, new)
    os.replace(new, path)
