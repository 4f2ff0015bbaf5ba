"""How a laptop reaches a page on this machine that only this machine serves: an SSH tunnel.

python -m vqa_repro.utils.tunnel --port 8888
"""

import argparse
import getpass
import os
import shlex
import socket

from vqa_repro.utils.errors import main_guard


def tunnel_lines(port: int, path_and_query: str = "/") -> list[str]:
    """What to type on a laptop to open http://127.0.0.1:``port````path_and_query`` there.

    The machine's name is the address that this SSH session came to, or else the name it has for
    itself; in a Slurm job, its node is reached through the host that the job was submitted from.
    """
    forward = f"-N -L {port}:127.0.0.1:{port}"
    user = _user()
    login = os.environ.get("SLURM_SUBMIT_HOST")
    if "SLURM_JOB_ID" in os.environ and login:
        jump, node = shlex.quote(f"{user}@{login}"), shlex.quote(f"{user}@{socket.gethostname()}")
        lines = [
            "on a laptop (this is a Slurm job: the cluster has to let you ssh to your job's node)",
            f"  ssh {forward} -J {jump} {node}",
        ]
    else:
        host, ssh_port = _reached()
        at = shlex.quote(f"{user}@{host}")
        lines = [
            "on a laptop (with MobaXterm: in its local terminal)",
            f"  ssh {forward}{f' -p {ssh_port}' if ssh_port != '22' else ''} {at}",
            "  or, with PuTTY's plink:",
            f"  plink {forward}{f' -P {ssh_port}' if ssh_port != '22' else ''} {at}",
        ]
        login = host
    return [
        *lines,
        f"  (if you reach {login} by another name, put that name there)",
        f"then, on the laptop, open http://127.0.0.1:{port}{path_and_query}",
    ]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return "USER"


def _reached() -> tuple[str, str]:
    """(host, port) of the SSH server of this machine."""
    # "client's address, its port, server's address, its port"
    parts = os.environ.get("SSH_CONNECTION", "").split()
    if len(parts) == 4:
        return parts[2], parts[3]
    name = socket.getfqdn()
    return (socket.gethostname() if name.startswith("localhost") else name), "22"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m vqa_repro.utils.tunnel", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--port", type=int, required=True, help="the port served on 127.0.0.1")
    print("\n".join(tunnel_lines(parser.parse_args(arguments).port)))
    return 0


if __name__ == "__main__":
    main_guard(main)
