"""Programs that are run for a limited time."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import environ

CALLER = """
import os, sys
from vqa_repro.utils.errors import main_guard
from vqa_repro.utils.subprocesses import run_limited

child = ["sh", "-c", 'sleep 0.2; echo $$ >"$0"; exec sleep 600', sys.argv[1]]
main_guard(lambda: run_limited(child, 600, dict(os.environ)) and 0)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_the_program_too(tmp_path: Path, number: signal.Signals) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    command = [sys.executable, "-c", CALLER, str(pipe)]
    with subprocess.Popen(command, env=environ(), stderr=subprocess.PIPE, text=True) as process:
        pid = int(pipe.read_text())  # waits until the program runs
        process.send_signal(number)
        assert process.stderr and "Traceback" not in process.stderr.read()
    assert process.returncode == 128 + number
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
