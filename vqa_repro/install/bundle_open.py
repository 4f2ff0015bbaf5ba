"""Reading a bundle, which may come from a stranger; and offering what was verified."""

import errno
import hashlib
import json
import os
import platform
import re
import shutil
import stat
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from vqa_repro.install.bundle_format import (
    DESCRIPTION,
    FORMAT,
    MAKE_AGAIN,
    MANIFEST,
    Piece,
    Whole,
    blocks,
    is_plain,
    join,
    megabytes,
    open_piece,
    part_name,
    refuse,
    say,
)
from vqa_repro.install.errors import ExitCode, InstallError
from vqa_repro.install.lockfile import Entry
from vqa_repro.install.wheels import read_locks, wanted_wheels
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.files import read_bounded, sha256_of

PROJECT = Path(__file__).resolve().parents[2]
INDEX_LIMIT = 1 << 20  # bytes; of MANIFEST.sha256 and of bundle.json


class Bundle(NamedTuple):
    """What a bundle says of itself: checked for sense, not against its files yet."""

    about: dict[str, Any]
    files: dict[str, Whole]


# No absolute path, no "..", nothing hidden, no name that another system reads otherwise or that is
# too long for a file system.
SAFE_PATH = re.compile(
    r"(?=.{1,255}$)[A-Za-z0-9_][A-Za-z0-9._+!-]*(/[A-Za-z0-9_][A-Za-z0-9._+!-]*)*"
)


def read_small(path: Path) -> bytes:
    if not os.path.lexists(path):
        refuse(f"{path} is missing: no bundle, or half of one; {MAKE_AGAIN}")
    try:
        return read_bounded(path, INDEX_LIMIT, follow_links=False)
    except UserError as error:
        refuse(f"{error}; {MAKE_AGAIN}")


def read_bundle(folder: Path) -> Bundle:
    """What MANIFEST.sha256 and bundle.json say. Raises InstallError where they make no sense."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; --bundle takes the bundle's folder")
    hashes = read_manifest(folder / MANIFEST)
    content = read_small(folder / DESCRIPTION)
    if hashes.pop(DESCRIPTION, None) != hashlib.sha256(content).hexdigest():
        refuse(f"{folder / DESCRIPTION} is not what {MANIFEST} says; {MAKE_AGAIN}")
    try:
        about = json.loads(content)
        if about["format"] != FORMAT:
            refuse(f"{folder} has format {about['format']!r}, and this code reads {FORMAT}")
        files = {}
        for name, entry in about["files"].items():
            sizes = [natural(size) for size in entry["parts"]]
            names = (
                [name] if len(sizes) == 1 else [part_name(name, n + 1) for n in range(len(sizes))]
            )
            pieces = [Piece(p, size, hashes.pop(p)) for p, size in zip(names, sizes, strict=True)]
            whole = Whole(natural(entry["size"]), str(entry["sha256"]), pieces)
            agrees = len(pieces) != 1 or pieces[0].sha256 == whole.sha256
            if not (pieces and agrees and sum(sizes) == whole.size and SAFE_PATH.fullmatch(name)):
                refuse(
                    f"{folder / DESCRIPTION}: the parts of {name} do not make {name}; {MAKE_AGAIN}"
                )
            files[name] = whole
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        refuse(f"{folder / DESCRIPTION} is damaged ({error!r}); {MAKE_AGAIN}")
    if hashes:
        refuse(f"{MANIFEST} names {min(hashes)}, {DESCRIPTION} does not; {MAKE_AGAIN}")
    return Bundle(about, files)


def natural(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a size")
    return value


def read_manifest(path: Path) -> dict[str, str]:
    """path in the bundle -> sha256, each path a safe one."""
    hashes: dict[str, str] = {}
    for number, line in enumerate(read_small(path).decode("utf-8", "replace").splitlines(), 1):
        sha256, _, name = line.partition("  ")
        if not re.fullmatch("[0-9a-f]{64}", sha256) or not SAFE_PATH.fullmatch(name):
            refuse(
                f"{path}, line {number}: no path inside the bundle: {line[:200]!r}; {MAKE_AGAIN}"
            )
        if name in hashes:
            refuse(f"{path}, line {number}: {name} a second time; {MAKE_AGAIN}")
        hashes[name] = sha256
    return hashes


def verify(folder: Path, bundle: Bundle) -> None:
    """Hash all of it. Raises InstallError with what is missing, damaged or a link.

    Files that the manifest does not name are ignored: file managers leave some on every stick.
    """
    for root, folders, files in os.walk(folder):
        for name in folders + files:
            if os.path.islink(os.path.join(root, name)):
                refuse(f"{os.path.join(root, name)} is a link, and a bundle has none; {MAKE_AGAIN}")
    pieces = [piece for whole in bundle.files.values() for piece in whole.pieces]
    damaged = [f"{piece.path} {flaw}" for piece in pieces if (flaw := wrong_size(folder, piece))]
    if not damaged:  # only now is it worth reading gigabytes
        reported = time.monotonic()
        for number, piece in enumerate(pieces, 1):
            with open_piece(folder / piece.path) as file:
                digest = hashlib.sha256()
                for block in blocks(file, piece.size + 1):
                    digest.update(block)
            if digest.hexdigest() != piece.sha256:
                damaged.append(f"{piece.path} has other bytes than it should")
            if time.monotonic() - reported > 20:
                say(f"verified {number} of {len(pieces)} files")
                reported = time.monotonic()
    if damaged:
        more = f", and {len(damaged) - 3} more" if len(damaged) > 3 else ""
        refuse(f"{folder}: {'; '.join(damaged[:3])}{more}; {MAKE_AGAIN}")


def wrong_size(folder: Path, piece: Piece) -> str:
    try:
        info = (folder / piece.path).lstat()
    except (FileNotFoundError, NotADirectoryError):
        return "is missing"
    if not stat.S_ISREG(info.st_mode):
        return "is not a regular file"
    if info.st_size != piece.size:
        return f"has {info.st_size:,} bytes, not {piece.size:,}"
    return ""


def open_bundle(folder: Path, into: Path, python: str, torch: str) -> None:
    """Verify all of the bundle, then offer its wheels and checkpoints in ``into``.

    There they are links to what was verified, or files joined from their parts; other wheels that
    the bundle may hold do not come near the installer.
    """
    began = time.monotonic()
    bundle = read_bundle(folder)
    locks = read_locks(PROJECT, torch)
    check_fit(folder, bundle, python, torch, locks)
    size = sum(whole.size for whole in bundle.files.values())
    say(f"verifying {len(bundle.files)} files, {megabytes(size)}")
    verify(folder, bundle)
    offered = select(folder, bundle, wanted_wheels(locks.values(), python))
    for kind in ("wheels", "checkpoints"):
        (into / kind).mkdir(parents=True, exist_ok=True)
        for path in (into / kind).iterdir():
            if f"{kind}/{path.name}" not in offered:
                path.unlink()
    to_join = {
        name: whole
        for name, whole in offered.items()
        if len(whole.pieces) > 1 and not is_joined(into / name, whole)
    }
    check_space(into, to_join)
    for name, whole in offered.items():
        if name in to_join:
            join_parts(folder, name, whole, into)
        elif len(whole.pieces) == 1:
            link(folder / name, into / name)
    say(f"verified in {time.monotonic() - began:.0f} s; no network is needed")


def select(folder: Path, bundle: Bundle, wanted: list[Entry]) -> dict[str, Whole]:
    """Return the bundle's wheels that the locks name, and its checkpoints.

    Raise InstallError where a wheel is missing.
    """
    hashes = {whole.sha256 for whole in bundle.files.values()}
    for entry in wanted:
        if entry.hashes.isdisjoint(hashes):
            what = f"{entry.name}=={entry.version}, which the locks name"
            refuse(f"{folder} lacks {what}; {MAKE_AGAIN}")
    locked = {sha256 for entry in wanted for sha256 in entry.hashes}
    return {
        name: whole
        for name, whole in bundle.files.items()
        if (re.fullmatch(r"wheels/[^/]+\.whl", name) and whole.sha256 in locked)
        or re.fullmatch(r"checkpoints/[^/]+\.pth", name)
    }


def check_space(into: Path, to_join: dict[str, Whole]) -> None:
    free, needed = shutil.disk_usage(into).free, sum(whole.size for whole in to_join.values())
    if free < needed:
        raise InstallError(
            ExitCode.DISK_FULL,
            f"{into} has {megabytes(free)} free, and joining the bundle's parts needs "
            f"{megabytes(needed)}; free some space, or make the bundle without --split",
        )


def join_parts(folder: Path, name: str, whole: Whole, into: Path) -> None:
    parts = [folder / piece.path for piece in whole.pieces]
    if join(parts, into / name) != whole.sha256:
        (into / name).unlink()
        refuse(f"{folder}: the parts of {name} do not make it; {MAKE_AGAIN}")


def link(source: Path, path: Path) -> None:
    """Make ``path`` a link to ``source``, in one step."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    try:
        fresh.symlink_to(source.absolute())
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOSYS, errno.ENOTSUP):
            raise
        raise InstallError(
            ExitCode.NO_PERMISSION,
            f"{path.parent.parent} is on a disk without links, as FAT and exFAT: a bundle may be "
            "there, the project needs another disk",
        ) from None
    os.replace(fresh, path)


def is_joined(path: Path, whole: Whole) -> bool:
    """Whether an earlier call has joined it."""
    return is_plain(path) and path.stat().st_size == whole.size and sha256_of(path) == whole.sha256


def platform_tag() -> str:
    """This machine, as bundles name it: linux-x86_64, linux-aarch64, darwin-arm64."""
    return f"{sys.platform}-{platform.machine()}"


def check_fit(
    folder: Path, bundle: Bundle, python: str, torch: str, locks: dict[str, bytes]
) -> None:
    """Raises InstallError with the reason and the fix if the bundle is not for this machine."""
    for key, ours, fix in (
        ("platform", platform_tag(), "make the bundle on a machine of this kind"),
        ("python", python, f"on the other machine: ./bootstrap.sh bundle OUT --python {python}"),
        ("torch", torch, f"on the other machine: ./bootstrap.sh bundle OUT --torch {torch}"),
    ):
        built_for = bundle.about.get(key)
        if built_for != ours:
            refuse(f"{folder} is for {key} {built_for!r}, but this machine has {ours!r}; {fix}")
    digests = bundle.about.get("locks")
    for name, text in locks.items():
        if not isinstance(digests, dict) or digests.get(name) != hashlib.sha256(text).hexdigest():
            refuse(
                f"{folder} was made for another {name} than the one here; use the code that came "
                "with it (code.tar.gz), or make the bundle again with this code"
            )
