"""The scripts of an environment that has moved: each names the Python of its folder."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from vqa_repro.install.records import record_hash


def rewrite_paths(folder: Path, made_as: Path, place: Path | None = None) -> None:
    """Let the scripts in ``folder``/bin name ``folder``, or the place that it is to have.

    The RECORD of their packages is changed with them: the doctor compares the two.
    """
    rows: dict[str, str] = {}
    for path in (folder / "bin").iterdir():
        if path.is_symlink() or not path.is_file() or path.stat().st_size > 100_000:
            continue
        content = path.read_bytes()
        changed = content
        for apostrophe in (b"'", b"""'"'"'"""):  # as it is, and as uv quotes it for a shell
            old, new = (
                os.fsencode(each).replace(b"'", apostrophe) for each in (made_as, place or folder)
            )
            changed = replace_path(changed, old, new)
        if changed != content:
            replace_content(path, changed)
            name = f"../../../bin/{path.name}"
            rows[name] = f"{name},{record_hash(path, len(changed))},{len(changed)}"
    for record in folder.glob("lib/python3*/site-packages/*.dist-info/RECORD"):
        lines = record.read_text(encoding="utf-8").splitlines()
        recorded = [rows.get(line.partition(",")[0], line) for line in lines]
        if recorded != lines:
            replace_content(record, "".join(f"{line}\n" for line in recorded).encode())


def replace_path(content: bytes, old: bytes, new: bytes) -> bytes:
    """Replace the path ``old`` by ``new``, of which either may begin or end with the other.

    Not where the name continues: after env was moved to env2, env2 is not to become env22; nor
    within a longer path: after /data was moved to /mnt/data, that is not to become /mnt/mnt/data.
    """
    longer, shorter = sorted(map(re.escape, (old, new)), key=len, reverse=True)
    return re.sub(rb"(?<![\w.-])(?:%s|%s)(?![\w. -])" % (longer, shorter), lambda _: new, content)


def replace_content(path: Path, content: bytes) -> None:
    """Write a new file in the place of ``path``, which may be a link into uv's cache."""
    new = path.with_name(path.name + ".new")
    new.write_bytes(content)
    shutil.copymode(path, new)
    os.replace(new, path)
