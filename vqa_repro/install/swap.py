"""Replacing an environment, FOLDER, by FOLDER.new, which is whole.

Where FOLDER is a link, these are next to its target, on the same disk. A run may be killed at any
moment: FOLDER.swap is there from the first change to the last, and has the suffix of the folder
that the old environment goes to; ``finish`` does the rest. Other such folders are the user's.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from pathlib import Path

from vqa_repro.install.scripts import rewrite_paths
from vqa_repro.install.session import remove


def sibling(folder: Path, suffix: str) -> Path:
    real = Path(os.path.realpath(folder))
    return real.with_name(real.name + suffix)


def replace(folder: Path) -> None:
    """Put FOLDER.new in its place; under the lock."""
    real, new, mark = (sibling(folder, suffix) for suffix in ("", ".new", ".swap"))
    rewrite_paths(new, new, folder)
    suffixes = (f".old{number or ''}" for number in itertools.count())
    suffix = next(each for each in suffixes if not os.path.lexists(sibling(folder, each)))
    unnamed = sibling(folder, ".swap.new")
    unnamed.write_text(suffix)
    os.replace(unnamed, mark)
    with contextlib.suppress(FileNotFoundError):
        os.rename(real, sibling(folder, suffix))
    os.rename(new, real)
    finish(folder)


def was_cut_off(folder: Path) -> bool:
    """Return whether there is something to finish, by a user who may: others use what is there."""
    mark = sibling(folder, ".swap")
    return mark.exists() and os.access(mark.parent, os.W_OK)


def finish(folder: Path) -> None:
    """Do what a run that was killed left undone, if one was; under the lock."""
    real, new, mark = (sibling(folder, suffix) for suffix in ("", ".new", ".swap"))
    if not mark.exists():
        return
    old = sibling(folder, mark.read_text() or ".old")  # an older installer's mark is empty
    if not os.path.lexists(real):
        whole = next((each for each in (new, old) if (each / ".finished").exists()), None)
        if whole:
            os.rename(whole, real)
    if (real / ".finished").exists():
        remove(old)
    with contextlib.suppress(PermissionError):  # another user's, in a folder with the sticky bit
        mark.unlink(missing_ok=True)
