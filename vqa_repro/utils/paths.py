"""Paths on the command line, and what is wrong with those that lead nowhere."""

import os
from argparse import ArgumentTypeError
from pathlib import Path

from vqa_repro.utils.errors import UserError


def path_argument(text: str) -> Path:
    """Return the path ``text`` with ~ expanded: the shell leaves it alone in ``--out=~/x``.

    For the ``type`` of an argparse argument, which reports the error raised for an empty or
    impossible path and exits with code 2.
    """
    if not text.strip() or "\0" in text:
        raise ArgumentTypeError("the path is empty")
    try:
        return expand(text)
    except UserError as error:
        raise ArgumentTypeError(str(error)) from None


def expand(path: str | Path) -> Path:
    """Return the path with ~ expanded. Raise UserError for no such user, or no home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{path}: cannot expand ~; write the path in full") from None


def dangling_link(path: Path) -> str:
    """Return that ``path`` is a link to something that is not there; "" if it is not."""
    if path.is_symlink() and not path.exists():
        return f"a link to {os.readlink(path)}, which is not there: mount it, or replace the link"
    return ""


def describe_missing(path: Path, shown: int = 3) -> str:
    """Return what is in the folder where ``path`` is missing: some of its names, or no folder."""
    folder = path.parent
    if link := dangling_link(path) or dangling_link(folder):
        return f"it is {link}"
    if not folder.is_dir():
        return f"there is no folder {folder}"
    names = sorted(name for name in os.listdir(folder) if name[0] != ".")
    more = ", ..." if len(names) > shown else ""
    return f"{folder} holds {', '.join(names[:shown])}{more}" if names else f"{folder} is empty"
