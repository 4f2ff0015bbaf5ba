"""Errors of the user's input and environment: one line and exit code 2."""

import errno
import io
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from vqa_repro.utils.subprocesses import run_limited

EXIT_BAD_INPUT = 2
EXIT_HANG_UP = 129  # as a shell reports SIGHUP
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141  # as a shell reports SIGPIPE
MAY_CRASH_BELOW = 4 << 30  # bytes of virtual memory: importing torch maps about 3 GiB


class UserError(Exception):
    """Bad input. Its text is one line: what is wrong, where, and how to fix it.

    Control characters are escaped: text from an untrusted file cannot control the terminal.
    """

    def __init__(self, text: str) -> None:
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in text))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type if there is none."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)[:120]


def main_guard(main: Callable[[], int]) -> None:
    """Run a verb's ``main`` and exit with its exit code.

    ``UserError``, a file that the system refuses and a full standard output become one line on
    standard error and exit code 2; a broken pipe (``| head``), Ctrl-C, SIGTERM, a hang-up and a
    terminal that is gone end quietly, with the exit code that a shell expects. A package that
    cannot be loaded is named with the variables that may be the cause. Anything else is a bug and
    keeps its traceback. Output is line-buffered, also in the log of a batch job. Without a standard
    output (``>&-``) it is discarded.
    """
    leave_inspect_mode()
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 # until the process ends
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Characters outside the locale's encoding are printed as \\uXXXX.
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    exit_on_signals()
    try:
        check_umask()
        code = main()
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = EXIT_BAD_INPUT
    except BrokenPipeError:
        sys.stdout = None  # Python flushes it once more at exit, which would print a second error
        code = EXIT_BROKEN_PIPE
    except (ImportError, OSError) as error:
        if terminal_is_gone():
            sys.stdout = sys.stderr = None
            sys.exit(EXIT_HANG_UP)
        text = unloadable(error) if is_foreign(error) else refused(error)
        if not text:
            raise
        print(f"error: {text}", file=sys.stderr)
        code = EXIT_BAD_INPUT
    except UnicodeEncodeError as error:
        if "surrogates" not in error.reason:
            raise
        print(f"error: {undecodable(error)}", file=sys.stderr)
        code = EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = EXIT_INTERRUPTED
    sys.exit(code)


def terminal_is_gone() -> bool:
    """Return whether standard output is a terminal that was closed."""
    try:
        os.get_terminal_size(1)
    except OSError as error:  # another one where it is no terminal
        return error.errno == errno.EIO
    return False


def exit_on_signals() -> None:
    """Let SIGTERM and SIGHUP end the program in order: temporary files and locks are removed."""

    def obey(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        sys.exit(128 + number)

    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, obey)


def check_umask() -> None:
    """Raise UserError if the umask denies users the files and folders that they make."""
    mask = os.umask(0o077)
    os.umask(mask)
    if mask & 0o700:
        raise UserError(
            f"umask {mask:04o} denies you files that you create: run `umask 022`, then try again"
        )


def leave_inspect_mode() -> None:
    """Start this program again without PYTHONINSPECT, which turns its end into a prompt.

    Python has read the variable by now: it shows each exit as a traceback and waits for input.
    """
    if os.environ.pop("PYTHONINSPECT", ""):
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def address_space_limit() -> int | None:
    """Return the limit of this process's virtual memory in bytes, None if there is none."""
    try:
        import resource
    except ImportError:  # Windows, where checkpoints may be fetched
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def check_address_space() -> None:
    """Raise UserError if torch cannot be loaded within the limit of virtual memory.

    It would crash without naming the limit. What it needs depends on its build, so a process of its
    own tries that.
    """
    limit = address_space_limit()
    if limit is None or limit >= MAY_CRASH_BELOW:
        return
    size = f"`ulimit -v` allows {limit / 2**30:.1f} GiB of virtual memory"
    if run_limited([sys.executable, "-c", "import torch"], 600, dict(os.environ)).failure:
        raise UserError(f"{size}, too little for torch: run `ulimit -v unlimited`, then try again")
    print(f"note: {size}: the program may crash; raise it", file=sys.stderr)


def is_foreign(error: ImportError | OSError) -> bool:
    """Return whether a package or library other than this one cannot be loaded."""
    if isinstance(error, ImportError):
        return not (error.name or "").startswith("vqa_repro")
    return ".so" in str(error) and error.errno is None


def refused(error: ImportError | OSError) -> str:
    """Return which file, or standard output, the system refuses and why; "" for other errors."""
    if isinstance(error, ImportError):
        return ""
    why = error.strerror or str(error)
    if error.errno is None:
        return ""
    if error.filename is not None:
        return f"{error.filename}: {why}"
    try:
        print(flush=True)
    except OSError:
        sys.stdout = None  # see main_guard
        return f"standard output cannot be written: {why}"
    return ""


def undecodable(error: UnicodeEncodeError) -> str:
    """Return which name or argument holds bytes that the locale's encoding cannot read."""
    text = ascii(error.object)[1:-1]
    encoding = sys.getfilesystemencoding()
    fix = "rename it" if encoding == "utf-8" else "export LC_ALL=C.UTF-8"
    return f"{text:.200}: not {encoding} text, as the locale wants it; {fix}"


def unloadable(error: ImportError | OSError) -> str:
    """Return why a package cannot be loaded, and the variables and limits that may be the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    names = [n for n in ("PYTHONPATH", "LD_LIBRARY_PATH", "LD_PRELOAD") if os.environ.get(n)]
    causes = [f"unset {' '.join(names)}"] if names else []
    if address_space_limit() is not None:
        causes.append("ulimit -v unlimited")
    causes.append("see python -m vqa_repro.doctor")
    reason = (lines or [type(error).__name__])[-1]
    return f"a package cannot be loaded: {reason:.200}; {', or '.join(causes)}"
