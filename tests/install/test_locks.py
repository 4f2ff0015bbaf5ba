"""The lock: one owner at a time, dead owners recovered, living ones named."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vqa_repro.install import locks

NO_PROCESS = 2**30  # beyond every system's largest process id
OWN = "OWN"  # the number of this process; parameters are equal in all processes of a run
HERE = socket.gethostname()
HOLDER = """
import sys, time
from pathlib import Path
from vqa_repro.install import locks
with locks.hold(Path(sys.argv[1]), 60, print):
    print("held", flush=True)
    time.sleep(600)
"""
COUNTER = """
import sys
from pathlib import Path
from vqa_repro.install import locks
lock, counter = Path(sys.argv[1]), Path(sys.argv[2])
for _ in range(20):
    with locks.hold(lock, 120, lambda line: None):
        value = int(counter.read_text())
        counter.write_text(str(value + 1))
"""


@pytest.fixture(params=["links", "files"])
def lock(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Provide a lock on a file system with and without symbolic links."""
    if request.param == "files":

        def refuse(*_: object) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "symlink", refuse)
    return tmp_path / "lock"


def start(code: str, *args: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_held_then_free(lock: Path) -> None:
    with locks.hold(lock, 0, print):
        owner = locks.parse(locks.read(lock) or "")
        assert owner and owner.pid == os.getpid() and owner.host == HERE
        with pytest.raises(locks.Busy, match=str(os.getpid())), locks.hold(lock, 0.1, print):
            pass
    assert not os.path.lexists(lock)


def test_waiting_names_the_owner_and_ends(lock: Path) -> None:
    notes: list[str] = []
    holder = start(HOLDER, lock)
    try:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        with pytest.raises(locks.Busy) as busy, locks.hold(lock, 0.3, notes.append):
            pass
        assert str(holder.pid) in busy.value.owner and HERE in busy.value.owner
        assert any(str(holder.pid) in note for note in notes)
    finally:
        holder.kill()
        holder.communicate()


def test_the_lock_of_a_killed_process_is_taken_over(lock: Path) -> None:
    holder = start(HOLDER, lock)
    assert holder.stdout and holder.stdout.readline() == "held\n"
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    notes: list[str] = []
    with locks.hold(lock, 5, notes.append):
        assert str(holder.pid) in notes[0]


def old_lock(path: Path, text: str) -> None:
    try:
        os.symlink(text, path)
    except OSError:
        path.write_text(text)


@pytest.mark.parametrize(
    ("text", "respected"),
    [
        (f"{NO_PROCESS} 1 another-host 2020-01-01 00:00:00", True),
        (f"{NO_PROCESS} 1 {HERE} 2020-01-01 00:00:00", False),
        (f"{OWN} 1 {HERE} 2020-01-01 00:00:00", False),  # its number was reused
        (f"{OWN} ? {HERE} 2020-01-01 00:00:00", True),
        (f"{NO_PROCESS} 1 {HERE} 2020-01-01 00:00:00 pid:[1] abcd", True),  # of another container
        ("x" * 5000, True),
        ("junk \x00 \u202e", True),
        ("99999999999999999999999999 1 2 3 4", True),
    ],
)
def test_whose_lock_is_respected(lock: Path, text: str, respected: bool) -> None:
    text = text.replace(OWN, str(os.getpid()))
    if "\0" in text or len(text) > 4000:  # not the target of a link
        lock.write_text(text)
    else:
        old_lock(lock, text)
    if respected:
        with pytest.raises(locks.Busy), locks.hold(lock, 0.1, lambda _: None):
            pass
        assert os.path.lexists(lock)
    else:
        with locks.hold(lock, 5, lambda _: None):
            pass
        assert not os.path.lexists(lock)


@pytest.mark.parametrize("age_s", [0, 9999])
def test_an_empty_lock_file_is_stale_once_old(tmp_path: Path, age_s: float) -> None:
    lock = tmp_path / "lock"
    lock.write_text("")
    os.utime(lock, (time.time() - age_s,) * 2)
    if age_s:
        with locks.hold(lock, 5, lambda _: None):
            pass
    else:
        with pytest.raises(locks.Busy), locks.hold(lock, 0.1, lambda _: None):
            pass


def test_many_at_once_after_a_kill(lock: Path, tmp_path: Path) -> None:
    """Several processes hold the lock one at a time, and a stale lock is broken once."""
    old_lock(lock, f"{NO_PROCESS} 1 {HERE} 2020-01-01 00:00:00")
    counter = tmp_path / "counter"
    counter.write_text("0")
    counting = [
        subprocess.Popen([sys.executable, "-c", COUNTER, str(lock), str(counter)]) for _ in range(4)
    ]
    assert [process.wait(120) for process in counting] == [0] * 4
    assert counter.read_text() == "80"
    assert not os.path.lexists(lock)


def test_a_killed_takeover_does_not_block(lock: Path) -> None:
    dead = f"{NO_PROCESS} 1 {HERE} 2020-01-01 00:00:00"
    old_lock(lock, dead)
    old_lock(lock.with_name("lock.takeover"), dead)
    with locks.hold(lock, 10, lambda _: None):
        pass
    assert list(lock.parent.iterdir()) == []


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), locks.hold(tmp_path / "no" / "lock", 1, print):
        pass


def test_the_text_is_what_bootstrap_reads(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    text = locks.acquire(lock, 0, print)
    pid, started, host, date, clock = os.readlink(lock).split()[:5]
    assert (int(pid), host) == (os.getpid(), HERE)
    assert locks.is_running(int(pid), started)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", f"{date} {clock}")
    locks.release(lock, text)
