"""Paths on the command line."""

from argparse import ArgumentTypeError
from pathlib import Path


def path_argument(text: str) -> Path:
    """Return the path ``text`` with ~ expanded: the shell leaves it alone in ``--out=~/x``.

    For the ``type`` of an argparse argument, which reports the error raised for an empty or
    impossible path and exits with code 2.
    """
    if not text.strip() or "\0" in text:
        raise ArgumentTypeError("the path is empty")
    try:
        return Path(text).expanduser()
    except RuntimeError:  # no such user, or no home folder
        raise ArgumentTypeError(f"{text}: cannot expand ~; write the path in full") from None
