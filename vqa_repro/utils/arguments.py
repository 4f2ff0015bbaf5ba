"""Command-line options that several verbs share, and the parsing of a verb's command line."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from vqa_repro.utils.errors import UserError, check_address_space
from vqa_repro.utils.paths import expand

Options = argparse.ArgumentParser | argparse._ArgumentGroup


def parse_arguments(
    verb: str,
    doc: str | None,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    arguments: Sequence[str] | None,
    *,
    needs_torch: bool = True,
) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Parse the command line of ``verb``, described by its module's docstring ``doc``.

    Return the parser too: its ``error`` reports a bad combination of options. Raise UserError for a
    verb that ``needs_torch`` where it cannot be loaded for lack of virtual memory.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m vqa_repro.{verb}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    args = parser.parse_args(arguments)
    if needs_torch:
        check_address_space()
    return parser, args


def path_argument(text: str) -> Path:
    """Return the path ``text`` with ~ expanded, which the shell does not do in ``--out=~/x``.

    For the ``type`` of an argparse argument, which reports the error raised for an empty or
    impossible path and exits with code 2.
    """
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError("the path is empty")
    try:
        return expand(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def name_or_path_argument(text: str) -> str:
    """Return ``text``, with ~ expanded if it is a path that begins with it; see path_argument."""
    return str(path_argument(text)) if text.startswith("~") else text


def whole_number(lowest: int, highest: int) -> Callable[[str], int]:
    """Return the ``type`` of an argument that is a whole number from ``lowest`` to ``highest``."""

    def read(text: str) -> int:
        if not text.isdecimal() or not lowest <= int(text) <= highest:
            raise argparse.ArgumentTypeError(
                f"{text!r}: a whole number from {lowest} to {highest:,}"
            )
        return int(text)

    return read


def add_root_option(parser: Options) -> None:
    parser.add_argument(
        "--root", type=path_argument, default=Path("resources"), help="folder of the data sets"
    )


def add_weights_option(parser: Options) -> None:
    parser.add_argument(
        "--weights",
        type=path_argument,
        help="the backbone's checkpoint (default: the downloaded one)",
    )


def add_skip_damaged_option(parser: Options) -> None:
    parser.add_argument(
        "--skip-damaged",
        action="store_true",
        help="continue without the images that cannot be read; by default they are an error",
    )


def add_device_option(parser: Options) -> None:
    parser.add_argument(
        "--device",
        default="auto",
        metavar="auto|cpu|cuda|cuda:N",
        help="where to compute; auto: the first GPU, or the CPU if there is none",
    )
