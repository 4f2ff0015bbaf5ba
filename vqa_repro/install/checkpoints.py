"""Pretrained checkpoints: which are known, where they are kept, and whether their bytes are right.

A file that was verified is remembered with its size, time and inode, so that it is hashed once.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import socket
import stat
import time
from dataclasses import dataclass
from pathlib import Path

from vqa_repro.install import locks
from vqa_repro.install.copying import copy_file
from vqa_repro.install.download import (
    RemoteFile,
    download,
    part_of,
    size_of,
)
from vqa_repro.install.errors import ExitCode, InstallError
from vqa_repro.install.http_client import SourceFailed
from vqa_repro.install.progress import MIB, mib, say
from vqa_repro.install.redact import shown
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.files import read_json, sha256_of, write_json

OFFICIAL = "https://download.pytorch.org/models/"
VERDICT_LIMIT = 1 << 16  # bytes


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint; the 8 hex digits in its file name begin its SHA-256.

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
    def file(self) -> RemoteFile:
        return RemoteFile(self.filename, self.size, frozenset({self.prefix}), self.tolerance)


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
    # Its exact size is published nowhere: VGG-19 has 143,667,240 weights of 4 bytes, and the
    # tolerance covers what the format adds.
    Checkpoint(
        "vgg19-caffe",
        "vgg19-d01eb7cb.pth",
        4 * 143_667_240,
        tolerance=MIB,
        base="https://web.eecs.umich.edu/~justincj/models/",
    ),
)


def lookup(name: str) -> Checkpoint:
    """Return the known checkpoint with this name, file name, or file name without its ending.

    Raise InstallError for any other.
    """
    for checkpoint in KNOWN:
        if name in (checkpoint.name, checkpoint.filename, Path(checkpoint.filename).stem):
            return checkpoint
    known = ", ".join(checkpoint.name for checkpoint in KNOWN)
    raise InstallError(ExitCode.BAD_INPUT, f"unknown checkpoint {name!r}; known are {known}")


def checkpoint_dir() -> Path:
    """Return the folder torch.hub reads. An empty TORCH_HOME or XDG_CACHE_HOME counts as unset."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("TORCH_HOME") or os.path.join(cache, "torch")
    return Path(os.path.expanduser(home), "hub", "checkpoints")


def require_absolute_dir() -> None:
    """Raise InstallError where the folder would depend on where one stands.

    That is so for a relative variable, and for a user without a home folder.
    """
    for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
        value = os.environ.get(name)
        if value:
            if not os.path.isabs(os.path.expanduser(value)) and value[0] != "~":
                raise InstallError(
                    ExitCode.BAD_INPUT,
                    f"{name}={value} is relative, so each working folder would have checkpoints of "
                    "its own",
                    next=f"set {name}={os.path.abspath(value)}",
                )
            break
    if not checkpoint_dir().is_absolute():
        raise InstallError(
            ExitCode.BAD_INPUT,
            "this user has no home folder to keep checkpoints in",
            next="set TORCH_HOME=DIR",
        )


# ---------------------------------------------------------------- verification


def helper_of(target: Path, suffix: str) -> Path:
    """Return the path of a hidden helper file of ``target``: its lock, its verdict."""
    return target.with_name(f".{target.name}.{suffix}")


def identity_of(path: Path) -> dict[str, int] | None:
    """Return what changes when a file is replaced or written to; None where there is no file."""
    try:
        info = path.stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise
    if not stat.S_ISREG(info.st_mode):
        return None
    return {"size": info.st_size, "mtime_ns": info.st_mtime_ns, "inode": info.st_ino}


def remembered_sha256(file: RemoteFile, path: Path) -> str | None:
    """Return the SHA-256 from when this very file was last hashed, if it was right."""
    try:
        verdict = read_json(helper_of(path, "verified.json"), VERDICT_LIMIT)
    except (OSError, UserError):
        return None
    if not isinstance(verdict, dict):
        return None
    sha256 = str(verdict.pop("sha256", ""))
    return sha256 if verdict == identity_of(path) and file.matches(sha256) else None


def hashed_sha256(file: RemoteFile, path: Path) -> str | None:
    """Hash ``path``; return its SHA-256 if it is the checkpoint (and remember that), else None."""
    identity = identity_of(path)
    if identity is None or not file.fits(identity["size"]):
        return None
    sha256 = sha256_of(path)
    if not file.matches(sha256):
        return None
    remember(path, identity, sha256)
    return sha256


def remember(path: Path, identity: dict[str, int] | None, sha256: str) -> None:
    with contextlib.suppress(OSError, UserError):  # without the note, it is hashed each time
        write_json(helper_of(path, "verified.json"), {**(identity or {}), "sha256": sha256})


def verified_sha256(file: RemoteFile, path: Path) -> str | None:
    """Return the SHA-256 of ``path`` if it is the checkpoint; hash an unchanged file only once."""
    return remembered_sha256(file, path) or hashed_sha256(file, path)


def is_verified(name: str, directory: Path | None = None) -> bool:
    """Return whether ``directory`` (default: torch.hub's) has checkpoint ``name``, verified."""
    checkpoint = lookup(name)
    path = (directory or checkpoint_dir()) / checkpoint.filename
    return verified_sha256(checkpoint.file, path) is not None


def state_of(checkpoint: Checkpoint, directory: Path) -> str:
    """Return what ``directory`` has of a checkpoint, in words, without hashing it."""
    target = directory / checkpoint.filename
    if remembered_sha256(checkpoint.file, target):
        return "verified"
    if target.exists():
        return "present, not verified yet"
    part = size_of(part_of(target))
    return f"incomplete, {mib(part)} so far" if part else "missing"


# ---------------------------------------------------------------- having it


def ensure(
    checkpoint: Checkpoint,
    directory: Path,
    sources: list[Path | str],
    lock_wait_s: float,
    timeout_s: float,
) -> dict[str, str]:
    """Have ``checkpoint`` verified in ``directory``; return its SHA-256 and how it came there.

    Raise InstallError where no source has it, and OSError where the folder cannot be written.
    """
    target = directory / checkpoint.filename
    if sha256 := verified_sha256(checkpoint.file, target):
        return {"sha256": sha256, "how": "already there"}
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with locks.hold(
            helper_of(target, "in-use"), lock_wait_s, lambda note: say(f"{target.name}: {note}")
        ):
            return ensure_locked(checkpoint, target, sources, timeout_s)
    except locks.Busy as busy:
        raise InstallError(
            ExitCode.CHECKPOINT_BUSY,
            f"{target.name} is still being set up by another run ({busy.owner}) after "
            f"{lock_wait_s:g} s",
            next=f"wait for it or end it, then run this again; if it is gone: rm '{busy.path}'",
        ) from None


def ensure_locked(
    checkpoint: Checkpoint, target: Path, sources: list[Path | str], timeout_s: float
) -> dict[str, str]:
    """Do the work of ``ensure``, alone at ``target``."""
    file = checkpoint.file
    if sha256 := verified_sha256(file, target):  # another run has downloaded it
        return {"sha256": sha256, "how": "already there"}
    failures: list[SourceFailed] = []
    if target.exists():
        if any(is_same_file(source, target) for source in sources):
            raise InstallError(
                ExitCode.CHECKPOINT_MISMATCH,
                f"{target} is not {checkpoint.name}, and --from names this very file; it was left "
                "as it is",
                next=how_to_get(checkpoint),
            )
        say(f"{target} is not {checkpoint.name}: moved to {set_aside(target).name}")
    remove_orphans(target)
    if renamed := find_renamed(file, target):
        os.rename(renamed, target)
        return {"sha256": verified_sha256(file, target) or "", "how": f"was {renamed.name}"}
    for source in sources:
        try:
            if isinstance(source, Path):
                sha256 = copy_file(file, source, target, [each.file for each in KNOWN])
            else:
                sha256 = download(file, source, target, timeout_s)
        except SourceFailed as failure:
            say(f"{checkpoint.filename}: {shown(source)}: {failure}")
            failures.append(failure)
        else:
            remember(target, identity_of(target), sha256)
            return {"sha256": sha256, "how": f"from {shown(source)}"}
    all_wrong = bool(failures) and all(failure.wrong_bytes for failure in failures)
    what = "came with wrong bytes from every source" if all_wrong else "could not be downloaded"
    raise InstallError(
        ExitCode.CHECKPOINT_MISMATCH if all_wrong else ExitCode.NO_SOURCE,
        f"{checkpoint.filename} {what}",
        next=how_to_get(checkpoint),
    )


def is_same_file(source: Path | str, target: Path) -> bool:
    with contextlib.suppress(OSError):
        return isinstance(source, Path) and source.samefile(target)
    return False


def find_renamed(file: RemoteFile, target: Path) -> Path | None:
    """Return the checkpoint under another name in its own folder, as browsers name a second copy.

    Only names that begin like its own are hashed: the folder may hold much else.
    """
    stem = target.stem
    for path in sorted(target.parent.iterdir()):
        if not path.name.startswith(stem) or path.is_symlink() or path == part_of(target):
            continue
        if path.name.startswith(f"{target.name}.bad"):
            continue
        identity = identity_of(path)
        if identity and file.fits(identity["size"]) and file.matches(sha256_of(path)):
            return path
    return None


def set_aside(path: Path) -> Path:
    """Move a bad file, folder or link out of torch.hub's sight, to NAME.bad; return its path."""
    bad = path.with_name(f"{path.name}.bad")
    numbers = itertools.count(2)
    while bad.is_dir() or (path.is_dir() and os.path.lexists(bad)):  # cannot be replaced
        bad = path.with_name(f"{path.name}.bad{next(numbers)}")
    os.replace(path, bad)
    return bad


def remove_orphans(target: Path) -> None:
    """Remove what killed downloads of torch.hub's left behind, once a day old."""
    for path in target.parent.iterdir():
        orphan = re.fullmatch(re.escape(target.name) + r"\.[0-9a-f]{8,}\.partial", path.name)
        if orphan and time.time() - path.lstat().st_mtime > 86400:
            path.unlink()
            say(f"removed {path.name}, left behind by a killed download")


def how_to_get(checkpoint: Checkpoint) -> str:
    return (
        f"download {checkpoint.origin}{checkpoint.filename} ({mib(checkpoint.size)}) on a machine "
        f"with internet, copy it here (scp {checkpoint.filename} {socket.gethostname()}:), then: "
        f"python checkpoints_setup.py {checkpoint.name} --from {checkpoint.filename}"
    )


def verify(checkpoint: Checkpoint, directory: Path) -> dict[str, str]:
    """Hash what is there, whatever was remembered; set a bad file aside and raise InstallError."""
    target = directory / checkpoint.filename
    again = f"get it with: python checkpoints_setup.py {checkpoint.name}"
    if sha256 := hashed_sha256(checkpoint.file, target):
        return {"sha256": sha256, "how": "hashed again"}
    if not os.path.lexists(target):
        raise InstallError(ExitCode.NO_SOURCE, f"{target} is missing", next=again)
    try:
        where = f"moved to {set_aside(target).name}"
    except OSError as error:
        where = f"and it cannot be moved away ({error.strerror}): delete it"
    what = f"{target} is not {checkpoint.name}, {where}"
    raise InstallError(ExitCode.CHECKPOINT_MISMATCH, what, next=again)
