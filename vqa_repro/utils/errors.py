"""What goes wrong through no fault of the program, and how it is said: one line, exit code 2."""

import io
import sys
from collections.abc import Callable

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


class UserError(Exception):
    """Bad input. Its text is one line: what is wrong, where, and the mend.

    What a stranger's file put into it cannot break the line nor drive the terminal.
    """

    def __init__(self, text: str) -> None:
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in text))


def first_line(error: BaseException) -> str:
    """What ``error`` says, in one line; its kind where it says nothing."""
    return next((line.strip() for line in str(error).splitlines()), type(error).__name__)[:120]


def main_guard(main: Callable[[], int]) -> None:
    """Run a verb's ``main`` and leave the process with its exit code.

    ``UserError`` becomes one line on standard error and exit code 2; a broken pipe (``| head``)
    and Ctrl-C end quietly, as a shell expects. Anything else is a bug and keeps its traceback.
    A line that is printed is there at once, in the log of a job too.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # In a locale that is not UTF-8, what it lacks is printed as \\uXXXX.
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
