"""Errors of the user's input and environment: one line and exit code 2."""

import io
import sys
from collections.abc import Callable

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


class UserError(Exception):
    """Bad input. Its text is one line: what is wrong, where, and how to fix it.

    Control characters are escaped: text from an untrusted file cannot control the terminal.
    """

    def __init__(self, text: str) -> None:
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in text))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type if there is none."""
    return next((line.strip() for line in str(error).splitlines()), type(error).__name__)[:120]


def main_guard(main: Callable[[], int]) -> None:
    """Run a verb's ``main`` and exit with its exit code.

    ``UserError`` becomes one line on standard error and exit code 2; a broken pipe (``| head``)
    and Ctrl-C end quietly, as a shell expects. Anything else is a bug and keeps its traceback.
    Output is line-buffered, also in the log of a batch job.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Characters outside the locale's encoding are printed as \\uXXXX.
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    try:
        code = main()
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = EXIT_INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more at exit; a closed pipe would then print a second error.
        sys.stdout = None
        code = 0
    sys.exit(code)
