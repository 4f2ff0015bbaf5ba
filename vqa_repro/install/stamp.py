"""FOLDER/.finished, which says from what an environment was made, as "key value" lines."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path


def read_stamp(folder: Path) -> dict[str, str]:
    try:
        text = (folder / ".finished").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return {}
    # Older ones have what Python calls itself, such as 3.11.0rc1 or 3.13.0+.
    text = re.sub(r"(?m)^(python [\d.]*\d).*$", r"\1", text)
    return dict(re.findall(r"(?m)^(\w+) (.*)$", text))


def write_stamp(folder: Path, values: Mapping[str, object]) -> None:
    """Write it in one step: a reader finds the old one or the new one."""
    new = folder / ".finished.new"
    text = "".join(f"{key} {value}\n" for key, value in values.items())
    new.write_text(text, encoding="utf-8", errors="surrogateescape")
    os.replace(new, folder / ".finished")
