"""Atomic writes, bounded reads and checksums."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import socket
import subprocess
import sys
import tracemalloc
from pathlib import Path
from subprocess import PIPE
from typing import BinaryIO

import pytest
from conftest import environ

from vqa_repro.data.images import read_image
from vqa_repro.data.sources import Source
from vqa_repro.features.weights_file import read_weights
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.files import (
    WriteError,
    check_writable,
    read_bounded,
    read_json,
    sha256_of,
    write_atomic,
)


def test_sha256(tmp_path: Path) -> None:
    data = b"x" * (3 << 20)
    (tmp_path / "f").write_bytes(data)
    assert sha256_of(tmp_path / "f") == hashlib.sha256(data).hexdigest()


WRITER = """
import sys, time
from pathlib import Path
from vqa_repro.utils.errors import main_guard
from vqa_repro.utils.files import write_atomic

def write(file):
    file.write(b"new")
    print("writing", flush=True)
    time.sleep(600)

main_guard(lambda: write_atomic(Path(sys.argv[1]), write) or 0)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_no_temporary_file(tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, env=environ(), stdout=PIPE, stderr=PIPE, text=True) as process:
        assert process.stdout and process.stderr and process.stdout.readline() == "writing\n"
        assert len(list(tmp_path.iterdir())) == 2
        process.send_signal(number)
        assert "Traceback" not in process.stderr.read()
    assert process.returncode == 128 + number
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == b"old"


PUBLISHER = """
import os, signal, sys
from pathlib import Path
from vqa_repro.utils.errors import main_guard
from vqa_repro.utils.files import write_atomic

replace = os.replace

def signalled(*names):
    replace(*names)
    os.kill(os.getpid(), signal.SIGTERM)

os.replace = signalled
main_guard(lambda: write_atomic(Path(sys.argv[1]), lambda file: file.write(b"new")) or 0)
"""


def test_a_signal_right_after_the_file_is_published(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PUBLISHER, str(tmp_path / "f")]
    done = subprocess.run(command, env=environ(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (128 + signal.SIGTERM, "")
    assert (tmp_path / "f").read_bytes() == b"new"


def test_what_is_checked_before_an_output_is_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("new")
    (tmp_path / "nowhere").symlink_to("none/file")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.iterdir())
    for name in ("file", "link", "dangling", "new", "pipe"):
        check_writable(tmp_path / name, "--out")
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "file" / "x"):
        with pytest.raises(UserError, match=f"--out {path}: cannot be written"):
            check_writable(path, "--out")
    assert sorted(tmp_path.iterdir()) == before and (tmp_path / "file").read_bytes() == b"old"


PRINTER = """
import sys
from pathlib import Path
from vqa_repro.utils.files import check_writable, write_output

out = Path(sys.argv[1])
check_writable(out, "--out")
for stream in (sys.stdout, sys.stderr):
    print("first", file=stream)
write_output(out, lambda file: file.write(b"output\\n"))
for stream in (sys.stdout, sys.stderr):
    print("last", file=stream)
"""


@pytest.mark.parametrize("operator", [">", ">>"])
@pytest.mark.parametrize(
    ("number", "name"), [(1, "/dev/stdout"), (1, "log"), (2, "/dev/stderr"), (7, "/dev/fd/7")]
)
def test_what_a_descriptor_has_open_is_written_to_not_replaced(
    tmp_path: Path, operator: str, number: int, name: str
) -> None:
    """As in the log of a batch job, where other lines come before and after the output."""
    (tmp_path / "log").write_text("old\n")
    script = f'"$@" {name} {number}{operator} log'
    command = ["bash", "-c", script, "bash", sys.executable, "-c", PRINTER]
    subprocess.run(command, cwd=tmp_path, env=environ(), check=True)
    lines = ["output"] if number == 7 else ["first", "output", "last"]
    before = ["old"] if operator == ">>" else []
    assert (tmp_path / "log").read_text().splitlines() == before + lines


def test_a_link_in_a_folder_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"old")
    (tmp_path / "link").symlink_to("mine")
    write_atomic(tmp_path / "link", lambda file: file.write(b"new"))
    assert (tmp_path / "mine").read_bytes() == b"old"
    assert (tmp_path / "link").read_bytes() == b"new" and not (tmp_path / "link").is_symlink()


def test_a_failed_write_keeps_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")

    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(WriteError) as error:
        write_atomic(path, fail)
    assert error.value.errno == errno.ENOSPC
    assert [each.name for each in tmp_path.iterdir()] == ["f"]
    assert path.read_bytes() == b"old"


@pytest.mark.skipif(os.name == "nt", reason="POSIX file modes")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_a_file_has_the_mode_of_the_umask_from_the_start(
    tmp_path: Path, umask: int, mode: int
) -> None:
    """To set it later, Python has to change the umask of all threads in order to know it."""
    modes = []
    before = os.umask(umask)
    try:
        write_atomic(tmp_path / "f", lambda file: modes.append(os.fstat(file.fileno()).st_mode))
    finally:
        os.umask(before)
    modes.append((tmp_path / "f").stat().st_mode)
    assert [each & 0o777 for each in modes] == [mode, mode]


def test_reads_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text('{"a": 1}')
    assert read_json(path, 8) == {"a": 1}
    for limit in (0, 7):
        with pytest.raises(UserError, match="f: "):
            read_bounded(path, limit)
    with pytest.raises(UserError, match="none: cannot be read"):
        read_json(tmp_path / "none", 8)


def test_a_small_file_takes_little_memory_whatever_the_limit(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    tracemalloc.start()
    try:
        assert read_bounded(tmp_path / "f", 1 << 28) == b"abc"
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_pipes_sockets_and_devices_are_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")  # relative, as such a path may have 107 bytes
    (tmp_path / "device").symlink_to("/dev/zero")
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(UserError, match=f"{path.name}: cannot be read: not a regular file"):
            read_bounded(path, 8)
        with pytest.raises(UserError, match=f"{path.name}: cannot be read: not a regular file"):
            Source(path).text()
        with pytest.raises(UserError, match=f"{path.name}: .*not a regular file"):
            read_image(path, 8)
        with pytest.raises(UserError, match=f"{path.name}: cannot be read: not a regular file"):
            read_weights(path)
        with pytest.raises(OSError, match="not a regular file"):
            sha256_of(path)
    with pytest.raises(UserError, match="Is a directory"):
        read_bounded(tmp_path, 8)


def test_a_link_is_refused_on_request(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "f")
    (tmp_path / "f").write_bytes(b"x")
    assert read_bounded(tmp_path / "link", 8) == b"x"
    with pytest.raises(UserError, match="a link"):
        read_bounded(tmp_path / "link", 8, follow_links=False)


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff\xfe\x00", b"\xff"])
def test_damaged_json_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "f.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"f\.json"):
        read_json(path, 1 << 20)
