#!/usr/bin/env python3
"""Put pretrained checkpoints where torch.hub looks for them, verified byte by byte.

    python checkpoints_setup.py                          # vgg19
    python checkpoints_setup.py vgg16 resnet152-v2       # by name, or by full file name
    python checkpoints_setup.py vgg19 --from /media/usb  # a file, a folder or a URL; any file name
    python checkpoints_setup.py --list

Needs nothing but Python, and runs before torch is installed. What is already there is hashed, not
trusted; downloads continue where they were cut; a file gets its right name only once its sha256 is
right. The package imports ``KNOWN``, ``checkpoint_dir``, ``lookup`` and ``is_verified``.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import email.utils
import errno
import hashlib
import http.client
import io
import itertools
import json
import math
import os
import random
import re
import shutil
import signal
import socket
import ssl
import stat
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if sys.version_info < (3, 10):  # noqa: UP036 - this file is run by whatever Python is at hand
    print("error: Python 3.10 or newer is needed; try python3.11 or python3.12", file=sys.stderr)
    sys.exit(2)

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

# ---------------------------------------------------------------- known checkpoints

OFFICIAL = "https://download.pytorch.org/models/"
MIB = 1 << 20


@dataclass(frozen=True)
class Checkpoint:
    """A published file; the 8 hex digits in its name begin its sha256 and decide.

    ``size`` is in bytes, exact when ``tolerance`` is 0. Where only torchvision's figure is known
    (MiB to three decimals), ``tolerance`` covers its rounding. ``base`` is the URL of its folder
    where that is not torchvision's.
    """

    name: str
    filename: str
    size: int
    tolerance: int = 0
    base: str = ""

    @property
    def prefix(self) -> str:
        return Path(self.filename).stem.rpartition("-")[2]

    @property
    def origin(self) -> str:
        return self.base or OFFICIAL

    @property
    def about_size(self) -> str:
        return f"{'about ' if self.tolerance else ''}{self.size:,} bytes"

    def fits(self, size: int) -> bool:
        return abs(size - self.size) <= self.tolerance

    def matches(self, sha256: str) -> bool:
        return sha256.startswith(self.prefix)


KNOWN: tuple[Checkpoint, ...] = (
    Checkpoint("vgg19", "vgg19-dcbb9e9d.pth", 574_673_361),
    Checkpoint("vgg16", "vgg16-397923af.pth", 553_433_881),
    Checkpoint("resnet50", "resnet50-0676ba61.pth", 102_530_333),
    Checkpoint("resnet50-v2", "resnet50-11ad3fa6.pth", 102_540_417),
    Checkpoint("resnet101", "resnet101-63fe2227.pth", round(170.511 * MIB), tolerance=1024),
    Checkpoint("resnet101-v2", "resnet101-cd907fc2.pth", round(170.530 * MIB), tolerance=1024),
    Checkpoint("resnet152", "resnet152-394f9c45.pth", round(230.434 * MIB), tolerance=1024),
    Checkpoint("resnet152-v2", "resnet152-f82ba261.pth", round(230.474 * MIB), tolerance=1024),
    # The weights of the VGG-19 paper, converted from Caffe (github.com/jcjohnson/pytorch-vgg).
    # Nobody states the file's size: VGG-19 has 143,667,240 weights of 4 bytes, and the little that
    # the format adds is covered by the tolerance.
    Checkpoint(
        "vgg19-caffe",
        "vgg19-d01eb7cb.pth",
        4 * 143_667_240,
        tolerance=MIB,
        base="https://web.eecs.umich.edu/~justincj/models/",
    ),
)

OK, BAD_INPUT, DOWNLOAD_FAILED, CHECKSUM_MISMATCH, BUSY, DISK_FULL = 0, 2, 3, 4, 5, 6
EXIT_CODES = """exit codes:
  0    all present and verified
  2    bad arguments
  3    could not be had (no network, no source); nothing bad is left
  4    verification failed: every source gave wrong bytes, or --verify found a bad file
  5    another process held the lock for longer than --lock-wait
  6    no room, or a file or folder that cannot be read or written
  130  Ctrl-C, and 143 SIGTERM: what was downloaded is kept, the same command continues

Mirrors may also stand in VQA_CHECKPOINT_MIRRORS (base URLs, separated by spaces). Proxies and
certificates: http_proxy, https_proxy, no_proxy, SSL_CERT_FILE."""


class CheckpointError(Exception):
    """What went wrong and the mend, in one line; ``code`` is the exit code."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def lookup(name: str) -> Checkpoint:
    """The known checkpoint of this name, file name or file name without its ending."""
    for checkpoint in KNOWN:
        if name in (checkpoint.name, checkpoint.filename, Path(checkpoint.filename).stem):
            return checkpoint
    known = ", ".join(checkpoint.name for checkpoint in KNOWN)
    raise CheckpointError(BAD_INPUT, f"unknown checkpoint {name!r}; known are {known}")


# ---------------------------------------------------------------- where


def checkpoint_dir() -> Path:
    """The folder torch.hub reads, computed as torch.hub does."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", os.path.join(cache, "torch"))
    return Path(os.path.expanduser(home), "hub", "checkpoints")


def beside(target: Path, suffix: str) -> Path:
    """A hidden helper file of `target`: its lock, its verdict, a copy in progress."""
    return target.with_name(f".{target.name}.{suffix}")


def part_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def notes_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a small JSON file; empty where there is none or it is damaged."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path: Path, content: dict[str, Any]) -> None:
    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        fresh.write_text(json.dumps(content), encoding="utf-8")
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def mib(size: int) -> str:
    return f"{size / MIB:,.1f} MiB"


# ---------------------------------------------------------------- verify


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(MIB):
            digest.update(block)
    return digest.hexdigest()


def identity_of(path: Path) -> dict[str, int] | None:
    """What changes when a file is replaced or written to; None where there is no file."""
    try:
        info = path.stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise
    if not stat.S_ISREG(info.st_mode):
        return None
    return {"size": info.st_size, "mtime_ns": info.st_mtime_ns, "inode": info.st_ino}


def remembered_sha256(checkpoint: Checkpoint, path: Path) -> str | None:
    """The sha256 found when this very file (size, mtime, inode) was last hashed and was right."""
    identity = identity_of(path)
    verdict = read_json(beside(path, "verified.json"))
    sha256 = str(verdict.pop("sha256", ""))
    return sha256 if verdict == identity and checkpoint.matches(sha256) else None


def verified_sha256(checkpoint: Checkpoint, path: Path) -> str | None:
    """Hash `path`; its sha256 if it is the checkpoint (then remembered), else None."""
    identity = identity_of(path)
    if identity is None or not checkpoint.fits(identity["size"]):
        return None
    sha256 = sha256_of(path)
    if not checkpoint.matches(sha256):
        return None
    remember(path, identity, sha256)
    return sha256


def remember(path: Path, identity: dict[str, int] | None, sha256: str) -> None:
    with contextlib.suppress(OSError):  # where it cannot be written, the file is hashed each time
        write_json(beside(path, "verified.json"), {**(identity or {}), "sha256": sha256})


def check(checkpoint: Checkpoint, path: Path) -> str | None:
    """The sha256 of `path` if it is the checkpoint, without hashing an unchanged file twice."""
    return remembered_sha256(checkpoint, path) or verified_sha256(checkpoint, path)


def is_verified(name: str, directory: Path | None = None) -> bool:
    """Whether checkpoint `name` lies in `directory` (default: torch.hub's) with the right bytes."""
    checkpoint = lookup(name)
    return check(checkpoint, (directory or checkpoint_dir()) / checkpoint.filename) is not None


def set_aside(path: Path) -> Path:
    """Move a bad file, folder or link out of torch.hub's sight, to NAME.bad."""
    bad = path.with_name(f"{path.name}.bad")
    numbers = itertools.count(2)
    while bad.is_dir() or (path.is_dir() and os.path.lexists(bad)):  # cannot be replaced
        bad = path.with_name(f"{path.name}.bad{next(numbers)}")
    os.replace(path, bad)
    return bad


def publish(complete: Path, target: Path, sha256: str) -> None:
    """Give a verified file its name, in one step and lasting over a power cut."""
    with complete.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(complete, target)
    if sys.platform != "win32":
        folder = os.open(target.parent, os.O_RDONLY)
        with contextlib.suppress(OSError):  # some file systems cannot sync a folder
            os.fsync(folder)
        os.close(folder)
    remember(target, identity_of(target), sha256)


# ---------------------------------------------------------------- lock

UNSIGNED = {"pid": "?", "host": "?", "since": "?"}


def try_lock(fd: int) -> bool:
    """Take the operating system's lock on an open file; False while another holds it."""
    try:
        if sys.platform == "win32":
            os.lseek(fd, MIB, os.SEEK_SET)  # past the owner's note, which stays readable
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def lock_is_real(path: Path) -> bool:
    """Whether a second open file is refused the lock the first one holds.

    On some network file systems every caller is told that it has the lock.
    """
    second = os.open(path, os.O_RDWR)
    try:
        return not try_lock(second)
    finally:
        os.close(second)


def owner_is_gone(owner: dict[str, Any], age_s: float) -> bool:
    """Whether the maker of a lock file has died; only this host's processes can be known."""
    if not owner:  # killed between making the file and signing it
        return age_s > 60
    if owner.get("host") != socket.gethostname() or sys.platform == "win32":
        return False
    try:
        os.kill(int(owner["pid"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, KeyError, TypeError, ValueError, OverflowError):
        return False
    return False


def make_lock_file(path: Path) -> int | None:
    """Exclusive creation, the fallback where locks do nothing; takes over from a dead owner."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        pass
    owner = read_json(path)
    with contextlib.suppress(FileNotFoundError):
        if owner_is_gone(owner, time.time() - path.stat().st_mtime):
            stale = path.with_name(f"{path.name}.{os.getpid()}")
            os.replace(path, stale)
            if read_json(stale) != owner:  # another waiter was quicker: give its lock back
                with contextlib.suppress(OSError):
                    os.link(stale, path)
            stale.unlink()
    return None


def acquire(target: Path) -> tuple[int, Path | None] | None:
    """An open lock and the file to remove afterwards, if any; None while another holds it."""
    path = beside(target, "lock")
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    created = None
    try:
        if not try_lock(fd):
            os.close(fd)
            return None
        real = lock_is_real(path)
    except OSError:  # no locks here at all, as on some network file systems
        real = False
    if not real:
        os.close(fd)
        created = beside(target, "owner")
        made = make_lock_file(created)
        if made is None:
            return None
        fd = made
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
    os.lseek(fd, 0, os.SEEK_SET)
    os.ftruncate(fd, 0)
    os.write(fd, json.dumps(owner).encode())
    return fd, created


@contextlib.contextmanager
def locked(target: Path, wait_s: float) -> Iterator[None]:
    """Hold the lock of `target`, waiting up to `wait_s` seconds for who has it, and saying so."""
    deadline = time.monotonic() + wait_s
    told = -math.inf
    while (held := acquire(target)) is None:
        owner = read_json(beside(target, "owner")) or read_json(beside(target, "lock"))
        holder = "process {pid} on {host}, since {since}".format(**{**UNSIGNED, **owner})
        if time.monotonic() > deadline:
            raise CheckpointError(
                BUSY,
                f"{target.name} is still being set up by another run ({holder}) after "
                f"{wait_s:g} s; wait for it or end it, then run this again",
            )
        if time.monotonic() - told > 30:
            say(f"{target.name}: waiting for another run ({holder}), at most {wait_s:g} s")
            told = time.monotonic()
        time.sleep(0.2)
    fd, created = held
    try:
        yield
    finally:
        os.close(fd)
        if created is not None:
            created.unlink(missing_ok=True)


# ---------------------------------------------------------------- download

ATTEMPTS = 5  # failures in a row that brought less than PROGRESS_BYTES each
PROGRESS_BYTES = MIB
BACKOFF_S = 1.0
RETRY_AFTER_MAX_S = 120.0
DRIP_WINDOW_S = 60.0
DRIP_FLOOR = 1024  # bytes/s, averaged over a window
HEAD_BYTES = 512  # enough to tell a web page from a checkpoint

STATUS_REASONS = {
    401: "it asks for a password (401); put it in the URL: https://USER:PASSWORD@HOST/",
    403: "it refuses to hand out the file (403)",
    404: "it does not have the file (404)",
    407: "the proxy asks for a password (407); set it in https_proxy: http://USER:PASSWORD@HOST",
}


class SourceFailed(Exception):
    """This source is of no use; the next one may be."""

    def __init__(self, reason: str, wrong_bytes: bool = False) -> None:
        super().__init__(reason)
        self.wrong_bytes = wrong_bytes


class TryAgain(Exception):
    """The same source may do better in a moment."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


def check_url(url: str) -> str:
    """`url` with its path quoted; anything urllib could stumble over is refused here."""
    try:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
            raise ValueError
        if not (url.isprintable() and parts.netloc.isascii()):
            raise ValueError
    except ValueError:
        raise CheckpointError(BAD_INPUT, f"not a usable http(s) URL: {shown(url)}") from None
    return parts._replace(path=urllib.parse.quote(parts.path, safe="/%~:@!$&'()*+,;=")).geturl()


def shown(source: Path | str) -> str:
    """A URL fit to be printed or stored: without password, query or control characters."""
    if isinstance(source, Path):
        return str(source)
    text = re.sub("//.*@", "//", source).partition("?")[0]
    return "".join(c if c.isprintable() else "?" for c in text)


def in_folder(base: str, filename: str) -> str:
    parts = urllib.parse.urlsplit(base)
    return parts._replace(path=f"{parts.path.rstrip('/')}/{filename}").geturl()


class Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        allowed = ("https:",) if req.type == "https" else ("http:", "https:")
        if not newurl.lower().startswith(allowed):
            raise SourceFailed(f"it redirects away from {req.type}, to {shown(newurl)}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class EveryStatus(urllib.request.HTTPDefaultErrorHandler):
    """Return 4xx and 5xx answers like any other."""

    def http_error_default(self, req: Any, fp: Any, code: int, msg: str, hdrs: Any) -> Any:
        return fp


def request_for(url: str, start: int, validator: str | None) -> urllib.request.Request:
    parts = urllib.parse.urlsplit(url)
    credentials, _, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(parts._replace(netloc=host).geturl())
    request.add_header("Accept-Encoding", "identity")
    request.add_header("User-Agent", "vqa_repro-checkpoints")
    if credentials:  # unredirected: another host must not get them
        token = base64.b64encode(urllib.parse.unquote_to_bytes(credentials)).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    if start:
        request.add_header("Range", f"bytes={start}-")
        if validator:
            request.add_header("If-Range", validator)
    return request


@contextlib.contextmanager
def network_errors(timeout_s: float, resuming: bool) -> Iterator[None]:
    """Sort what urllib, sockets and TLS raise into SourceFailed and TryAgain."""
    try:
        yield
    except urllib.error.HTTPError:
        raise SourceFailed("it redirects in a circle, or to no web address") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise SourceFailed(
                "its certificate is not trusted; where a proxy opens https, set SSL_CERT_FILE to "
                "the site's CA file"
            ) from None
        if "407 " in str(cause):
            raise SourceFailed(STATUS_REASONS[407]) from None
        if isinstance(cause, socket.gaierror) and not resuming:
            raise SourceFailed("its host name cannot be resolved (no network?)") from None
        if isinstance(cause, TimeoutError):
            raise TryAgain(f"nothing came for {timeout_s:g} s") from None
        if isinstance(cause, http.client.InvalidURL) or not isinstance(
            cause, (OSError, http.client.HTTPException)
        ):
            raise SourceFailed("its address, or one it redirects to, is garbled") from None
        text = getattr(cause, "strerror", None) or type(cause).__name__
        raise TryAgain(f"the connection failed ({text})") from None


def retry_after(header: str | None) -> float | None:
    """Seconds a server asks to wait, as number or date, up to RETRY_AFTER_MAX_S."""
    if header is None:
        return None
    if re.fullmatch("[0-9]{1,9}", header.strip()):
        seconds = float(header)
    else:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError):  # TypeError: what 3.10 makes of no date
            return None
    return min(max(seconds, 0.0), RETRY_AFTER_MAX_S)


def answer_start(response: Any, have: int, checkpoint: Checkpoint) -> int | None:
    """The byte at which the body starts: 0, or `have` for the piece asked for.

    None when the server answered with another piece, or had none.
    """
    status, headers = response.status, response.headers
    encoding = headers.get("Content-Encoding", "").strip().lower()
    if have and status in (206, 416):
        said = headers.get("Content-Range", "")
        piece = re.fullmatch(r"bytes (\d{1,15})-\d{1,15}/(\d{1,15}|\*)", said)
        right = piece and int(piece[1]) == have
        right = right and piece and (piece[2] == "*" or checkpoint.fits(int(piece[2])))
        return have if right and status == 206 and not encoding else None
    if status in (408, 425, 429) or status >= 500:
        reason = f"the server is busy or broken ({status})"
        raise TryAgain(reason, retry_after(headers.get("Retry-After")))
    if status != 200:
        raise SourceFailed(STATUS_REASONS.get(status, f"it answers with status {status}"))
    if encoding not in ("", "identity"):
        raise SourceFailed("it sends the file compressed although asked not to")
    return 0


def chunks_of(response: Any, timeout_s: float) -> Iterator[bytes]:
    """The body as it arrives; a server that stalls or drips is given up."""
    window_start, window_bytes = time.monotonic(), 0
    while True:
        with network_errors(timeout_s, resuming=True):
            chunk = response.read1(1 << 18)
        if not chunk:
            return
        yield chunk
        window_bytes += len(chunk)
        elapsed = time.monotonic() - window_start
        if elapsed >= DRIP_WINDOW_S:
            if window_bytes < DRIP_FLOOR * elapsed:
                raise TryAgain(f"only {window_bytes:,} bytes came in {elapsed:.0f} s")
            window_start, window_bytes = time.monotonic(), 0


def open_0644(path: str, flags: int) -> int:
    return os.open(path, flags, 0o644)


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def transfer(checkpoint: Checkpoint, url: str, part: Path, timeout_s: float) -> None:
    """One request: continue `part` where it ends, until it is whole.

    The part survives kills. Its notes say which answer it belongs to, so that If-Range makes the
    server start over when its file has changed. A part of another source is continued without
    asking: all sources have the same file, and the sha256 decides in the end.
    """
    have = size_of(part)
    if checkpoint.tolerance == 0 and have == checkpoint.size:
        return
    if have > checkpoint.size + checkpoint.tolerance:
        part.unlink()
        have = 0
    notes = read_json(notes_of(part)) if have else {}
    if notes.get("length") == have:
        return
    validator = notes.get("validator") if notes.get("url") == shown(url) else None
    if not (isinstance(validator, str) and validator.isascii() and validator.isprintable()):
        validator = None

    opener = urllib.request.build_opener(Redirects, EveryStatus)
    with network_errors(timeout_s, resuming=have > 0):
        response = opener.open(request_for(url, have, validator), timeout=timeout_s)
    with response:
        if response.status == 416 and response.headers.get("Content-Range") == f"bytes */{have}":
            return
        start = answer_start(response, have, checkpoint)
        if start is None:
            part.unlink()
            raise TryAgain("it did not send the piece asked for; starting from the first byte", 0.0)
        length = None if response.length is None else start + response.length
        chunks = chunks_of(response, timeout_s)
        head = b""
        while len(head) < HEAD_BYTES and (chunk := next(chunks, b"")):
            head += chunk
        if not head:
            raise TryAgain("its answer is empty")
        if start == 0 and b"\0" not in head:  # every checkpoint format has zero bytes
            raise SourceFailed(
                f"text came instead of the checkpoint, from {shown(response.url)}: a login page? "
                "Open it in a browser, log in, and try again"
            )
        if length is not None and not checkpoint.fits(length):
            raise SourceFailed(f"it has another file, of {length:,} bytes", wrong_bytes=True)
        if start == 0:
            part.unlink(missing_ok=True)
            etag, modified = response.headers.get("ETag"), response.headers.get("Last-Modified")
            strong = etag if etag and not etag.startswith("W/") else modified
            write_json(notes_of(part), {"url": shown(url), "validator": strong, "length": length})
        else:
            say(f"{checkpoint.filename}: continuing at {mib(start)}")
        have = start
        with open(part, "ab", opener=open_0644) as file, Progress(checkpoint, start) as progress:
            for chunk in itertools.chain([head], chunks):
                file.write(chunk)
                file.flush()  # a kill loses nothing
                have += len(chunk)
                progress.update(have)
                if have > checkpoint.size + checkpoint.tolerance:
                    break
    if have > checkpoint.size + checkpoint.tolerance:
        part.unlink()
        raise SourceFailed(f"it sends more than the {checkpoint.size:,} bytes of the file", True)
    if have < checkpoint.size - checkpoint.tolerance or (length is not None and have < length):
        raise TryAgain(f"the connection ended at {have:,} of {checkpoint.size:,} bytes")


def download(checkpoint: Checkpoint, url: str, target: Path, timeout_s: float) -> None:
    """Bring `url` to `target`; wrong bytes are fetched once more from the start, then given up."""
    part = part_of(target)
    for wrong_before in (False, True):
        failures, furthest = 0, size_of(part)
        while True:
            need_room(checkpoint, target, size_of(part))
            try:
                transfer(checkpoint, url, part, timeout_s)
                break
            except TryAgain as trouble:
                failures = 1 if size_of(part) - furthest >= PROGRESS_BYTES else failures + 1
                furthest = max(furthest, size_of(part))
                if failures == ATTEMPTS:
                    raise SourceFailed(f"{trouble}; given up after {ATTEMPTS} tries") from None
                pause = trouble.wait_s
                if pause is None:
                    pause = BACKOFF_S * 2 ** (failures - 1) * random.uniform(0.75, 1.25)
                say(f"{checkpoint.filename}: {trouble}; trying again in {pause:.0f} s")
                time.sleep(pause)
        sha256 = sha256_of(part)
        if checkpoint.matches(sha256):
            publish(part, target, sha256)
            notes_of(part).unlink(missing_ok=True)
            return
        part.unlink()
        notes_of(part).unlink(missing_ok=True)
        if not wrong_before:
            say(f"{checkpoint.filename}: wrong bytes ({sha256[:8]}...), deleted; once more")
    raise SourceFailed(
        f"its bytes are wrong: sha256 {sha256[:8]}..., not {checkpoint.prefix}", True
    )


def need_room(checkpoint: Checkpoint, target: Path, have: int) -> None:
    usage = shutil.disk_usage(target.parent)
    needed = checkpoint.size + checkpoint.tolerance - have
    if usage.total and usage.free < needed:
        raise CheckpointError(
            DISK_FULL,
            f"{target.parent} has {mib(usage.free)} free, {checkpoint.filename} needs "
            f"{mib(needed)}; make room, or choose another folder with --dir or TORCH_HOME",
        )


class Progress:
    """One updating line on a terminal, elsewhere a plain line every ten seconds."""

    def __init__(self, checkpoint: Checkpoint, have: int) -> None:
        self.checkpoint, self.first = checkpoint, have
        self.begin = time.monotonic()
        # Of several downloads at a time, none may rewrite the line of another.
        alone = threading.current_thread() is threading.main_thread()
        self.terminal = alone and sys.stderr.isatty()
        self.every_s = 0.2 if self.terminal else 10.0
        self.last = self.begin
        self.width = 0

    def __enter__(self) -> Progress:
        return self

    def update(self, have: int) -> None:
        now = time.monotonic()
        if now - self.last < self.every_s:
            return
        self.last = now
        speed = (have - self.first) / (now - self.begin)
        minutes, seconds = divmod(round(max(0, self.checkpoint.size - have) / speed), 60)
        line = (
            f"{self.checkpoint.filename}: {mib(have)} of {mib(self.checkpoint.size)}, "
            f"{mib(round(speed))}/s, {minutes}:{seconds:02d} left"
        )
        self.width = max(self.width, len(line))
        text = f"\r{line:{self.width}}" if self.terminal else f"{line}\n"
        print(text, end="", file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        if self.width and self.terminal:
            say("")


# ---------------------------------------------------------------- copy

SCAN_DEPTH = 3  # folder levels looked through


def candidates(checkpoint: Checkpoint, folder: Path) -> Iterator[Path]:
    """Regular files of the right size in `folder`, whatever their names."""
    for root, folders, files in os.walk(folder):  # does not follow links to folders
        if len(Path(root).relative_to(folder).parts) >= SCAN_DEPTH - 1:
            folders.clear()
        folders.sort()
        for path in (Path(root, name) for name in sorted(files)):
            with contextlib.suppress(OSError):  # a dangling or circular link
                identity = identity_of(path)
                if identity and checkpoint.fits(identity["size"]):
                    yield path


def copy(checkpoint: Checkpoint, source: Path, target: Path) -> None:
    """Copy the checkpoint from a file, or from wherever it lies in a folder; the hash decides."""
    found = list(candidates(checkpoint, source)) if source.is_dir() else [source]
    if not found:
        raise SourceFailed(f"no file of {checkpoint.about_size} in {SCAN_DEPTH} levels of folders")
    size = found[0].stat().st_size
    if not checkpoint.fits(size):
        twin = "".join(f" (it could be {c.filename})" for c in KNOWN if c.fits(size))
        expected = f"{checkpoint.filename} has {checkpoint.about_size}"
        raise SourceFailed(f"it has {size:,} bytes{twin}, {expected}", wrong_bytes=True)
    need_room(checkpoint, target, 0)
    for path in found:
        sha256 = copy_verified(checkpoint, path, target)
        if checkpoint.matches(sha256):
            return
        say(f"{path}: right size, wrong bytes (sha256 {sha256[:8]}..., not {checkpoint.prefix})")
    raise SourceFailed("its bytes are wrong", wrong_bytes=True)


def copy_verified(checkpoint: Checkpoint, path: Path, target: Path) -> str:
    """Copy and hash in one reading; `target` appears only if the sha256, returned, is right."""
    unproven = beside(target, "copy")
    digest = hashlib.sha256()
    try:
        with open(unproven, "wb", opener=open_0644) as out, Progress(checkpoint, 0) as progress:
            for block in blocks_of(path):
                digest.update(block)
                out.write(block)
                progress.update(out.tell())
        if checkpoint.matches(digest.hexdigest()):
            publish(unproven, target, digest.hexdigest())
    finally:
        unproven.unlink(missing_ok=True)
    return digest.hexdigest()


def blocks_of(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while block := file.read(MIB):
                yield block
    except OSError as error:
        raise SourceFailed(f"reading {path} failed: {error.strerror}") from None


# ---------------------------------------------------------------- command line


def on_sigterm(*_: object) -> None:
    sys.exit(128 + signal.SIGTERM)  # an exception, so that it leaves as from Ctrl-C


def ensure(
    checkpoint: Checkpoint,
    directory: Path,
    sources: list[Path | str],
    lock_wait_s: float,
    timeout_s: float,
) -> dict[str, str]:
    """Have `checkpoint` verified in `directory`; returns its sha256 and how it came there."""
    target = directory / checkpoint.filename
    if sha256 := check(checkpoint, target):
        return {"sha256": sha256, "how": "already there"}
    directory.mkdir(parents=True, exist_ok=True)
    with locked(target, lock_wait_s):
        if sha256 := check(checkpoint, target):  # another run has brought it
            return {"sha256": sha256, "how": "already there"}
        if target.exists():
            say(f"{target} is not {checkpoint.name}: moved to {set_aside(target).name}")
        remove_orphans(target)
        failures = []
        for source in sources:
            try:
                if isinstance(source, Path):
                    copy(checkpoint, source, target)
                else:
                    download(checkpoint, source, target, timeout_s)
            except SourceFailed as failure:
                say(f"{checkpoint.filename}: {shown(source)}: {failure}")
                failures.append(failure)
            else:
                sha256 = check(checkpoint, target) or ""
                return {"sha256": sha256, "how": f"from {shown(source)}"}
    all_wrong = bool(failures) and all(failure.wrong_bytes for failure in failures)
    what = "came with wrong bytes from every source" if all_wrong else "could not be had"
    raise CheckpointError(
        CHECKSUM_MISMATCH if all_wrong else DOWNLOAD_FAILED,
        f"{checkpoint.filename} {what}; {fix(checkpoint)}",
    )


def remove_orphans(target: Path) -> None:
    """Remove what killed downloads of torch.hub's left behind, once a day old."""
    for path in target.parent.iterdir():
        orphan = re.fullmatch(re.escape(target.name) + r"\.[0-9a-f]{8,}\.partial", path.name)
        if orphan and time.time() - path.lstat().st_mtime > 86400:
            path.unlink()
            say(f"removed {path.name}, left behind by a killed download")


def fix(checkpoint: Checkpoint) -> str:
    return (
        f"get {checkpoint.origin}{checkpoint.filename} ({mib(checkpoint.size)}) on a machine with "
        f"internet, copy it here (scp {checkpoint.filename} {socket.gethostname()}:), then: "
        f"python checkpoints_setup.py {checkpoint.name} --from {checkpoint.filename}"
    )


def verify(checkpoint: Checkpoint, directory: Path) -> dict[str, str]:
    """Hash what is there, whatever was remembered; a bad file is set aside."""
    target = directory / checkpoint.filename
    again = f"get it with: python checkpoints_setup.py {checkpoint.name}"
    if sha256 := verified_sha256(checkpoint, target):
        return {"sha256": sha256, "how": "hashed again"}
    if not os.path.lexists(target):
        raise CheckpointError(DOWNLOAD_FAILED, f"{target} is missing; {again}")
    try:
        where = f"moved to {set_aside(target).name}"
    except OSError as error:
        where = f"and it cannot be moved away ({error.strerror}): delete it"
    raise CheckpointError(CHECKSUM_MISMATCH, f"{target} is not {checkpoint.name}, {where}; {again}")


def state_of(checkpoint: Checkpoint, directory: Path) -> str:
    target = directory / checkpoint.filename
    if remembered_sha256(checkpoint, target):
        return "verified"
    if target.exists():
        return "there, not verified yet"
    part = size_of(part_of(target))
    return f"begun, {mib(part)} so far" if part else "missing"


def seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError
    return value


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="checkpoints_setup.py",
        description="Put pretrained checkpoints where torch.hub looks for them, verified.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="vgg19 (default), ... (see --list), or file names")
    add(
        "--from",
        dest="source",
        metavar="FILE|DIR|URL",
        help="only from there (folder URLs end in /)",
    )
    add("--mirror", action="append", default=[], metavar="URL", help="base URL to try first")
    add("--dir", type=Path, metavar="DIR", help="put them here instead of where torch.hub looks")
    add("--list", action="store_true", help="what is known, and what is there")
    add("--verify", action="store_true", help="only hash what is there, all of it again")
    add("--offline", action="store_true", help="use no network")
    add("--json", action="store_true", help="the outcome as JSON on standard output")
    add("--timeout", type=seconds, default=30, metavar="S", help="stall limit (default 30 s)")
    add("--lock-wait", type=seconds, default=600, metavar="S", help="default 600 s")
    args = parser.parse_args(argv)
    if (args.list or args.verify) and (args.source or args.mirror or args.list == args.verify):
        parser.error("--list and --verify go with no source, and not together")
    if args.offline and (args.mirror or "://" in (args.source or "")):
        parser.error("--offline does not go with a URL")
    return args


def sources_of(args: argparse.Namespace, checkpoint: Checkpoint) -> list[Path | str]:
    """Where to look, in turn."""
    bases: list[str] = [*args.mirror]
    sources: list[Path | str] = []
    if args.source is None:
        bases += [*os.environ.get("VQA_CHECKPOINT_MIRRORS", "").split(), checkpoint.origin]
    elif "://" in args.source and not args.source.endswith("/"):
        sources.append(check_url(args.source))
    elif "://" in args.source:
        bases.insert(0, args.source)
    elif (path := Path(args.source).expanduser()).exists():
        sources.append(path)
    else:
        raise CheckpointError(BAD_INPUT, f"--from {args.source}: no such file or folder")
    if not args.offline:
        sources += [in_folder(check_url(base), checkpoint.filename) for base in bases]
    return sources


def run(args: argparse.Namespace, outcomes: list[dict[str, str]]) -> int:
    """Do what was asked, adding to `outcomes` what became of each checkpoint."""
    directory = args.dir or checkpoint_dir()
    if args.list:
        for checkpoint in KNOWN:
            state = state_of(checkpoint, directory)
            outcomes.append({"name": checkpoint.name, "file": checkpoint.filename, "state": state})
        return OK
    wanted = dict.fromkeys(lookup(name) for name in args.names or ["vgg19"])
    plan = [(c, [] if args.verify else sources_of(args, c)) for c in wanted]
    code = OK
    for checkpoint, sources in plan:
        target = directory / checkpoint.filename
        outcome = {"name": checkpoint.name, "file": checkpoint.filename, "path": str(target)}
        outcomes.append(outcome)
        try:
            if args.verify:
                found = verify(checkpoint, directory)
            else:
                found = ensure(checkpoint, directory, sources, args.lock_wait, args.timeout)
            outcome.update(found, state="verified")
        except CheckpointError as error:
            code = code or error.code
            outcome.update(state="failed", error=str(error))
            say(f"error: {error}")
        except OSError as error:
            code = code or DISK_FULL
            what = f"{error.filename or directory}: {error.strerror}"
            outcome.update(state="failed", error=what)
            say(f"error: {what}; mend that, or choose another folder with --dir or TORCH_HOME")
        except (KeyboardInterrupt, SystemExit):
            have = size_of(part_of(target))
            kept = f"{mib(have)} kept in {part_of(target)}" if have else "nothing half-made is left"
            say(f"stopped; {kept}; the same command continues")
            raise
    return code


def main(argv: list[str] | None = None) -> int:
    signal.signal(signal.SIGTERM, on_sigterm)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # paths may hold anything
    args = parse(argv)
    outcomes: list[dict[str, str]] = []
    report: dict[str, Any] = {"checkpoints": outcomes}
    try:
        code = run(args, outcomes)
    except CheckpointError as error:
        say(f"error: {error}")
        code, report["error"] = error.code, str(error)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    if args.json:
        print(json.dumps({"exit_code": code, **report}, indent=2))
    else:
        for outcome in outcomes:
            if args.list:
                print("{name:13} {file:23} {state}".format(**outcome))
            elif outcome["state"] == "verified":
                print("{name}: verified, {how}: {path}".format(**outcome))
    return code


if __name__ == "__main__":
    sys.exit(main())
