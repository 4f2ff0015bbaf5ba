"""The lock files contain every requirement, wheels only, and no addresses."""

import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import LIMIT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from wheel_index import make_wheel, served

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
MAKE_LOCK = ROOT / ".ci/make_lock.py"
# requirements-cpu.lock exists only if made from PyTorch's download site.
OTHER_BUILDS = [path.name for path in sorted(ROOT.glob("requirements-*.lock"))]
LOCKS = ("requirements.lock", "wordnet.lock", "jupyter.lock", *OTHER_BUILDS)
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14", "3.15")
SYSTEMS = {
    "linux": ("Linux", "x86_64", "posix"),
    "linux-arm": ("Linux", "aarch64", "posix"),
    "darwin": ("Darwin", "arm64", "posix"),
    "win32": ("Windows", "AMD64", "nt"),
}


def read(lock: str) -> str:
    return (ROOT / lock).read_text(encoding="utf-8")


def entries(lock: str) -> list[tuple[Requirement, list[str]]]:
    """Yield (requirement, hashes) of each entry."""
    found = []
    for entry in read(lock).replace("\\\n", "").splitlines():
        if not entry.startswith("#"):
            requirement, *hashes = re.split(r"\s+--hash=", entry.strip())
            found.append((Requirement(requirement), hashes))
    return found


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def needed() -> list[Requirement]:
    return [Requirement(text) for text in pyproject()["project"]["dependencies"]]


def wanted(*groups: str) -> list[Requirement]:
    return [
        Requirement(text) for group in groups for text in pyproject()["dependency-groups"][group]
    ]


def environment(system: str, python: str) -> dict[str, str]:
    platform_system, machine, os_name = SYSTEMS[system]
    return {
        "sys_platform": system.removesuffix("-arm"),
        "platform_system": platform_system,
        "platform_machine": machine,
        "os_name": os_name,
        "python_version": python,
        "python_full_version": f"{python}.5",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }


@pytest.fixture(scope="module")
def make_lock() -> ModuleType:
    spec = util.spec_from_file_location("make_lock", MAKE_LOCK)
    assert spec is not None and spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("system", SYSTEMS)
def test_every_requirement_is_locked_once(system: str, python: str) -> None:
    here = environment(system, python)
    of_training = [*entries("requirements.lock"), *entries("wordnet.lock")]
    one_environment(here, of_training, [*wanted("dev", "installer", "wordnet"), *needed()])
    one_environment(here, entries("jupyter.lock"), wanted("jupyter"))


def one_environment(
    here: dict[str, str], all_entries: list[tuple[Requirement, list[str]]], asked: list[Requirement]
) -> None:
    """Every package is locked once, and no requirement is missing."""
    locked = defaultdict(list)
    for requirement, _ in all_entries:
        if requirement.marker is None or requirement.marker.evaluate(here):
            (pin,) = requirement.specifier
            assert pin.operator == "=="
            locked[canonicalize_name(requirement.name)].append(pin.version)
    assert all(len(versions) == 1 for versions in locked.values()), locked
    for requirement in asked:
        if requirement.marker is None or requirement.marker.evaluate(here):
            (version,) = locked[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), requirement


@pytest.mark.parametrize("lock", LOCKS)
def test_every_entry_has_hashes(lock: str) -> None:
    for requirement, hashes in entries(lock):
        assert hashes, requirement
        assert all(re.fullmatch("sha256:[0-9a-f]{64}", value) for value in hashes), requirement


def test_the_package_without_dependencies_has_its_own_lock() -> None:
    """Otherwise an installer that follows dependencies would refuse requirements.lock."""
    ((wordnet, _),) = entries("wordnet.lock")
    assert wordnet.name not in {requirement.name for requirement, _ in entries("requirements.lock")}
    dependencies = {"featuretools", "pandas", "nltk"}
    assert dependencies.isdisjoint(each.name for lock in LOCKS for each, _ in entries(lock))


@pytest.mark.parametrize("lock", LOCKS)
def test_it_contains_no_index_address(lock: str) -> None:
    assert "://" not in read(lock)
    assert not re.search(r"(?m)^\s*-(?!-hash=)|@", read(lock))


@pytest.mark.parametrize("lock", LOCKS)
def test_it_was_made_from_this_pyproject(make_lock: ModuleType, lock: str) -> None:
    (digest,) = re.findall(r"^# dependencies sha256: (\w+)$", read(lock), re.MULTILINE)
    assert digest == make_lock.dependencies_digest(), "python .ci/make_lock.py"


def test_hashes_of_source_archives_are_dropped(make_lock: ModuleType) -> None:
    wheel, sdist = "sha256:" + "a" * 64, "sha256:" + "b" * 64
    pylock = {
        "packages": [
            {
                "name": "easy",
                "version": "1.0",
                "sdist": {"url": "file:///easy-1.0.tar.gz", "hashes": {"sha256": "b" * 64}},
                "wheels": [
                    {
                        "url": "file:///easy-1.0-py3-none-any.whl",
                        "hashes": {"sha256": "a" * 64},
                    }
                ],
            },
        ]
    }
    text = f"easy==1.0 \\\n    --hash={wheel} \\\n    --hash={sdist}\n"
    body, problems = make_lock.keep_wheels(text, make_lock.wheels_of(pylock))
    assert body == f"easy==1.0 \\\n    --hash={wheel}\n"
    assert problems == []
    pylock["packages"][0]["wheels"] = []
    _, problems = make_lock.keep_wheels(text, make_lock.wheels_of(pylock))
    assert "easy==1.0: no wheel for Linux x86_64, Python 3.10" in problems


def test_a_wheel_is_needed_only_where_the_marker_says_so(make_lock: ModuleType) -> None:
    wheel = "thing-1.0-cp312-abi3-manylinux_2_17_x86_64.manylinux2014_x86_64.whl"
    missing = make_lock.uncovered("thing==1.0 ; sys_platform == 'linux'", [wheel])
    where = {line.partition(": no wheel for ")[2] for line in missing}
    assert where == {
        *(f"Linux x86_64, Python {python}" for python in ("3.10", "3.11")),
        *(f"Linux aarch64, Python {python}" for python in PYTHONS),
    }
    assert make_lock.uncovered("thing==1.0 ; sys_platform == 'sunos'", []) == []


def test_without_an_index_the_check_says_so(tmp_path: Path) -> None:
    nowhere = {"UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple", "UV_CACHE_DIR": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, MAKE_LOCK, "--check"],
        env={"HOME": str(tmp_path), "UV_HTTP_RETRIES": "0", **nowhere},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert result.returncode == 3, result.stderr
    assert "no package index was reached" in result.stderr


# --- another build of torch ----------------------------------------------------------------------

PYPROJECT = """
[project]
name = "small"
version = "1"
requires-python = ">=3.10,<3.15"
dependencies = ["torch>=2.7.1", "torchvision>=0.22.1", "alpha"]
[dependency-groups]
dev = ["alpha"]
installer = []
wordnet = ["alpha"]
jupyter = ["alpha"]
docs = ["alpha"]
"""


def make_in_small_project(
    root: Path, url: str, *arguments: str
) -> subprocess.CompletedProcess[str]:
    environ = {
        **{
            name: value for name, value in os.environ.items() if not name.startswith(("UV_", "PIP"))
        },
        "UV_DEFAULT_INDEX": f"{url}/usual",
        "UV_CACHE_DIR": str(root / "cache"),
        "UV_HTTP_RETRIES": "0",
    }
    return subprocess.run(
        [sys.executable, str(root / ".ci/make_lock.py"), *arguments],
        env=environ,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )


@pytest.fixture
def small_project(tmp_path: Path) -> Path:
    """Provide a project, an index with the CUDA builds of torch, and one with the CPU build."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(MAKE_LOCK, tmp_path / ".ci")
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    usual, special = tmp_path / "index/usual", tmp_path / "index/special"
    usual.mkdir(parents=True)
    special.mkdir()
    for torch, torchvision, needs in (
        ("2.15.0", "0.30.0", "beta"),
        ("2.10.0", "0.25.0", "gamma"),
        ("2.7.1", "0.22.1", "gamma"),
    ):
        make_wheel(usual, "torch", torch, {}, needs=needs)
        make_wheel(usual, "torchvision", torchvision, {}, needs=f"torch=={torch}")
    for name in ("alpha", "beta", "gamma"):
        make_wheel(usual, name, "2.0", {})
        make_wheel(special, name, "1.0", {})
    make_wheel(special, "torch", "2.13.0+cpu", {}, needs="gamma")
    make_wheel(special, "torch", "2.14.1+cpu", {}, needs="gamma")
    make_wheel(special, "torchvision", "0.29.1+cpu", {}, needs="torch==2.14.1+cpu")
    return tmp_path


def pins(lock: Path) -> list[str]:
    return re.findall(r"(?m)^([\w.-]+==\S+)", lock.read_text())


@pytest.mark.slow
def test_each_cuda_build_has_a_lock_from_the_ordinary_index(small_project: Path) -> None:
    with served(small_project / "index") as url:
        made = make_in_small_project(small_project, url)
        assert made.returncode == 0, made.stderr
        locks = {name: small_project / f"requirements{name}.lock" for name in ("", "-cu128")}
        locks["-cu126"] = small_project / "requirements-cu126.lock"
        assert pins(locks[""]) == [
            "alpha==2.0",
            "beta==2.0",
            "torch==2.15.0",
            "torchvision==0.30.0",
        ]
        for name, torch, torchvision in (
            ("-cu128", "2.10.0", "0.25.0"),
            ("-cu126", "2.7.1", "0.22.1"),
        ):
            expected = [
                "alpha==2.0",
                "gamma==2.0",
                f"torch=={torch}",
                f"torchvision=={torchvision}",
            ]
            assert pins(locks[name]) == expected
        assert make_in_small_project(small_project, url, "--check").returncode == 0
        # The builds share versions: an older pin of requirements.lock applies to all.
        make_wheel(small_project / "index/usual", "alpha", "3.0", {})
        assert make_in_small_project(small_project, url, "--check").returncode == 0
        locks["-cu126"].write_text(locks["-cu126"].read_text().replace("alpha==2.0", "alpha==1.0"))
        assert make_in_small_project(small_project, url, "--check").returncode == 1


@pytest.mark.slow
def test_the_build_for_the_cpu_comes_from_an_index_of_its_own(small_project: Path) -> None:
    with served(small_project / "index") as url:
        arguments = ("--torch", "cpu", "--torch-index", f"{url}/special")
        made = make_in_small_project(small_project, url, *arguments)
        assert made.returncode == 0, made.stderr
        lock = small_project / "requirements-cpu.lock"
        # torch comes from its index, everything else from the other, in the newest version.
        expected = ["alpha==2.0", "gamma==2.0", "torch==2.14.1+cpu", "torchvision==0.29.1+cpu"]
        assert pins(lock) == expected
        assert "://" not in lock.read_text()
        assert not (small_project / "requirements.lock").exists()
        assert make_in_small_project(small_project, url, *arguments, "--check").returncode == 0


def test_an_index_without_this_build_makes_no_lock(small_project: Path) -> None:
    wrong = small_project / "index/wrong"
    wrong.mkdir()
    make_wheel(wrong, "torch", "2.14.1", {})
    make_wheel(wrong, "torchvision", "0.29.1", {})
    with served(small_project / "index") as url:
        arguments = ("--torch", "cpu", "--torch-index", f"{url}/wrong")
        made = make_in_small_project(small_project, url, *arguments)
    assert made.returncode == 1
    assert "has no torch of the build cpu" in made.stderr
    assert not list(small_project.glob("*.lock"))


def test_without_the_download_site_no_lock_is_made(small_project: Path) -> None:
    with served(small_project / "index") as url:
        arguments = ("--torch", "cpu", "--torch-index", "http://127.0.0.1:9/whl")
        made = make_in_small_project(small_project, url, *arguments)
    assert made.returncode in (1, 3)
    assert "127.0.0.1:9" in made.stderr
    assert not list(small_project.glob("*.lock"))
