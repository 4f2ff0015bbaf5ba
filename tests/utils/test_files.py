"""Atomic writes, bounded reads and checksums."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path
from typing import BinaryIO

import pytest

from vqa_repro.utils.errors import UserError
from vqa_repro.utils.files import WriteError, read_bounded, read_json, sha256_of, write_atomic


def test_sha256(tmp_path: Path) -> None:
    data = b"x" * (3 << 20)
    (tmp_path / "f").write_bytes(data)
    assert sha256_of(tmp_path / "f") == hashlib.sha256(data).hexdigest()


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


def test_reads_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text('{"a": 1}')
    assert read_json(path, 8) == {"a": 1}
    for limit in (0, 7):
        with pytest.raises(UserError, match="f: "):
            read_bounded(path, limit)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none", 8)


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff\xfe\x00", b"\xff"])
def test_damaged_json_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "f.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"f\.json"):
        read_json(path, 1 << 20)
