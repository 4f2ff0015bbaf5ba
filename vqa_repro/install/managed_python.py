"""The archive of a managed Python for a bundle, in the layout of a mirror that uv reads.

``python/RELEASE/ARCHIVE`` in the bundle is what uv looks for below ``--mirror``. uv verifies it by
the hash that it was built with, here and on the server.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import urllib.parse
import zipfile
from pathlib import Path

from vqa_repro.install.bundle_format import AGAIN, is_plain, say
from vqa_repro.install.errors import ExitCode, InstallError
from vqa_repro.install.redact import redact

RELEASE = re.compile(r"/(\d+)/(cpython-[\w.%+-]+\.tar\.gz)")


def fetch_python(bundle: Path, python: str) -> None:
    """Put the archive of Python ``python`` (3.X) into ``bundle``, whose wheels have uv.

    One that is there is verified. Raise InstallError where it cannot be had, or has wrong bytes.
    """
    scratch = bundle / "arriving/python"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    uv = unpack_uv(bundle / "wheels", scratch)
    release, name = wanted_archive(uv, python)
    path = bundle / "python" / release / name
    for other in (bundle / "python").rglob("*"):
        if other != path and (other.is_symlink() or not other.is_dir()):
            other.unlink()
    if is_plain(path) and not install(uv, python, scratch, (bundle / "python").as_uri()):
        return
    path.unlink(missing_ok=True)
    say(f"fetching Python {python}: {name}")
    error = install(uv, python, scratch)
    arrived = [*(scratch / "cache").glob("*.tar.gz")]
    if error or len(arrived) != 1:
        wrong = re.search("hash mismatch|invalid tar file", error, re.IGNORECASE)
        raise InstallError(
            ExitCode.HASH_MISMATCH if wrong else ExitCode.PACKAGES,
            f"Python {python} could not be fetched: {last_line(error)}",
            next=f"name a mirror with --python-mirror URL; {AGAIN}",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    os.replace(arrived[0], path)


def unpack_uv(wheels: Path, scratch: Path) -> Path:
    """Return the program in the bundle's wheel of uv."""
    for wheel in wheels.glob("uv-*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/scripts/uv"))
            uv = Path(archive.extract(name, scratch))
        uv.chmod(0o755)
        return uv
    raise InstallError(ExitCode.PACKAGES, "the locks name no uv, which fetches the Python")


def wanted_archive(uv: Path, python: str) -> tuple[str, str]:
    """Return (release, file name) of the build of Python ``python`` that this uv knows."""
    listing = [str(uv), "python", "list", f"cpython@{python}", "--only-downloads", "--show-urls"]
    done = run([*listing, "--output-format", "json"], {})
    builds = json.loads(done.stdout) if done.returncode == 0 else []
    found = RELEASE.search(builds[0]["url"]) if builds else None
    if found is None:
        reason = last_line(done.stderr)
        raise InstallError(ExitCode.PACKAGES, f"uv knows no Python {python} for here: {reason}")
    return found[1], urllib.parse.unquote(found[2])


def install(uv: Path, python: str, scratch: Path, mirror: str = "") -> str:
    """Let uv fetch and verify the archive, into scratch/cache; return its error, "" for none."""
    folder = scratch / "installed"
    shutil.rmtree(folder, ignore_errors=True)
    (scratch / "cache").mkdir(exist_ok=True)
    settings = {"UV_PYTHON_CACHE_DIR": str(scratch / "cache")}
    if mirror:
        settings = {"UV_PYTHON_INSTALL_MIRROR": mirror}
    command = [str(uv), "python", "install", python, "--install-dir", str(folder), "--no-bin"]
    done = run(command, settings)
    shutil.rmtree(folder, ignore_errors=True)
    return done.stderr.strip() or "no reason given" if done.returncode else ""


def run(command: list[str], settings: dict[str, str]) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "UV_PYTHON_DOWNLOADS": "manual", **settings}
    return subprocess.run(
        command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )


def last_line(text: str) -> str:
    return redact((text.strip().splitlines() or ["no reason given"])[-1].strip())
