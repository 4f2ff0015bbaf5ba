"""The wheels that the locks name, fetched by a downloader that resumes.

A wheel's address stands in the index's page of its package, with its sha256. The downloader is that
of the checkpoints: it survives kills, stalls and servers that misbehave, and a file gets its name
only once its hash is one of the lock's. What cannot be had in this way (an index without hashes,
PIP_FIND_LINKS, a password from a keyring) pip downloads: verified too, but without resume.
"""

import contextlib
import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from vqa_repro.install.bundle_format import (
    AGAIN,
    is_plain,
    megabytes,
    say,
)
from vqa_repro.install.download import download
from vqa_repro.install.errors import ExitCode, InstallError
from vqa_repro.install.http_client import BadAddress, SourceFailed
from vqa_repro.install.lockfile import Entry, entries, lock_of
from vqa_repro.install.package_index import STALL_S, find_wheel, indexes, pages, platform_tags
from vqa_repro.install.redact import redact
from vqa_repro.install.torch_builds import how_to_have
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.files import sha256_of

DOWNLOADS = 4  # at a time


def read_locks(folder: Path, torch: str) -> dict[str, bytes]:
    """name -> content of each lock of an installation with this build of torch."""
    locks = {}
    for name in (lock_of(torch), "wordnet.lock", "jupyter.lock"):
        path = folder / name
        if not path.exists():
            raise InstallError(
                ExitCode.NO_TORCH_BUILD,
                f"no {name}, the lock of the {torch} build of torch; {how_to_have(torch)}",
            )
        locks[name] = path.read_bytes()
    return locks


def wanted_wheels(locks: Iterable[bytes], python: str) -> list[Entry]:
    """What the locks name for this Python (3.X, whatever its third number) and this platform."""
    found: dict[tuple[str, str], Entry] = {}
    for lock, patch in itertools.product(locks, ("0", "99")):
        for entry in entries(lock.decode(), f"{python}.{patch}"):
            key = (entry.name, entry.version)
            hashes = entry.hashes & found.get(key, entry).hashes  # one wheel for all locks
            if not hashes:
                raise UserError(
                    f"the locks name different wheels of {entry.name}=={entry.version}; make them "
                    "again: python .ci/make_lock.py"
                )
            found[key] = entry._replace(hashes=hashes)
    return list(found.values())


def lock_text(wanted: Iterable[Entry]) -> str:
    """A lock of these alone."""
    text = ""
    for entry in wanted:
        hashes = [f"--hash=sha256:{sha256}" for sha256 in sorted(entry.hashes)]
        text += " \\\n    ".join([f"{entry.name}=={entry.version}", *hashes]) + "\n"
    return text


def fetch_wheels(folder: Path, arriving: Path, wanted: list[Entry], python: str) -> None:
    """Have in ``folder`` one wheel for each entry, and nothing else; what is there is hashed.

    ``arriving`` keeps what has come of those that are not whole yet.
    """
    there = {sha256_of(path): path for path in folder.iterdir() if is_plain(path)}
    kept = {there[sha256] for entry in wanted for sha256 in entry.hashes & there.keys()}
    missing = [entry for entry in wanted if entry.hashes.isdisjoint(there)]
    for path in folder.iterdir():
        if path not in kept:
            path.unlink()
    say(f"{len(wanted)} wheels, of which {len(wanted) - len(missing)} are there")
    pip = pip_command(arriving / "pip")
    sources = indexes(pip)
    with ThreadPoolExecutor(DOWNLOADS) as pool:
        downloads = [
            pool.submit(fetch, entry, folder, arriving, python, sources, pip) for entry in missing
        ]
        try:
            for number, download in enumerate(as_completed(downloads), 1):
                path = download.result()
                size = megabytes(path.stat().st_size)
                say(f"{number} of {len(missing)}: {path.name}, {size}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def fetch(
    entry: Entry, folder: Path, arriving: Path, python: str, sources: list[str], pip: list[str]
) -> Path:
    """Download one wheel; it is put into ``folder`` only if its hash is the lock's."""
    named = [f"{index.rstrip('/')}/{entry.name}/" for index in sources]
    for page in [*named, *pages()]:
        with contextlib.suppress(SourceFailed, BadAddress):
            remote = find_wheel(entry, page, python)
            if remote is not None:
                wheel = arriving / remote[0].filename
                try:
                    download(*remote, wheel, STALL_S)
                except InstallError:
                    raise no_room(f"{entry.name}=={entry.version}") from None
                break
    else:
        wheel = fetch_by_pip(entry, arriving / f"pip-{entry.name}", python, sources, pip)
        if sha256_of(wheel) not in entry.hashes:
            raise InstallError(
                ExitCode.HASH_MISMATCH, f"{wheel.name} is not the one that the lock names"
            )
    os.replace(wheel, folder / wheel.name)
    return folder / wheel.name


# ---------------------------------------------------------------- by pip


def pip_command(scratch: Path) -> list[str]:
    """pip of this Python, or the wheel of it that its ensurepip carries, unpacked; or nothing."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-I", "-m", "pip"]
    if importlib.util.find_spec("ensurepip"):
        import ensurepip

        places = [getattr(ensurepip, "_WHEEL_PKG_DIR", None), Path(ensurepip.__file__).parent]
        for place in filter(None, places):
            for wheel in Path(place).rglob("pip-*.whl"):
                with zipfile.ZipFile(wheel) as archive:
                    archive.extractall(scratch)
                return [sys.executable, "-I", str(scratch / "pip")]
    return []


def fetch_by_pip(
    entry: Entry, scratch: Path, python: str, sources: list[str], pip: list[str]
) -> Path:
    """Download one wheel from these indexes, with all else that pip is set to use."""
    requirement = f"{entry.name}=={entry.version}"
    if not pip:
        why = f"no index has it, and {sys.executable} has no pip to look elsewhere"
        raise InstallError(ExitCode.PACKAGES, f"{requirement}: {why}; take another Python")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    (scratch / "wanted.txt").write_text(lock_text([entry]), encoding="ascii")
    command = [*pip, "download", "--quiet", "--no-deps", "--require-hashes", "--only-binary=:all:"]
    command += ["--no-cache-dir", "--retries", "5", "--implementation", "cp"]
    command += ["--python-version", python, "--abi", f"cp{python.replace('.', '')}"]
    command += ["--abi", "abi3", "--abi", "none"]
    command += [word for tag in platform_tags() for word in ("--platform", tag)]
    settings = {"PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    if sources:  # as variables: a command line is seen by all users
        settings["PIP_INDEX_URL"] = sources[0]
        settings["PIP_EXTRA_INDEX_URL"] = " ".join(sources[1:])
    done = subprocess.run(
        [*command, "--dest", str(scratch), "-r", str(scratch / "wanted.txt")],
        env={**os.environ, **settings, "TMPDIR": str(scratch)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode:
        raise failed_download(requirement, done.stderr)
    (wheel,) = scratch.glob("*.whl")
    return wheel


def no_room(requirement: str) -> InstallError:
    return InstallError(
        ExitCode.DISK_FULL, f"{requirement}: no space left on the disk; free some, then {AGAIN}"
    )


def failed_download(requirement: str, output: str) -> InstallError:
    output = redact(output)
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines or ["no reason given"]
    if re.search("no space left|quota exceeded", output, re.IGNORECASE):
        return no_room(requirement)
    if "DO NOT MATCH THE HASHES" in output:
        what = "hash mismatch: the file is not the one that the lock names; try another index"
        return InstallError(ExitCode.HASH_MISMATCH, f"{requirement}: {what}")
    return InstallError(
        ExitCode.PACKAGES, f"{requirement} could not be downloaded: {errors[-1][:300]}; {AGAIN}"
    )
