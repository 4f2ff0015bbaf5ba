"""Expand paths, and explain why one leads to no file."""

import os
from pathlib import Path

from vqa_repro.utils.errors import UserError


def expand(path: str | Path) -> Path:
    """Return the path with ~ expanded. Raise UserError for no such user, or no home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{path}: cannot expand ~; write the path in full") from None


def dangling_link(path: Path) -> str:
    """Return what is wrong if ``path`` is a link to a missing file, "" otherwise."""
    if path.is_symlink() and not path.exists():
        return f"a link to {os.readlink(path)}, which is missing: mount it, or replace the link"
    return ""


def why_not_created(folder: Path, error: OSError) -> str:
    """Return why ``folder`` cannot be created: a link to nowhere on the way, or ``error``."""
    links = (path for path in (folder, *folder.parents) if dangling_link(path))
    if link := next(links, None):
        return f"{'it' if link == folder else link} is {dangling_link(link)}"
    return error.strerror or str(error)


def describe_missing(path: Path, shown: int = 3) -> str:
    """Return what the folder of the missing file ``path`` contains: some names, or no folder."""
    folder = path.parent
    if link := dangling_link(path) or dangling_link(folder):
        return f"it is {link}"
    if not folder.is_dir():
        return f"there is no folder {folder}"
    names = sorted(name for name in os.listdir(folder) if name[0] != ".")
    more = ", ..." if len(names) > shown else ""
    return f"{folder} contains {', '.join(names[:shown])}{more}" if names else f"{folder} is empty"
