"""JupyterLab, in an environment inside the other: its settings, its start and its end.

The machine's own configuration (/etc/jupyter, ~/.jupyter) is not read: an empty token, a password
or another address there would change what is printed here, or open the server to others.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

from vqa_repro.install import locks, processes
from vqa_repro.install.console import say
from vqa_repro.install.errors import ExitCode, InstallError
from vqa_repro.install.options import PROJECT, STATE
from vqa_repro.install.session import Session

HOST = socket.gethostname() or "?"  # not HOSTNAME, which Slurm takes from the login node
HOME = STATE / "jupyter"
FOLDER = HOME / HOST  # a home may be shared: each machine has a server of its own
START_S, STOP_S = 300, 30  # a slow disk takes minutes over the first imports

# Of the folders that Jupyter reads settings from, only those of its own environment stay; that of
# the user is named by a variable.
LAUNCH = """
import runpy, sys
try:
    from jupyter_core import paths
    paths.SYSTEM_CONFIG_PATH.clear()
    paths.ENV_CONFIG_PATH[:] = [sys.prefix + "/etc/jupyter"]
except (ImportError, AttributeError):
    pass
runpy.run_module("jupyterlab", run_name="__main__", alter_sys=True)
"""


class Server(NamedTuple):
    """A JupyterLab that runs on this machine; port 0 until it listens."""

    pid: int
    since: str
    port: int = 0
    path: str = ""  # of the address, with the token


def find() -> Server | None:
    """Return the server that runs here; None without one."""
    try:
        pid, start, since = (FOLDER / "server").read_text().strip().split(" ", 2)
        if not locks.is_running(int(pid), start):
            return None
        server = Server(int(pid), since)
    except (OSError, ValueError):
        return None
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        # Written by Jupyter when it listens.
        facts = json.loads((FOLDER / f"runtime/jpserver-{pid}.json").read_text())
        query = f"?token={facts['token']}" if facts["token"] else ""
        return server._replace(port=int(facts["port"]), path=facts["base_url"] + query)
    return server


def configure(prefix: Path, kernel_python: Path) -> None:
    """Write the settings into JupyterLab's environment, and nothing into the home.

    Nothing in them asks the internet: no news, no updates, no extensions to be had. Jupyter's
    SQLite files stay in memory: homes on a network often have no file locks.
    """
    command = [str(kernel_python), "-I", "-Xfrozen_modules=off", "-m", "ipykernel_launcher"]
    command += ["--HistoryManager.hist_file=:memory:", "-f", "{connection_file}"]
    kernel = {"argv": command, "display_name": "vqa_repro", "language": "python"}
    write(
        prefix / "share/jupyter/kernels/vqa_repro/kernel.json",
        kernel | {"metadata": {"debugger": True}},
    )
    server: dict[str, Any] = {"ip": "127.0.0.1", "port": 8888, "base_url": "/"}
    server |= {"open_browser": False, "root_dir": str(PROJECT), "allow_root": os.geteuid() == 0}
    lab: dict[str, Any] = {
        "default_url": "/lab/tree/notebooks/tour.ipynb",
        "extension_manager": "readonly",
    }
    lab |= {"check_for_updates_class": "jupyterlab.NeverCheckForUpdate", "news_url": None}
    kernels = {"allowed_kernelspecs": ["vqa_repro"], "ensure_native_kernel": False}
    settings = {"ServerApp": server, "LabApp": lab, "KernelSpecManager": kernels}
    settings |= {"MultiKernelManager": {"default_kernel_name": "vqa_repro"}}
    settings |= {
        "NotebookNotary": {"db_file": ":memory:"},
        "FileIdManager": {"db_path": ":memory:"},
    }
    write(prefix / "etc/jupyter/jupyter_server_config.json", settings)
    names = "apputils-extension:announcements", "extensionmanager-extension"
    disabled = {"disabledExtensions": {f"@jupyterlab/{name}": True for name in names}}
    write(prefix / "etc/jupyter/labconfig/page_config.json", disabled)


def write(path: Path, values: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1), encoding="ascii")


def start(session: Session, venv: Path, jupyter: Path) -> Server:
    """Start it in the background; return when it listens. Ctrl-C until then ends it."""
    python = str(jupyter / "bin/python")
    mask = os.umask(0o077)
    FOLDER.mkdir(parents=True, exist_ok=True)
    log = (FOLDER / "log").open("wb")
    os.umask(mask)
    configure(jupyter, venv / "bin/python")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("JUPYTER_")}
    environ |= {
        "JUPYTER_CONFIG_DIR": str(HOME / "config"),
        "JUPYTER_DATA_DIR": str(HOME / "data"),
        "JUPYTER_RUNTIME_DIR": str(FOLDER / "runtime"),
        "IPYTHONDIR": str(HOME / "ipython"),
        "VIRTUAL_ENV": str(venv),  # for JupyterLab's terminals
        "PATH": f"{venv / 'bin'}:{os.environ.get('PATH', os.defpath)}",
    }
    with log:
        process = subprocess.Popen(
            [python, "-I", "-c", LAUNCH, *session.options.rest],
            cwd=PROJECT,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=ignore_hangup,
        )
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        began = locks.start_time(process.pid)
        (FOLDER / "server").write_text(f"{process.pid} {began} {since}\n")
        server = wait(session, process)
        if server.port > 65535:
            raise InstallError(
                ExitCode.JUPYTER,
                "JupyterLab is not started",
                f"there is no port {server.port}",
                f"name one up to 65535: {session.options.command('jupyter')} -- --port PORT",
            )
        if "?token=" in server.path:
            return server
        raise InstallError(
            ExitCode.JUPYTER,
            "JupyterLab is not started",
            "its arguments leave it without a token, open to everybody on this machine",
            f"leave out what changes the token: {session.options.command('jupyter')}",
        )
    except BaseException:
        processes.end_group(process.pid, process.poll)
        raise


def ignore_hangup() -> None:
    """Outlive a dropped connection."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def wait(session: Session, process: subprocess.Popen[bytes] | None) -> Server:
    """Wait until the server listens. Raise InstallError if it ends before."""
    end = time.monotonic() + START_S
    while True:
        if process:
            process.poll()
        server = find()
        if server and server.port:
            return server
        if server is None or time.monotonic() > end:
            why = "its log says it" if server is None else f"no answer within {START_S} s"
            with contextlib.suppress(OSError):
                session.log.text = (FOLDER / "log").read_text(errors="replace")
                session.log.path = FOLDER / "log"
            raise InstallError(
                ExitCode.JUPYTER,
                "JupyterLab does not start",
                why,
                session.options.command("jupyter"),
            )
        time.sleep(0.1)


def stop(session: Session) -> None:
    server = find()
    if server is None:
        say(f"jupyter: none runs on {HOST}")
    elif session.options.dry_run:
        say(f"jupyter: would stop process {server.pid}")
    else:
        # Jupyter ends its kernels first; one that trains is given time to save.
        processes.end_group(server.pid, seconds=STOP_S)
        (FOLDER / "server").unlink(missing_ok=True)
        say(f"jupyter: stopped (process {server.pid})")
