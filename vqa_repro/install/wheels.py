"""The wheels that the locks name, brought by a downloader that continues where it was cut.

A wheel's address stands in the index's page of its package, with its sha256. The downloader is that
of the checkpoints: it survives kills, stalls and servers that misbehave, and a file gets its name
only once its hash is one of the lock's. What cannot be had in this way (an index without hashes,
PIP_FIND_LINKS, a password from a keyring) pip downloads: verified too, but anew after each cut.
"""

import contextlib
import html.parser
import importlib.util
import itertools
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import checkpoints_setup
from vqa_repro.install.bundle_format import (
    AGAIN,
    CHECKSUM_MISMATCH,
    DISK_FULL,
    DOWNLOAD_FAILED,
    NO_BUILD,
    BundleError,
    is_plain,
    megabytes,
    say,
    sha256_of,
)
from vqa_repro.install.lockfile import Entry, entries, lock_of
from vqa_repro.utils.errors import UserError

DOWNLOADS = 4  # at a time
STALL_S = 30.0
PAGE_LIMIT = 64 << 20  # bytes
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+!-]*\.whl")


def read_locks(folder: Path, torch: str) -> dict[str, bytes]:
    """name -> content of each lock of an installation with this build of torch."""
    locks = {}
    for name in (lock_of(torch), "wordnet.lock", "jupyter.lock"):
        path = folder / name
        if not path.exists():
            raise BundleError(
                NO_BUILD,
                f"no {name}, the lock of the {torch} build of torch; where its packages can be "
                f"reached: python .ci/make_lock.py --torch {torch}",
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
                    "anew: python .ci/make_lock.py"
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
    """Download one wheel; it comes to lie in ``folder`` only if its hash is the lock's."""
    of_no_use = checkpoints_setup.SourceFailed, checkpoints_setup.CheckpointError
    named = [f"{index.rstrip('/')}/{entry.name}/" for index in sources]
    for page in [*named, *pages()]:
        with contextlib.suppress(*of_no_use):
            found = find(entry, page, python)
            if found is not None:
                wheel = arriving / found[0].filename
                try:
                    checkpoints_setup.download(*found, wheel, STALL_S)
                except checkpoints_setup.CheckpointError:
                    raise no_room(f"{entry.name}=={entry.version}") from None
                break
    else:
        wheel = fetch_by_pip(entry, arriving / f"pip-{entry.name}", python, sources, pip)
    if sha256_of(wheel) not in entry.hashes:
        raise BundleError(CHECKSUM_MISMATCH, f"{wheel.name} is not the one that the lock names")
    os.replace(wheel, folder / wheel.name)
    return folder / wheel.name


# ---------------------------------------------------------------- from the index's page


@dataclass(frozen=True)
class Wheel(checkpoints_setup.Checkpoint):
    """A file for the downloader, which asks it what is right."""

    hashes: frozenset[str] = frozenset()

    @property
    def prefix(self) -> str:
        return " or ".join(sorted(self.hashes))

    def matches(self, sha256: str) -> bool:
        return sha256 in self.hashes


def indexes(pip: list[str]) -> list[str]:
    """The indexes that pip or uv are told to use, the main one first; without any, pip's own."""
    get = os.environ.get
    if get("PIP_NO_INDEX") or get("UV_NO_INDEX"):
        return []
    main = get("UV_DEFAULT_INDEX") or get("UV_INDEX_URL") or get("PIP_INDEX_URL")
    if not main and pip:
        text = subprocess.run([*pip, "download", "--help"], capture_output=True, text=True).stdout
        default = re.search(r"\(default\s+(https://[^\s)]+)\)", text)
        main = default[1] if default else ""
    others = [get(name, "") for name in ("PIP_EXTRA_INDEX_URL", "UV_EXTRA_INDEX_URL")]
    return addresses(main or "", *others)


def pages() -> list[str]:
    """Further pages that pip or uv are told to look at."""
    found = [os.environ.get(name, "") for name in ("PIP_FIND_LINKS", "UV_FIND_LINKS")]
    return addresses(*found)


def addresses(*texts: str) -> list[str]:
    """The web addresses among the words of these settings, each once."""
    words = re.split(r"[\s,]+", " ".join(texts))
    return list(dict.fromkeys(word for word in words if re.match("https?://", word)))


class Links(html.parser.HTMLParser):
    """The addresses that a page points to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found += [value for name, value in attrs if name == "href" and value]


def find(entry: Entry, page: str, python: str) -> tuple[Wheel, str] | None:
    """The best of the entry's wheels that this page points to, and its URL."""
    content, where, _ = ask(checkpoints_setup.check_url(page), "GET")
    best: tuple[tuple[int, ...], str, str] | None = None
    for link in Links(content.decode("utf-8", "replace")).found:
        url, _, fragment = with_password(urllib.parse.urljoin(where, link), page).partition("#")
        name = urllib.parse.unquote(urllib.parse.urlsplit(url).path.rpartition("/")[2])
        if fragment.removeprefix("sha256=") in entry.hashes and NAME.fullmatch(name):
            rank = suits(name, python)
            if rank and (best is None or rank > best[0]):
                best = rank, name, url
    if best is None:
        return None
    url = checkpoints_setup.check_url(best[2])
    size = ask(url, "HEAD")[2]
    return None if size is None else (Wheel(entry.name, best[1], size, hashes=entry.hashes), url)


def ask(url: str, method: str) -> tuple[bytes, str, int | None]:
    """(body, the URL after redirects, Content-Length) of a page. Raises SourceFailed."""
    for wait_s in (1.0, 3.0, 0.0):
        try:
            return ask_once(url, method)
        except checkpoints_setup.TryAgain as trouble:
            reason = str(trouble)
            time.sleep(wait_s if trouble.wait_s is None else trouble.wait_s)
    raise checkpoints_setup.SourceFailed(reason)


def ask_once(url: str, method: str) -> tuple[bytes, str, int | None]:
    handlers = checkpoints_setup.Redirects, checkpoints_setup.EveryStatus
    request = checkpoints_setup.request_for(url, 0, None)
    request.method = method
    with checkpoints_setup.network_errors(STALL_S, resuming=True):
        opened = urllib.request.build_opener(*handlers).open(request, timeout=STALL_S)
        with opened as response:
            checkpoints_setup.answer_start(response, 0, Wheel("", "", 0))
            length = response.headers.get("Content-Length")
            size = int(length) if re.fullmatch("[0-9]{1,12}", length or "") else None
            return response.read(PAGE_LIMIT), response.url, size


def with_password(url: str, page: str) -> str:
    """``url`` with the page's user and password, if it is on the same host."""
    parts, known = urllib.parse.urlsplit(url), urllib.parse.urlsplit(page)
    same = (parts.scheme, parts.netloc) == (known.scheme, known.netloc.rpartition("@")[2])
    return parts._replace(netloc=known.netloc).geturl() if same else url


def suits(name: str, python: str) -> tuple[int, ...] | None:
    """How well a wheel of this name suits this Python (3.X) on this machine; None: not at all."""
    pythons, abis, platforms = (tags.split(".") for tags in name[: -len(".whl")].split("-")[-3:])
    minor = int(python.partition(".")[2])
    own, older = f"cp3{minor}", [f"cp3{number}" for number in range(2, minor + 1)]
    if own in pythons and (own in abis or "none" in abis):
        kind = 3
    elif "abi3" in abis and not set(older).isdisjoint(pythons):
        kind = 2
    elif "none" in abis and {"py3", *(f"py3{n}" for n in range(minor + 1))} & set(pythons):
        kind = 1
    else:
        return None
    ours = [*platform_tags(), "any"]
    ranks = [len(ours) - ours.index(tag) for tag in platforms if tag in ours]
    return (kind, max(ranks)) if ranks else None


def platform_tags() -> Iterator[str]:
    """pip's names of the platform of this machine, best first; of any age that PyTorch serves."""
    machine = platform.machine()
    if sys.platform == "darwin":
        for version in range(14, 10, -1):
            for kind in (machine, "universal2"):
                yield f"macosx_{version}_0_{kind}"
        return
    for version in range(28, 4, -1):
        yield f"manylinux_2_{version}_{machine}"
    for year in ("2014", "2010", "1"):
        yield f"manylinux{year}_{machine}"


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
        raise BundleError(DOWNLOAD_FAILED, f"{requirement}: {why}; take another Python")
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


def no_room(requirement: str) -> BundleError:
    return BundleError(DISK_FULL, f"{requirement}: no room on the disk; make room, then {AGAIN}")


def failed_download(requirement: str, said: str) -> BundleError:
    said = re.sub(r"(://)[^/@\s]+@", r"\1***@", said)
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines or ["no reason given"]
    if re.search("no space left|quota exceeded", said, re.IGNORECASE):
        return no_room(requirement)
    if "DO NOT MATCH THE HASHES" in said:
        what = "what arrived is not what the lock names; try another index"
        return BundleError(CHECKSUM_MISMATCH, f"{requirement}: {what}")
    return BundleError(
        DOWNLOAD_FAILED, f"{requirement} could not be downloaded: {errors[-1][:300]}; {AGAIN}"
    )
