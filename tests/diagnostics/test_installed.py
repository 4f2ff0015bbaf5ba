"""Installed files against the RECORD of their wheels."""

import base64
import hashlib
import os
from pathlib import Path

import pytest

from vqa_repro.diagnostics.installed import check_installed_files

CONTENT = b"VALUE = 1\n"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a module of an installed package "some-package"."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(CONTENT).digest()).rstrip(b"=").decode()
    info = tmp_path / "site" / "some_package-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some_package\nVersion: 1.0\n")
    rows = [f"some_module.py,sha256={digest},{len(CONTENT)}", "__pycache__/x.pyc,,"]
    (info / "RECORD").write_text("\n".join(rows) + "\n")
    file = info.parent / "some_module.py"
    file.write_bytes(CONTENT)
    monkeypatch.syspath_prepend(info.parent)
    return file


def test_an_intact_package_has_no_problem(module: Path) -> None:
    for deep in (False, True):
        assert check_installed_files({"some-package"}, deep) == []


@pytest.mark.parametrize("damage", ["emptied", "missing", "another version"])
def test_a_changed_file_is_named(module: Path, damage: str) -> None:
    module.unlink()
    if damage != "missing":
        module.write_bytes(b"" if damage == "emptied" else b"VALUE = 22\n")
    (problem,) = check_installed_files({"some-package"}, deep=False)
    assert "some-package" in problem.what and "some_module.py" in problem.what
    assert "cache clean" not in problem.fix
    assert check_installed_files({"other"}, deep=False) == []


def test_damage_of_the_same_size_is_found_by_hash_and_the_cache_is_named(
    module: Path, tmp_path: Path
) -> None:
    module.write_bytes(CONTENT.replace(b"1", b"2"))
    os.link(module, tmp_path / "cached")
    assert check_installed_files({"some-package"}, deep=False) == []
    (problem,) = check_installed_files({"some-package"}, deep=True)
    assert "cache clean some-package" in problem.fix and "bootstrap.sh env" in problem.fix
