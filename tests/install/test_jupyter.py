"""./bootstrap.sh jupyter with a stand-in for JupyterLab; the last test uses the real one."""

import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from conftest import LIMIT
from installer_copy import ROOT, Copy
from jupyter_client.blocking.client import BlockingKernelClient
from test_bootstrap import files_below, is_alive, wait_for
from wheel_index import lock_text, make_wheel

URL = re.compile(r"http://127\.0\.0\.1:(\d+)/\?token=(\S+)")

HERE = socket.gethostname()
RENAMED = """
import os, socket, sys
socket.sethostname("there")
os.execv(sys.argv[1], sys.argv[1:])
"""

# Writes its port and token where bootstrap.sh looks for them, and waits.
STAND_IN = """
import json, os, pathlib, sys, time
runtime = pathlib.Path(os.environ["JUPYTER_RUNTIME_DIR"])
runtime.mkdir(parents=True, exist_ok=True)
print("started with", json.dumps([sys.argv[1:], dict(os.environ)]), flush=True)
if "--fail" in sys.argv:
    sys.exit("no such option: --fail")
if "--slow" not in sys.argv:
    state = {"base_url": "/", "pid": os.getpid(), "port": 4711, "token": "secret%d" % os.getpid()}
    text = json.dumps(state, indent=2, sort_keys=True)
    (runtime / f"jpserver-{os.getpid()}.json").write_text(text)
time.sleep(100)
"""


@pytest.fixture
def project(copy: Copy) -> Iterator[Copy]:
    """Provide a copy whose JupyterLab is the stand-in."""
    make_wheel(copy.home, "jupyterlab", "1.0", {"jupyterlab/__main__.py": STAND_IN.encode()})
    (copy.root / "jupyter.lock").write_text(lock_text(copy.home, "jupyterlab==1.0"))
    copy.environ |= {"PIP_FIND_LINKS": f"{copy.home} {copy.wheelhouse}", "HOSTNAME": "login"}
    yield copy
    for server in servers(copy):
        os.kill(server, signal.SIGKILL)


def servers(project: Copy) -> list[int]:
    """Return the process of each running server by machine."""
    states = sorted(project.root.glob(".bootstrap/jupyter/*/server"))
    return [pid for pid in (int(state.read_text().split()[0]) for state in states) if is_alive(pid)]


def started_with(project: Copy) -> tuple[list[str], dict[str, str]]:
    """Return the arguments and the environment of the newest server."""
    log = (project.root / f".bootstrap/jupyter/{HERE}/log").read_text()
    arguments, environ = json.loads(log.partition("started with ")[2].splitlines()[0])
    return arguments, environ


def test_it_is_installed_separately_started_once_and_stopped(project: Copy) -> None:
    first = project.run("jupyter").stdout
    (server,) = servers(project)
    assert f"open http://127.0.0.1:4711/?token=secret{server}\n" in first
    assert "ssh -N -L 4711:127.0.0.1:4711 " in first
    names = "import importlib.metadata as m; print(*sorted({d.name for d in m.distributions()}))"
    assert project.python(names) == "alpha beta words"  # and no JupyterLab
    again = project.run("jupyter", "--", "--other").stdout
    assert servers(project) == [server]
    assert re.search(
        rf"^jupyter: runs since \d{{4}}-.* \(process {server} on {re.escape(HERE)}\)$", again, re.M
    )
    assert f"token=secret{server}" in again
    assert "arguments stay as they were" in again
    assert f"stopped (process {server})" in project.run("jupyter", "stop").stdout
    assert not is_alive(server)
    assert f"none runs on {HERE}" in project.run("jupyter", "stop").stdout
    left = {path.name for path in project.home.iterdir()}
    assert left == {".cache", "jupyterlab-1.0-py3-none-any.whl"}  # of the installer, of the project


def test_nothing_of_it_is_shown_to_other_users(project: Copy) -> None:
    project.run("jupyter")
    (server,) = servers(project)
    assert "secret" not in Path(f"/proc/{server}/cmdline").read_text()
    assert (project.root / ".bootstrap/jupyter").stat().st_mode & 0o077 == 0


def test_settings_of_another_jupyter_are_ignored(project: Copy) -> None:
    names = ("JUPYTER_TOKEN", "JUPYTER_CONFIG_DIR", "JUPYTER_PATH")
    project.run("jupyter", "--", "--one", "two words", **dict.fromkeys(names, "/elsewhere"))
    arguments, environ = started_with(project)
    assert arguments == ["--one", "two words"]
    own = {name: value for name, value in environ.items() if name.startswith(("JUPYTER_", "IPYT"))}
    folders = {f"JUPYTER_{name}_DIR" for name in ("CONFIG", "DATA", "RUNTIME")}
    assert own.keys() == folders | {"IPYTHONDIR"}
    assert all(value.startswith(f"{project.root}/.bootstrap/jupyter/") for value in own.values())
    assert environ["PATH"].startswith(f"{project.venv}/bin:")


def test_a_dropped_connection_does_not_end_it(project: Copy) -> None:
    project.run("jupyter")
    (server,) = servers(project)
    os.killpg(server, signal.SIGHUP)
    time.sleep(0.5)
    assert servers(project) == [server]


@pytest.mark.parametrize("left", ["killed", "of another process"])
def test_remains_of_a_lost_server_are_ignored(project: Copy, left: str) -> None:
    project.run("jupyter")
    (first,) = servers(project)
    state = project.root / f".bootstrap/jupyter/{HERE}/server"
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: not is_alive(first))
    if left == "of another process":  # this process, which started at another time
        state.write_text(f"{os.getpid()} 1 2026-01-01 12:00:00\n")
        assert "none runs" in project.run("jupyter", "stop").stdout
    assert "starting" in project.run("jupyter").stdout
    (second,) = servers(project)
    assert second not in (first, os.getpid())


def test_each_machine_of_a_shared_home_has_its_own(project: Copy) -> None:
    project.run("jupyter")
    (here,) = servers(project)
    # Another machine: a name of its own.
    project.before = ["unshare", "--uts", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    if subprocess.run([*project.before, "true"], capture_output=True).returncode:
        pytest.skip("needs the right to make a namespace")
    project.before += [sys.executable, "-c", RENAMED]
    project.run("jupyter")
    (there,) = set(servers(project)) - {here}
    assert f"stopped (process {there})" in project.run("jupyter", "stop").stdout
    assert servers(project) == [here]


def test_a_failing_start_is_explained(project: Copy) -> None:
    result = project.run("jupyter", "--", "--fail", exits=18)
    assert "no such option: --fail" in result.stderr
    assert servers(project) == []
    project.run("jupyter")


def test_ctrl_c_while_it_starts_leaves_nothing(project: Copy) -> None:
    process = project.start("jupyter", "--", "--slow")
    wait_for(lambda: servers(project) != [])
    (server,) = servers(project)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=LIMIT)
    assert process.returncode == 130
    assert not is_alive(server)
    assert not (project.root / ".bootstrap/lock").is_symlink()


def test_two_at_once_start_one(project: Copy) -> None:
    project.run("env")
    processes = [project.start("jupyter"), project.start("jupyter")]
    outs = [process.communicate(timeout=LIMIT)[0] for process in processes]
    assert sorted("runs since" in out for out in outs) == [False, True], outs
    (server,) = servers(project)
    assert all(f"token=secret{server}" in out for out in outs)


def test_a_changed_lock_updates_and_another_hash_is_refused(project: Copy) -> None:
    lock = project.root / "jupyter.lock"
    good = lock.read_text()
    lock.write_text(re.sub("sha256:....", "sha256:0000", good))
    assert "bootstrap.sh env" not in project.run("jupyter", exits=15).stderr
    assert project.run("env").stdout.startswith("env: up to date")
    lock.write_text(good + lock_text(project.wheelhouse, "alpha==2.0"))
    project.run("jupyter")
    python = project.venv / "jupyter/bin/python"
    code = "import alpha; print(alpha.version)"
    assert subprocess.check_output([python, "-c", code], text=True) == "2.0\n"
    assert project.python(code) == "1.0"


@pytest.mark.slow
def test_pip_installs_it_too(project: Copy) -> None:
    project.run("jupyter", "--installer", "pip")
    assert len(servers(project)) == 1
    assert "up to date" in project.run("jupyter", "--installer", "pip").stdout


def test_a_dry_run_starts_and_stops_nothing(project: Copy) -> None:
    before = files_below(project.root, project.home)
    assert "would start JupyterLab" in project.run("jupyter", "--dry-run").stdout
    assert files_below(project.root, project.home) == before
    project.run("jupyter")
    (server,) = servers(project)
    assert "would stop" in project.run("jupyter", "stop", "--dry-run").stdout
    assert servers(project) == [server]


def test_stop_is_for_jupyter(project: Copy) -> None:
    assert "'stop' is for jupyter" in project.run("stop", exits=2).stderr


# --- the real one ------------------------------------------------------------------------------


@pytest.fixture
def real(copy: Copy) -> Iterator[Copy]:
    """Provide a copy with the real jupyter.lock; its environment has a kernel but no torch."""
    lock = (ROOT / "jupyter.lock").read_text(encoding="utf-8")
    (copy.root / "jupyter.lock").write_text(lock, encoding="utf-8")
    text = (copy.root / "requirements.lock").read_text()
    uv = re.search(r"^uv==.*(\n .*)+\n", text, re.MULTILINE)
    assert uv
    (copy.root / "requirements.lock").write_text(lock + uv[0], encoding="utf-8")
    shutil.copytree(ROOT / "notebooks", copy.root / "notebooks")
    # The package index and the cache are those of the user who runs the tests.
    for name in ("PIP_NO_INDEX", "PIP_CONFIG_FILE", "VQA_OFFLINE"):
        del copy.environ[name]
    links = f"{os.environ.get('PIP_FIND_LINKS', '')} {copy.wheelhouse}".strip()
    copy.environ = os.environ | copy.environ | {"PIP_FIND_LINKS": links, "HOME": os.environ["HOME"]}
    made = copy.start("env")
    out, err = made.communicate(timeout=LIMIT)
    if made.returncode == 14:
        pytest.skip("no package index answers, so JupyterLab cannot be installed")
    assert made.returncode == 0, out + err
    yield copy
    for server in servers(copy):
        os.kill(server, signal.SIGKILL)


def typed_in_a_terminal_that_is_lost(project: Copy, command: str, until: str) -> str:
    """Return what ``command`` prints in a terminal up to ``until``; then close the terminal."""
    shell, terminal = pty.fork()
    if shell == 0:
        os.chdir(project.root)
        os.execve("/bin/bash", ["bash", "-c", f"{command}; sleep 1000"], project.environ)
    out = b""
    while until.encode() not in out:
        out += os.read(terminal, 4096)
    os.close(terminal)
    os.waitpid(shell, 0)
    return out.decode()


@pytest.mark.slow
def test_jupyterlab_itself(real: Copy) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", 8888))
            taken.listen()
        except OSError:
            pass  # used by another process
        out = typed_in_a_terminal_that_is_lost(real, "./bootstrap.sh jupyter", "to stop it")
    found = URL.search(out)
    assert found, out
    address, port, token = f"http://127.0.0.1:{found[1]}", int(found[1]), found[2]
    assert port != 8888
    (server,) = servers(real)

    # It listens on this machine only, needs the token and opens the notebook.
    assert requests.get(f"{address}/api/contents", timeout=LIMIT).status_code == 403
    assert "/login" in requests.get(f"{address}/lab", timeout=LIMIT).url
    page = requests.get(found[0], timeout=LIMIT)
    assert page.status_code == 200
    assert page.url.startswith(f"{address}/lab/tree/notebooks/tour.ipynb")
    with socket.socket() as other, pytest.raises(OSError):
        other.settimeout(5)
        other.connect(("127.0.0.2", port))

    # Its only kernel belongs to this project.
    headers = {"Authorization": f"token {token}"}
    specs = requests.get(f"{address}/api/kernelspecs", headers=headers, timeout=LIMIT).json()
    assert list(specs["kernelspecs"]) == [specs["default"]] == ["vqa_repro"]
    made = requests.post(
        f"{address}/api/kernels", headers=headers, json={"path": "notebooks"}, timeout=LIMIT
    )
    assert made.json()["name"] == "vqa_repro"
    (connection,) = real.root.glob(f".bootstrap/jupyter/*/runtime/kernel-{made.json()['id']}.json")
    client = BlockingKernelClient()
    client.load_connection_file(str(connection))
    client.start_channels(hb=False)  # a busy machine misses beats
    client.wait_for_ready(timeout=LIMIT)
    output: list[str] = []
    client.execute_interactive(
        "import os, sys, vqa_repro\n"
        "print(os.getpid(), sys.prefix, os.getcwd(), vqa_repro.__file__, sep='\\n')",
        timeout=LIMIT,
        output_hook=lambda message: output.append(message["content"].get("text", "")),
    )
    client.stop_channels()
    kernel, prefix, folder, package = "".join(output).splitlines()
    assert (prefix, folder) == (str(real.venv), str(real.root / "notebooks"))
    assert package == str(real.root / "vqa_repro/__init__.py")

    # The second call finds it; stopping is final.
    again = real.run("jupyter").stdout
    assert found[0] in again and f"process {server} on" in again
    real.run("jupyter", "stop")
    assert not is_alive(server) and not is_alive(int(kernel))
    with pytest.raises(requests.ConnectionError):
        requests.get(address, timeout=LIMIT)
