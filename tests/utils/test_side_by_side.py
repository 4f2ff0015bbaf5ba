"""Several commands side by side: how many at a time, failures, signals."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import PROJECT

from vqa_repro.training.side_by_side import visible_gpus
from vqa_repro.utils.memory import free_on_device
from vqa_repro.utils.side_by_side import make_slots, run_side_by_side

# Counts the commands that run at the same time, by files in a folder.
COUNT = """
import os, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
own = folder / f"running-{sys.argv[2]}"
own.touch()
time.sleep(0.3)
print("together", len(list(folder.glob("running-*"))), os.environ["OMP_NUM_THREADS"])
own.unlink()
sys.exit(int(sys.argv[3]))
"""


def command(folder: Path, name: str, code: int = 0) -> list[str]:
    return [sys.executable, "-S", "-c", COUNT, str(folder), name, str(code)]


def test_every_command_runs_in_a_slot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = {name: command(tmp_path, name) for name in "abcde"}
    outcomes, code = run_side_by_side(commands, make_slots(2, []))
    assert code == 0 and list(outcomes) == list("abcde")
    assert all(outcome.code == 0 for outcome in outcomes.values())
    counts = [int(outcome.last_line.split()[1]) for outcome in outcomes.values()]
    assert max(counts) <= 2
    printed = capsys.readouterr().out.splitlines()
    assert sorted(line[:4] for line in printed) == [f"{name} | "[:4] for name in "abcde"]


def test_a_failure_is_reported_and_stops_nobody(tmp_path: Path) -> None:
    commands = {name: command(tmp_path, name, 3 * (name == "b")) for name in "abc"}
    outcomes, code = run_side_by_side(commands, make_slots(1, []))
    assert code == 0
    assert [outcome.code for outcome in outcomes.values()] == [0, 3, 0]
    assert "together" in outcomes["b"].last_line


@pytest.mark.parametrize(
    ("variable", "expected"),
    [(None, ["0", "1"]), ("2,3", ["2", "3"]), ("2,3,-1", ["2", "3"]), ("GPU-a,GPU-b", None)],
)
def test_gpus_keep_the_names_that_cuda_knows(
    variable: str | None, expected: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if variable:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert visible_gpus("auto") == (expected or ["GPU-a", "GPU-b"])


def test_slots_share_the_cores_and_take_turns_with_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqa_repro.utils.side_by_side.cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    slots = make_slots(3, ["0", "GPU-1"])
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["0", "GPU-1", "0"]
    assert {slot["OMP_NUM_THREADS"] for slot in slots} == {"2"}
    assert {slot["OMP_NUM_THREADS"] for slot in make_slots(20, [])} == {"1"}


@pytest.mark.parametrize(
    ("allowed", "threads"),
    [("1", "1"), ("3", "3"), ("16", "4"), ("3,2", "3"), ("0", "4"), ("many", "4"), ("", "4")],
)
def test_slots_use_no_more_threads_than_the_user_allows(
    allowed: str, threads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqa_repro.utils.side_by_side.cores", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", allowed)
    assert {slot["OMP_NUM_THREADS"] for slot in make_slots(2, [])} == {threads}


TALKERS = """
import sys
from vqa_repro.utils.side_by_side import make_slots, run_side_by_side
talker = [sys.executable, "-S", "-c", "for _ in range(9000): print('x')"]
run_side_by_side(dict.fromkeys("abcd", talker), make_slots(4, []))
"""


def test_lines_of_several_commands_are_not_mixed() -> None:
    command = [sys.executable, "-c", TALKERS]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert sorted(done.stdout.splitlines()) == [
        f"{name} | x" for name in "abcd" for _ in range(9000)
    ]


PARENT = """
import sys
from vqa_repro.utils.side_by_side import make_slots, run_side_by_side
child = '''
import pathlib, signal, sys, time
def stop(number, frame):
    pathlib.Path(sys.argv[1]).write_text(str(number))
    sys.exit(5)
signal.signal(int(sys.argv[2]), stop)
print("ready", flush=True)
time.sleep(600)
'''
commands = {
    name: [sys.executable, "-S", "-c", child, name, sys.argv[1]] for name in ("a", "b", "never")
}
outcomes, code = run_side_by_side(commands, make_slots(2, []))
print([outcome.code for outcome in outcomes.values()], flush=True)
sys.exit(code)
"""


@contextmanager
def parent(
    number: signal.Signals, folder: Path, through: Sequence[str] = ()
) -> Iterator["subprocess.Popen[str]"]:
    """Start PARENT, which expects ``number``; enter when both of its commands run."""
    with subprocess.Popen(
        [*through, sys.executable, "-c", PARENT, str(int(number))],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        for _ in range(2):
            assert "ready" in process.stdout.readline()
        yield process


def end(process: "subprocess.Popen[str]", number: signal.Signals) -> None:
    """Send ``number``; check that it ended the commands that ran, and the exit code."""
    process.send_signal(number)
    assert process.stdout and process.stdout.read().splitlines()[-1] == "[5, 5, None]"
    assert process.wait() == 128 + number


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_signals_reach_those_that_run(number: signal.Signals, tmp_path: Path) -> None:
    with parent(number, tmp_path) as process:
        end(process, number)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        name: str(int(number)) for name in "ab"
    }


@pytest.mark.parametrize("ends", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_hang_up_that_is_ignored_stays_so(ends: signal.Signals, tmp_path: Path) -> None:
    """As under ``nohup``; other signals stop what ignores them because a batch script does."""
    ignore = ["sh", "-c", 'trap "" HUP INT TERM USR1; exec "$@"', "sh"]
    with parent(ends, tmp_path, ignore) as process:
        process.send_signal(signal.SIGHUP)
        time.sleep(0.3)  # longer than the time between two looks at what runs
        end(process, ends)


def test_an_interrupt_during_the_wait_kills_them(tmp_path: Path) -> None:
    child = [
        *(sys.executable, "-S", "-c"),
        "import signal, time, os; signal.signal(signal.SIGINT, signal.SIG_IGN);"
        "print(os.getpid(), flush=True); time.sleep(600)",
    ]
    parent = (
        "from vqa_repro.utils.side_by_side import make_slots, run_side_by_side\n"
        f"run_side_by_side({{'a': {child!r}}}, make_slots(1, []))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", parent],
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout
        pid = int(process.stdout.readline().split()[-1])
        while process.poll() is None:
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_commands_on_one_gpu_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each plans with its part, whichever of them asks first."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (60, 80))
    free = []
    for gpus in (["0"], ["0", "1"], ["0", "1", "2"]):
        for slot in make_slots(3, gpus):
            with monkeypatch.context() as context:
                for name, value in slot.items():
                    context.setenv(name, value)
                free.append(free_on_device(torch.device("cuda")))
    assert free == 3 * [20] + 3 * [30] + 3 * [60]
    assert free_on_device(torch.device("cuda")) == 60
