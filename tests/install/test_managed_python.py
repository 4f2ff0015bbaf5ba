"""bootstrap.sh on machines without a fit Python: uv and a Python come from loopback, or a bundle.

The Python that is fetched is a stand-in, which starts the one that runs the tests.
"""

import hashlib
import http.server
import io
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import LIMIT
from installer_copy import UV_VERSION, Copy, program
from wheel_index import served

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="the Python is for x86_64"
)
HERE = "{}.{}".format(*sys.version_info)
RELEASE = "20260101"
ARCHIVE = f"cpython-{HERE}.99+{RELEASE}-x86_64-unknown-linux-gnu-install_only_stripped.tar.gz"
SYSCONFIG = (
    b"# system configuration generated and used by the sysconfig module\nbuild_time_vars = {}\n"
)
ORIGIN = "https://github.com/astral-sh/python-build-standalone/releases/download"
SEARCHED = [Path("/usr/local/bin"), Path("/usr/bin"), *Path("/opt").glob("*/bin")]


@dataclass
class Mirror:
    """A mirror of Python builds in a folder, and the settings that point uv to it."""

    folder: Path
    url: str
    environ: dict[str, str]

    @property
    def archive(self) -> Path:
        return self.folder / RELEASE / ARCHIVE


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Mirror]:
    folder = tmp_path / "a mirror"
    archive = folder / RELEASE / ARCHIVE
    archive.parent.mkdir(parents=True)
    script = f'#!/bin/sh\nexec {str(interpreter(tmp_path))!r} "$@"\n'.encode()
    library = f"python/lib/python{HERE}"
    files = {f"python/bin/{name}": script for name in (f"python{HERE}", "python3", "python")}
    files[f"{library}/_sysconfigdata__linux_x86_64-linux-gnu.py"] = SYSCONFIG
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o755
            tar.addfile(member, io.BytesIO(content))
    major, minor = map(int, HERE.split("."))
    build = {
        "name": "cpython",
        "arch": {"family": "x86_64", "variant": None},
        "os": "linux",
        "libc": "gnu",
        **{"major": major, "minor": minor, "patch": 99, "prerelease": "", "variant": None},
        "url": f"{ORIGIN}/{RELEASE}/{ARCHIVE.replace('+', '%2B')}",
        "sha256": hashlib.sha256(archive.read_bytes()).hexdigest(),
        "build": RELEASE,
    }
    known = tmp_path / "known.json"
    known.write_text(json.dumps({f"cpython-{HERE}.99-linux-x86_64-gnu": build}))
    with files_served(folder) as url:
        yield Mirror(folder, url, {"UV_PYTHON_DOWNLOADS_JSON_URL": str(known)})


def interpreter(folder: Path) -> Path:
    """Return the Python that runs the tests; a copy in ``folder`` if ``hide_pythons`` hides it."""
    path = Path(sys.executable).resolve()
    if path.parent not in SEARCHED:
        return Path(sys.executable)
    return Path(shutil.copy2(path, folder / "interpreter"))


@contextmanager
def files_served(folder: Path) -> Iterator[str]:
    class Files(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(folder))  # type: ignore

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def bare(copy: Copy, mirror: Mirror, tmp_path: Path) -> Iterator[Copy]:
    """A copy without uv that reaches an index and the mirror, and wants this version of Python."""
    shutil.rmtree(copy.root / ".bootstrap")
    copy.lock("alpha==1.0", "beta==1.0", uv_marker="")
    (tmp_path / "index").mkdir()
    (tmp_path / "index/usual").symlink_to(copy.wheelhouse)
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS"):
        del copy.environ[name]
    with served(tmp_path / "index") as url:
        copy.environ |= {"VQA_OFFLINE": "0", "VQA_PYTHON": HERE, "PIP_INDEX_URL": f"{url}/usual"}
        copy.environ |= mirror.environ | {"UV_PYTHON_INSTALL_MIRROR": mirror.url}
        hide_pythons(copy)
        yield copy


def hide_pythons(copy: Copy, *kept: str) -> None:
    """From now on, each call is made where no Python is found, and no program but the usual ones.

    ``kept``: what else is there of the programs that fetch and unpack.
    """
    tools = copy.home / "tools"
    shutil.rmtree(tools, ignore_errors=True)
    tools.mkdir()
    unusual = re.compile(r"curl|wget|git|python|pip|uv|unzip|conda|pyenv|zip")
    for path in (*Path("/bin").iterdir(), *Path("/usr/bin").iterdir()):
        if (path.name in kept or not unusual.match(path.name)) and os.access(path, os.X_OK):
            (tools / path.name).exists() or (tools / path.name).symlink_to(path)
    copy.environ["PATH"] = str(tools)
    hidden = [path for folder in SEARCHED for path in folder.glob("python*") if path.is_file()]
    hide = "".join(f"mount --bind /dev/null {str(path)!r} && " for path in hidden)
    alone = ["unshare", "--mount"]
    alone += [] if os.geteuid() == 0 else ["--map-root-user"]
    alone += ["sh", "-c", f'{hide}exec "$@"', "-"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"]).returncode:
        pytest.skip("no mount namespaces here")
    copy.before = [str(shutil.which("unshare")), *alone[1:]]


def managed(copy: Copy) -> Path:
    return copy.root / ".venv.python"


def nothing_is_installed(copy: Copy) -> bool:
    state = copy.root / ".bootstrap"
    left = [path.name for path in state.iterdir()] if state.exists() else []
    return not (managed(copy).exists() or copy.venv.exists() or set(left) - {f"uv-{UV_VERSION}"})


@pytest.mark.parametrize("tools", [("curl", "unzip"), ("wget",)])
def test_without_any_python_one_is_fetched_and_trains(bare: Copy, tools: tuple[str, ...]) -> None:
    hide_pythons(bare, *tools)
    process = bare.start("--skip", "checkpoint", "--", "--epochs", "1")
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 7, out + err  # the exit code of train
    assert f"fetching Python {HERE}" in out.splitlines()[0] and str(managed(bare)) in out
    assert bare.python("import alpha; print(alpha.version)") == "1.0"
    assert f"uv {UV_VERSION}, as requirements.lock names it, kept from before" in out
    bare.environ["PIP_INDEX_URL"] = bare.environ["UV_PYTHON_INSTALL_MIRROR"] = "http://127.0.0.1:1"
    assert "fetching" not in bare.run("env").stdout


def test_an_old_python_is_enough_to_fetch_a_new_one(bare: Copy) -> None:
    old = next(iter(sorted(Path.home().glob(".pyenv/versions/3.[6-9].*/bin/python3"))), None)
    if old is None:
        pytest.skip("no Python from 3.6 to 3.9 here")
    program(bare.home / "tools/python3", f'exec {str(old)!r} "$@"')
    bare.run("env")
    assert bare.python("import alpha; print(alpha.version)") == "1.0"


def test_a_python_without_pip_needs_only_uv(bare: Copy) -> None:
    hide_pythons(bare, "curl")
    hide = "import sys, importlib.util as u; find = u.find_spec; "
    hide += "u.find_spec = lambda name: None if 'pip' in name else find(name); "
    hide += "exec(open(sys.argv.pop(1)).read())"
    here = str(interpreter(bare.home))
    probe = f'case "$2" in */probe.py) exec {here!r} -c "{hide}" "$2" "$3" ;; esac\n'
    python = program(bare.home / "tools/python3", f'{probe}exec {here!r} "$@"')
    del bare.environ["VQA_PYTHON"]
    assert "stage env would fetch it" in bare.run("check", exits=11).stdout
    err = bare.run("env", "--installer", "pip", "--python", str(python), exits=11).stdout
    assert "apt install python3-venv" in err
    assert nothing_is_installed(bare)
    bare.run("env")
    assert bare.python("import alpha; print(alpha.version)") == "1.0"
    assert not managed(bare).exists()


def test_wrong_bytes_are_refused(bare: Copy, mirror: Mirror) -> None:
    hide_pythons(bare, "curl")
    content = bytearray(mirror.archive.read_bytes())
    content[len(content) // 2] ^= 1
    mirror.archive.write_bytes(content)
    err = bare.run("env", exits=15).stderr
    assert err.count("\n") == 1 and mirror.url in err
    assert nothing_is_installed(bare)


def test_a_mirror_that_is_none_is_named(bare: Copy, mirror: Mirror) -> None:
    hide_pythons(bare, "curl")
    mirror.archive.unlink()
    err = bare.run("env", "--python-mirror", f"{mirror.url}/no", exits=11).stderr
    assert f"{mirror.url}/no" in err and "404" in err
    for way in ("module load", "--python PATH", "--python-mirror", "--with-python"):
        assert way in err
    mirror.archive.write_text("<!DOCTYPE html><html>Log in</html>")
    err = bare.run("env", exits=15).stderr
    assert err.count("\n") == 1 and mirror.url in err
    assert nothing_is_installed(bare)


@pytest.mark.parametrize("password", ["s3cret", "pa/s3cret", "s3cret#x", "x@s3cret/y", "s3cret?"])
def test_no_password_is_shown(bare: Copy, mirror: Mirror, password: str) -> None:
    hide_pythons(bare, "curl")
    bare.environ["VQA_PYTHON"] = "managed"
    url = f"http://me:{password}@127.0.0.1:1"
    err = bare.run("env", "--python-mirror", url, exits=11).stderr
    assert "s3cret" not in err and "127.0.0.1:1" in err
    shutil.rmtree(bare.root / ".bootstrap", ignore_errors=True)
    err = bare.run("env", exits=11, PIP_INDEX_URL=f"{url}/simple", UV_DEFAULT_INDEX="").stderr
    assert "s3cret" not in err and "127.0.0.1:1" in err
    assert nothing_is_installed(bare)


def test_a_uv_that_is_not_the_locks_is_refused(bare: Copy) -> None:
    hide_pythons(bare, "curl")
    lock = bare.root / "requirements.lock"
    text = lock.read_text()
    lock.write_text(text[:-5] + ("0000\n" if text[-5:-1] != "0000" else "1111\n"))
    err = bare.run("env", exits=15).stderr
    assert err.count("\n") == 1 and "requirements.lock" in err
    assert nothing_is_installed(bare)


def test_an_index_that_is_none_is_named_without_its_password(bare: Copy, mirror: Mirror) -> None:
    hide_pythons(bare, "curl")
    index = mirror.url.replace("://", "://someone:hush-hush@")
    err = bare.run("env", PIP_INDEX_URL=index, exits=11).stderr
    assert "404" in err and "/uv/" in err and "hush-hush" not in err
    assert nothing_is_installed(bare)


@pytest.mark.parametrize("way", ["interrupted", "failed"])
@pytest.mark.parametrize("other", ["done", "at work", "none"])
def test_the_python_of_another_bootstrap_stays(bare: Copy, way: str, other: str) -> None:
    """Two were started together, and one of them is given up."""
    began, end = bare.home / "began", bare.home / "end"
    program(
        bare.home / "tools/curl",
        "touch ~/began; while [ ! -e ~/end ]; do sleep 0.05; done; echo no >&2; exit 1",
    )
    process = bare.start("env")
    while not began.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    python = managed(bare) / "cpython-3.1.4-linux/bin/python3.1"  # of another version
    if other == "done":
        program(python, "exit 1")
    else:
        (managed(bare) / ".temp").mkdir(parents=True)
    if other == "at work":
        (bare.root / ".bootstrap/tmp-python-0").mkdir()
    if way == "interrupted":
        os.killpg(process.pid, signal.SIGINT)
    end.touch()
    _, err = process.communicate(timeout=LIMIT)
    assert process.returncode == (130 if way == "interrupted" else 11), err
    assert python.exists() == (other == "done")
    assert managed(bare).exists() == (other != "none")


def test_two_at_once_fetch_one_python(bare: Copy) -> None:
    """The slower one does not replace the Python in which the other may be at work."""
    began, end = bare.home / "began", bare.home / "end"
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("no curl here")
    wait = "mkdir ~/began 2>/dev/null && while [ ! -e ~/end ]; do sleep 0.05; done"
    program(bare.home / "tools/curl", f'{wait}\nexec {curl} "$@"')
    slow = bare.start("env")
    while not began.exists():
        assert slow.poll() is None, slow.communicate()
        time.sleep(0.01)
    bare.run("env")
    (python,) = managed(bare).glob(f"cpython-{HERE}.99-*/bin/python{HERE}")
    before = python.stat()
    end.touch()
    out, err = slow.communicate(timeout=LIMIT)
    assert slow.returncode == 0, out + err
    assert python.stat().st_ino == before.st_ino


def test_a_managed_python_that_is_damaged_is_fetched_again(bare: Copy) -> None:
    hide_pythons(bare, "curl")
    bare.run("env")
    (python,) = managed(bare).glob(f"cpython-{HERE}.99-*/bin/python{HERE}")
    python.write_bytes(b"")
    assert "fetching" in bare.run("env").stdout
    assert python.read_bytes() != b""


def test_managed_with_the_network_off(copy: Copy) -> None:
    err = copy.run("env", "--python", "managed", "--offline", exits=11).stderr
    assert err.count("\n") == 1 and "--offline" in err
    assert not copy.venv.exists() and not managed(copy).exists()


def test_looking_fetches_nothing(bare: Copy) -> None:
    assert "would fetch" in bare.run("check", exits=11).stderr
    assert "would fetch" in bare.run("--dry-run").stdout
    assert nothing_is_installed(bare)


@pytest.mark.parametrize("split", [(), ("--split", "10M")])
def test_a_bundle_brings_a_python_to_a_machine_with_none(
    bare: Copy, mirror: Mirror, tmp_path: Path, split: tuple[str, ...]
) -> None:
    out = tmp_path / "a 'bundle' [ü]"
    alone, bare.before = bare.before, []
    command = ("bundle", str(out), "--with-python", "--python", HERE, "--skip", "checkpoint")
    bare.run(*command, *split, VQA_PYTHON=sys.executable)
    (archive,) = (out / "python").rglob("cpython-*")
    assert archive.read_bytes() == mirror.archive.read_bytes()
    mirror.archive.unlink()
    assert "nothing to do" in bare.run(*command, *split, VQA_PYTHON=sys.executable).stdout
    subprocess.run(["sha256sum", "--quiet", "-c", "MANIFEST.sha256"], cwd=out, check=True)
    folder, home = tmp_path / "server", tmp_path / "home of the server"
    folder.mkdir()
    home.mkdir()
    subprocess.run(["tar", "-xzf", out / "code.tar.gz"], cwd=folder, check=True)
    kept = ("PATH", "LC_ALL", "PIP_CONFIG_FILE", "UV_PYTHON_DOWNLOADS_JSON_URL")
    environ = {name: bare.environ[name] for name in kept}
    environ |= {"HOME": str(home), "TORCH_HOME": str(home)}
    there = Copy(folder / "vqa_repro", home, bare.wheelhouse, environ, alone)
    there.run("env", "--bundle", str(out))
    assert there.python("import alpha; print(alpha.version)") == "1.0"
    archive.write_bytes(b"x" + archive.read_bytes()[1:])
    shutil.rmtree(managed(there))
    shutil.rmtree(there.venv)
    assert there.run("env", "--bundle", str(out), exits=15).stderr.count("\n") == 1
    assert not there.venv.exists()
