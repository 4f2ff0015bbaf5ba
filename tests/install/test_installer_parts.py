"""The parts of the installer that need no process: options, settings, indexes, wheels, console."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PROJECT
from wheel_index import lock_text, make_wheel, served

from vqa_repro.install import console, package_index, pip_config, settings
from vqa_repro.install.checks import reach
from vqa_repro.install.errors import ExitCode, InstallError
from vqa_repro.install.lockfile import Entry
from vqa_repro.install.options import parse
from vqa_repro.install.wheels import fetch_wheels, wanted_wheels
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.files import sha256_of

PYTHON = "{}.{}".format(*sys.version_info)


# --- options -------------------------------------------------------------------------------------


def test_arguments_win_over_variables_and_are_repeated() -> None:
    environ = {"VQA_TORCH": "cu126", "VQA_SKIP": "check", "UV_PYTHON_INSTALL_MIRROR": "http://m"}
    options = parse(["env", "--torch", "cu128", "--skip=doctor", "--offline"], environ)
    assert (options.verb, options.torch, options.offline) == ("env", "cu128", True)
    assert options.skip == {"check", "doctor"} and options.python_mirror == "http://m"
    assert options.command("train").endswith("bootstrap.sh train --torch=cu128 --offline")
    assert "--torch" not in options.command("env", without="--torch")


def test_what_follows_two_dashes_is_for_train() -> None:
    options = parse(["--", "--epochs", "3"], {})
    assert (options.verb, options.rest) == ("all", ["--epochs", "3"])
    assert parse(["test", "-m", "smoke"], {}).rest == ["-m", "smoke"]


def test_a_bundle_is_made_for_a_python_that_need_not_be_here() -> None:
    options = parse(["bundle", "out", "--python", "3.11", "--with-python"], {})
    assert (options.target, options.python, options.bundle_python) == ("3.11", "", True)
    assert options.out == Path("out").absolute()


def test_kinds_of_python_are_no_programs() -> None:
    assert parse(["env", "--python", "managed"], {}).python == "managed"
    assert parse(["env"], {"VQA_PYTHON": "system"}).python == "system"


@pytest.mark.parametrize(
    "arguments",
    [
        *(["env", "--with-python"], ["env", "--split", "1M"], ["stop"], ["bundle"]),
        *(["--torch", "cu1"], ["--venv", "/"]),
    ],
)
def test_arguments_that_make_no_sense(arguments: list[str]) -> None:
    with pytest.raises(UserError):
        parse(arguments, {})


# --- settings, pip.conf --------------------------------------------------------------------------


def test_what_would_change_the_result_is_removed() -> None:
    environ = {"PIP_TARGET": "x", "PIP_INDEX_URL": "y", "UV_PYTHON": "3.8", "HOME": "/", "UV_X": ""}
    used, aside = settings.clean(environ)
    assert (used, aside) == (["PIP_INDEX_URL"], ["PIP_TARGET", "UV_PYTHON"])
    assert environ == {"PIP_INDEX_URL": "y", "HOME": "/", "UV_X": ""}


def test_uv_and_pip_are_given_the_same_index(tmp_path: Path) -> None:
    def made(**environ: str) -> dict[str, str]:
        environ |= {"HOME": str(tmp_path), "XDG_CONFIG_DIRS": str(tmp_path)}
        return settings.package_environment(environ, {}, tmp_path, tmp_path / "venv")

    assert made(PIP_INDEX_URL="http://a")["UV_DEFAULT_INDEX"] == "http://a"
    assert made(UV_DEFAULT_INDEX="name=http://b")["PIP_INDEX_URL"] == "http://b"
    for given, other in (("PIP", "UV"), ("UV", "PIP")):
        extra = made(**{f"{given}_EXTRA_INDEX_URL": "http://d http://e"})
        assert extra[f"{other}_EXTRA_INDEX_URL"] == "http://d http://e"
        assert extra["UV_INDEX_STRATEGY"] == "unsafe-best-match"
    assert "UV_INDEX_STRATEGY" not in made(PIP_INDEX_URL="http://a")
    (tmp_path / ".config/uv").mkdir(parents=True)
    (tmp_path / ".config/uv/uv.toml").write_text('[[index]]\nurl = "http://c"\ndefault = true\n')
    os.environ["HOME"], home = str(tmp_path), os.environ["HOME"]
    try:
        assert made()["PIP_INDEX_URL"] == "http://c"
    finally:
        os.environ["HOME"] = home


def test_pip_conf_is_read_in_pips_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CONFIG_DIRS"):
        monkeypatch.setenv(name, str(tmp_path))
    named = tmp_path / "named.conf"
    named.write_text("[global]\nindex-url = http://named\n")
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip/pip.conf").write_text(
        "[global]\nindex-url = http://user\ntimeout = 7\n[install]\nfind-links =\n  /a\n  /b\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(named))
    found = pip_config.settings()
    assert (found["index_url"], found["timeout"]) == ("http://named", "7")
    assert found["find_links"] == "/a /b"
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    assert pip_config.settings() == {}


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"index-url = http://u:secret@index\n", 1),
        (b"[global]\nindex-url = http://index\nu/secret@index\n", 3),
        (b"[global\nindex-url = http://u:secret@index\n", 1),
        (b"[global]\n# caf\xe9\nindex-url = http://u:secret@index\n", 2),
        ("[global]\n".encode("utf-16"), 1),
        (b"[global]\nindex-url = http://u:secret@a\nindex-url = http://u:secret@b\n", 3),
    ],
)
def test_a_pip_conf_that_pip_refuses_is_named_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, line: int
) -> None:
    (tmp_path / "pip.conf").write_bytes(content)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    with pytest.raises(InstallError) as error:
        pip_config.settings()
    assert error.value.code == ExitCode.BAD_INPUT
    assert f"{tmp_path / 'pip.conf'}, line {line}: " in error.value.why
    assert "secret" not in str(error.value)


def test_a_uv_toml_that_uv_refuses_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "uv.toml").write_text('index-url = "http://index"\nno value\n')
    with pytest.raises(InstallError, match=r"uv\.toml: .*line 2"):
        settings.uv_index({"UV_CONFIG_FILE": str(tmp_path / "uv.toml")})


# --- indexes and wheels --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("x-1-cp312-cp312-manylinux_2_28_{}.whl", "x-1-cp38-abi3-manylinux_2_28_{}.whl"),
        ("x-1-cp38-abi3-manylinux_2_17_{}.whl", "x-1-py3-none-any.whl"),
        ("x-1-py3-none-manylinux_2_17_{}.whl", "x-1-py3-none-any.whl"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="the wheels here are for Linux")
def test_the_most_specific_wheel_is_preferred(better: str, worse: str) -> None:
    machine = os.uname().machine
    first, second = (
        package_index.tag_priority(name.format(machine), "3.12") for name in (better, worse)
    )
    assert first is not None and second is not None and first > second


@pytest.mark.parametrize(
    "name", ["x-1-cp313-cp313-any.whl", "x-1-py2-none-any.whl", "x-1-py3-none-win_amd64.whl"]
)
def test_wheels_for_something_else_are_not_taken(name: str) -> None:
    assert package_index.tag_priority(name, "3.12") is None


def test_the_password_of_an_index_is_for_its_host_only() -> None:
    page = "https://me:secret@index/simple/x/"
    same = package_index.with_password("https://index/files/x.whl", page)
    assert same == "https://me:secret@index/files/x.whl"
    other = "https://elsewhere/x.whl"
    assert package_index.with_password(other, page) == other


def test_wheels_are_fetched_kept_and_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, folder, arriving = (tmp_path / name for name in ("index/a", "wheels", "arriving"))
    for each in (index, folder, arriving):
        each.mkdir(parents=True)
    wheels = [make_wheel(index, name, "1.0", {f"{name}.py": b""}) for name in ("alpha", "beta")]
    lock = lock_text(index, "alpha==1.0", "beta==1.0 ; python_full_version >= '3.10'").encode()
    wanted = wanted_wheels([lock, lock], PYTHON)
    assert [entry.name for entry in wanted] == ["alpha", "beta"]
    (folder / "old-1.0-py3-none-any.whl").touch()
    asked: list[str] = []
    with served(tmp_path / "index", asked) as url:
        monkeypatch.setenv("PIP_INDEX_URL", f"{url}/a")
        fetch_wheels(folder, arriving, wanted, PYTHON)
        assert {path.name for path in folder.iterdir()} == {path.name for path in wheels}
        assert sha256_of(folder / wheels[0].name) == sha256_of(wheels[0])
        asked.clear()
        fetch_wheels(folder, arriving, wanted, PYTHON)
        assert asked == []


def test_locks_that_name_different_wheels_of_one_version_are_refused() -> None:
    locks = [f"alpha==1.0 --hash=sha256:{digit * 64}\n".encode() for digit in "01"]
    with pytest.raises(UserError, match="different wheels"):
        wanted_wheels(locks, PYTHON)


def test_a_wheel_that_nobody_has_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("wheels", "arriving", "index/a"):
        (tmp_path / name).mkdir(parents=True)
    entry = Entry("absent", "1.0", frozenset(["0" * 64]))
    with served(tmp_path / "index") as url, pytest.raises(InstallError, match="absent") as why:
        monkeypatch.setenv("PIP_INDEX_URL", f"{url}/a")
        monkeypatch.setenv("PIP_RETRIES", "0")
        fetch_wheels(tmp_path / "wheels", tmp_path / "arriving", [entry], PYTHON)
    assert why.value.code == ExitCode.PACKAGES


# --- console -------------------------------------------------------------------------------------


def test_neither_output_nor_log_has_credentials(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = console.Log(tmp_path / "log")
    log.begin()
    log.write("from http://me:hush-hush@host/x\n")
    error = InstallError(ExitCode.PACKAGES, "no http://me:hush-hush@host/", "why", "what next")
    console.report(error, log)
    console.row("network", "ok", "http://me:hush-hush@host/")
    out, err = capsys.readouterr()
    assert log.path is not None
    assert "hush-hush" not in out + err + log.path.read_text()
    assert "what next" in err and str(log.path) in err and "\x1b" not in out + err


def test_old_logs_are_removed(tmp_path: Path) -> None:
    for number in range(15):
        (tmp_path / f"2020-{number:02d}.log").touch()
    console.Log(tmp_path).begin()
    assert len(list(tmp_path.iterdir())) == console.LOGS_KEPT


@pytest.mark.parametrize("kind", ["http", "socks5h"])
def test_a_proxy_that_does_not_answer_is_no_network(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("https_proxy", f" {kind}://u:secret@127.0.0.1:{server.getsockname()[1]}")
        reached, text = reach("https://packages.invalid/simple")
        assert reached and "127.0.0.1 answers" in text
    reached, text = reach("https://packages.invalid/simple")
    assert not reached and "127.0.0.1" in text and "secret" not in text


SIGNALLED = """
import os, signal, subprocess
from vqa_repro.install import processes

class Interrupted(subprocess.Popen):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        started.append(self)
        os.kill(os.getpid(), signal.SIGTERM)

started, subprocess.Popen = [], Interrupted
processes.catch_signals()
try:
    with processes.started(["sleep", "1000"], None, stdout=-3, stderr=-3):  # DEVNULL
        pass
except processes.Signalled as signalled:
    print(signalled.code, started[0].returncode)
"""


def test_a_signal_before_a_program_has_begun_ends_it_too() -> None:
    command = [sys.executable, "-c", SIGNALLED]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.stdout.split() == ["143", "-15"], done.stderr
