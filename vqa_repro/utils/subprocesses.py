"""Run a program that may fail, crash or hang, and report in one line how it ended."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from typing import NamedTuple


class ProcessResult(NamedTuple):
    """The output of a program; ``failure`` is "", or one line with the reason."""

    stdout: str
    failure: str


def run_limited(command: list[str], seconds: float, environ: dict[str, str]) -> ProcessResult:
    """Run ``command`` for at most ``seconds``. Return in time even if it cannot be killed."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=environ,
            start_new_session=True,  # its own process group, so that its children can be killed too
        )
    except OSError as error:
        return ProcessResult("", f"cannot be run: {error.strerror}")
    try:
        stdout, stderr = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return ProcessResult(_kill(process), f"no answer within {seconds:g} s")
    except BaseException:  # a signal, whatever it raises
        _kill(process)
        raise
    if process.returncode < 0:
        number = -process.returncode
        return ProcessResult(stdout, f"killed by signal {number} ({signal.strsignal(number)})")
    if process.returncode > 0:
        return ProcessResult(stdout, _last_error(stderr) or f"exit code {process.returncode}")
    return ProcessResult(stdout, "")


def _kill(process: subprocess.Popen[str]) -> str:
    """Kill ``process`` and its children; return its output so far."""
    with contextlib.suppress(ProcessLookupError):
        if sys.platform != "win32":
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    try:
        return process.communicate(timeout=5)[0]
    except subprocess.TimeoutExpired:  # a process stuck in a driver outlives even SIGKILL
        return ""


def _last_error(stderr: str) -> str:
    """Return the last line that names an exception, or else the last line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    last = (named or lines or [""])[-1]
    # An error's text may begin with an empty line, as numpy's does.
    return f"{last} {lines[-1]}" if last.endswith(":") and last != lines[-1] else last
