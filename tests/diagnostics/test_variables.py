"""Environment variables and limits of clusters, as the doctor reports them."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import LIMIT, PROJECT, environ

from vqa_repro.diagnostics.variables import check_variables
from vqa_repro.utils.subprocesses import run_limited

NAMES = ("PYTHONPATH", "OMP_NUM_THREADS", "LC_ALL")


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def test_pythonpath_with_another_numpy_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert check_variables(True)[0] == []
    (tmp_path / "numpy").mkdir()
    (problem,) = check_variables(True)[0]
    assert str(tmp_path) in problem.what and "numpy" in problem.what
    assert "unset PYTHONPATH" in problem.fix


@pytest.mark.parametrize("value", ["", "0", "8(x2)", "auto", "-1"])
def test_a_useless_number_of_threads_is_noted(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert any("OMP_NUM_THREADS" in note.what for note in check_variables(True)[1])
    for good in ("8", "8,2"):
        monkeypatch.setenv("OMP_NUM_THREADS", good)
        assert not any("OMP_NUM_THREADS" in note.what for note in check_variables(True)[1])


def in_a_process(limits: str, code: str, **variables: str) -> str:
    command = ["bash", "-c", f'{limits} exec "$0" -c "$1"', sys.executable, code]
    env = {**environ(), **variables}
    done = subprocess.run(command, env=env, capture_output=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode("ascii")


CODE = """
from vqa_repro.diagnostics.variables import check_variables
print([f.what for f in check_variables(False)[0]], [f.what for f in check_variables(True)[1]])
"""


def test_limits_are_named() -> None:
    assert "ulimit -v" in in_a_process("ulimit -v 3000000;", CODE)
    assert "ulimit -n" in in_a_process("ulimit -n 64;", CODE)


def test_a_locale_that_is_not_utf8_is_noted_and_printing_still_works() -> None:
    ascii_only = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    assert "LC_ALL" in in_a_process("", CODE, **ascii_only)
    code = (
        "from vqa_repro.utils.errors import main_guard\n"
        "main_guard(lambda: print('\\u7ea2\\u8272') or 0)"
    )
    assert in_a_process("", code, **ascii_only).split() == [r"\u7ea2\u8272"]


@pytest.mark.parametrize(
    "words", [["train", "--data"], ["predict", "--image", "a.png", "--question", "颜色", "--run"]]
)
def test_a_name_that_the_locale_cannot_read_is_one_line(tmp_path: Path, words: list[str]) -> None:
    folder = tmp_path / "数据"
    (folder / "images").mkdir(parents=True)
    for split in ("train", "test"):
        (folder / f"{split}.csv").write_text("image,question,answer\na.png,what?,red\n")
    ascii_only = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    command = [sys.executable, "-m", "vqa_repro.cli", *words, str(folder)]
    done = subprocess.run(command, env={**environ(), **ascii_only}, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "export LC_ALL=C.UTF-8" in done.stderr


def test_a_name_that_utf_8_cannot_read_is_to_be_renamed(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/d\xe9"
    os.mkdir(folder)
    command = [sys.executable, "-m", "vqa_repro.check", folder]
    utf_8 = {**environ(), "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, env=utf_8, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "rename" in done.stderr and "LC_ALL" not in done.stderr


def test_a_verb_names_the_variable_that_brings_a_broken_package(tmp_path: Path) -> None:
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy" / "__init__.py").write_text("raise ImportError('\\n\\nof another Python')")
    variables = {**environ(), "PYTHONPATH": os.pathsep.join([str(tmp_path), str(PROJECT)])}
    command = [sys.executable, "-m", "vqa_repro.check", str(tmp_path)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "of another Python" in done.stderr and "unset PYTHONPATH" in done.stderr


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["-m", "vqa_repro.check", "/none"], 2),
        (["-m", "vqa_repro", "check", "--bad"], 2),
        (["-m", "vqa_repro", "--version"], 0),
        ([str(PROJECT / "checkpoints_setup.py"), "--bad"], 2),
    ],
)
def test_a_command_ends_under_pythoninspect(words: list[str], code: int) -> None:
    ours, its = pty.openpty()  # at a prompt, Python would wait for this terminal's input
    done = subprocess.run(
        [sys.executable, *words],
        env={**environ(), "PYTHONINSPECT": "1"},
        stdin=its,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    os.close(its)
    os.close(ours)
    assert done.returncode == code and "Traceback" not in done.stderr


@pytest.mark.parametrize("program", ["-m vqa_repro.check /none", "checkpoints_setup.py --list"])
def test_a_umask_that_denies_the_user_is_named(program: str) -> None:
    command = f'umask 777; exec "$0" {program}'
    env = {**environ(), "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        ["bash", "-c", command, sys.executable],
        env=env,
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "umask 0777" in done.stderr


@pytest.mark.parametrize(
    ("raised", "failure"),
    [
        ("ImportError('\\n\\nPLEASE READ\\n\\nOriginal error was: x')", "ImportError: Original"),
        ("ImportError()", "ImportError"),
        ("ValueError('one')", "ValueError: one"),
    ],
)
def test_the_reason_of_a_failed_import_is_found(raised: str, failure: str) -> None:
    outcome = run_limited([sys.executable, "-c", f"raise {raised}"], 600, environ())
    assert outcome.failure.startswith(failure)
