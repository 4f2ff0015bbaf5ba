"""The tunnel command that shows a page of this machine on a laptop."""

import subprocess
import sys

import pytest
from conftest import LIMIT, environ

from vqa_repro.utils.tunnel import tunnel_lines


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SSH_CONNECTION", "SLURM_JOB_ID", "SLURM_SUBMIT_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOGNAME", "ada")
    monkeypatch.setattr("socket.getfqdn", lambda: "gpu1.example.org")
    monkeypatch.setattr("socket.gethostname", lambda: "gpu1")


def test_a_machine_with_a_configured_name() -> None:
    lines = tunnel_lines(8420, "/?token=t")
    assert "  ssh -N -L 8420:127.0.0.1:8420 ada@gpu1.example.org" in lines
    assert "  plink -N -L 8420:127.0.0.1:8420 ada@gpu1.example.org" in lines
    assert lines[-1].endswith("http://127.0.0.1:8420/?token=t")


def test_the_address_of_this_ssh_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_CONNECTION", "192.0.2.7 51000 198.51.100.4 22")
    assert "  ssh -N -L 80:127.0.0.1:80 ada@198.51.100.4" in tunnel_lines(80)
    monkeypatch.setenv("SSH_CONNECTION", "192.0.2.7 51000 198.51.100.4 2222")
    lines = tunnel_lines(80)
    assert "  ssh -N -L 80:127.0.0.1:80 -p 2222 ada@198.51.100.4" in lines
    assert "  plink -N -L 80:127.0.0.1:80 -P 2222 ada@198.51.100.4" in lines


def test_a_slurm_job_is_reached_through_the_host_it_was_submitted_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSH_CONNECTION", "192.0.2.7 51000 198.51.100.4 22")  # sbatch forwards it
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_SUBMIT_HOST", "login2")
    lines = tunnel_lines(8888)
    assert "  ssh -N -L 8888:127.0.0.1:8888 -J ada@login2 ada@gpu1" in lines
    assert "198.51.100.4" not in "\n".join(lines)


def test_names_are_quoted_and_localhost_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOGNAME", "LAB\\ada")
    monkeypatch.setattr("socket.getfqdn", lambda: "localhost")
    assert "  ssh -N -L 80:127.0.0.1:80 'LAB\\ada@gpu1'" in tunnel_lines(80)


def test_the_verb_prints_the_commands_without_torch() -> None:
    code = (
        "import sys; from vqa_repro.utils.tunnel import main; main(['--port', '8888']); "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ(), capture_output=True, text=True, timeout=LIMIT
    )
    assert done.returncode == 0 and "ssh -N -L 8888:127.0.0.1:8888" in done.stdout
