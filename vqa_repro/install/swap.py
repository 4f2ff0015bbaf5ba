"""Replacing an environment, FOLDER, by FOLDER.new, which is whole.

Where FOLDER is a link, these are next to its target, on the same disk. A run may be killed at any
moment: FOLDER.swap is there from the first change to the last, and ``finish`` does the rest.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from vqa_repro.install.scripts import rewrite_paths
from vqa_repro.install.session import remove


def sibling(folder: Path, suffix: str) -> Path:
    real = Path(os.path.realpath(folder))
    return real.with_name(real.name + suffix)


def replace(folder: Path) -> None:
    """Put FOLDER.new in its place; under the lock."""
    real, old, new = (sibling(folder, suffix) for suffix in ("", ".old", ".new"))
    rewrite_paths(new, new, folder)
    remove(old)
    sibling(folder, ".swap").touch()
    with contextlib.suppress(FileNotFoundError):
        os.rename(real, old)
    os.rename(new, real)
    finish(folder)


def was_cut_off(folder: Path) -> bool:
    """Return whether there is something to finish, by a user who may: others use what is there."""
    mark = sibling(folder, ".swap")
    return mark.exists() and os.access(mark.parent, os.W_OK)


def finish(folder: Path) -> None:
    """Do what a run that was killed left undone; under the lock."""
    real, old, new = (sibling(folder, suffix) for suffix in ("", ".old", ".new"))
    if not os.path.lexists(real):
        whole = next((each for each in (new, old) if (each / ".finished").exists()), None)
        if whole:
            os.rename(whole, real)
            rewrite_paths(folder, new)
    if (real / ".finished").exists() and old.exists():
        remove(old)
    sibling(folder, ".swap").unlink(missing_ok=True)
