"""Installed files against the RECORD of their wheels."""

import base64
import hashlib
import os
from pathlib import Path

import pytest

from vqa_repro.diagnostics.installed import check_installed_files
from vqa_repro.install.scripts import rewrite_paths

CONTENT = b"VALUE = 1\n"


def install(site: Path, package: str, name: str, content: bytes = CONTENT) -> Path:
    """Write ``package`` with one file into ``site``; return that file."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    info = site / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    rows = [f"{name},sha256={digest},{len(content)}", "__pycache__/x.pyc,,"]
    (info / "RECORD").write_text("\n".join(rows) + "\n")
    file = site / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    return file


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a module of an installed package "some-package"."""
    monkeypatch.syspath_prepend(tmp_path / "site")
    return install(tmp_path / "site", "some_package", "some_module.py")


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


@pytest.mark.parametrize("name", ["venv.new", "v", "ven", "venv/sub", "same, below a mount point"])
def test_scripts_of_a_moved_environment_are_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    old, new = tmp_path / name, tmp_path / "venv"
    if name.startswith("same"):
        new = Path(f"{tmp_path}/mnt/{old}")
    site = old / "lib/python3.13/site-packages"
    script = install(site, "some_package", "../../../bin/tool", f"#!{old}/bin/python\n".encode())
    os.link(script, tmp_path / "cached")
    new.parent.mkdir(parents=True, exist_ok=True)
    old.rename(tmp_path / "aside")
    if new.exists():  # the old one was in it
        new.rmdir()
    (tmp_path / "aside").rename(new)
    rewrite_paths(new, old)
    rewrite_paths(new, old)  # as ./bootstrap.sh env does each time
    assert (new / "bin/tool").read_text() == f"#!{new}/bin/python\n"
    assert (tmp_path / "cached").read_text() == f"#!{old}/bin/python\n"
    monkeypatch.setattr("sys.path", [str(new / "lib/python3.13/site-packages")])
    assert check_installed_files({"some-package"}, deep=True) == []
    (new / "bin/tool").write_text("another")
    assert len(check_installed_files({"some-package"}, deep=True)) == 1


def test_added_certificates_are_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "own"
    certificates = install(site, "certifi", "certifi/cacert.pem")
    monkeypatch.setattr("sys.path", [str(site)])  # not the environment's own
    certificates.write_bytes(CONTENT + b"# a university's authority\n")
    for deep in (False, True):
        assert check_installed_files({"certifi"}, deep) == []
    certificates.write_bytes(b"x" + CONTENT[1:] + b"# a university's authority\n")
    (problem,) = check_installed_files({"certifi"}, deep=False)
    assert "certifi/cacert.pem" in problem.what
