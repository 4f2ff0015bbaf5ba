"""Making a bundle: the wheels, the checkpoints and this project's code, in one folder."""

import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vqa_repro.install import checkpoints
from vqa_repro.install.bundle_format import (
    AGAIN,
    DESCRIPTION,
    FORMAT,
    MANIFEST,
    Piece,
    Whole,
    cut,
    is_plain,
    join,
    megabytes,
    say,
    uncut,
)
from vqa_repro.install.bundle_open import platform_tag, read_bundle, verify
from vqa_repro.install.errors import ExitCode, InstallError
from vqa_repro.install.managed_python import fetch_python
from vqa_repro.install.wheels import fetch_wheels, read_locks, wanted_wheels
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.files import sha256_of, write_atomic

PROJECT = Path(__file__).resolve().parents[2]
CODE_LIMIT = 300 * 10**6  # bytes
CHECKPOINTS = ("vgg19", "vgg19-caffe")


def make(out: Path, python: str, torch: str, limit: int, with_python: bool = False) -> None:
    """Make or complete the bundle ``out``, whose name appears only once it is complete."""
    locks = read_locks(PROJECT, torch)
    settings = {"format": FORMAT, "python": python, "platform": platform_tag(), "torch": torch}
    code = tar_of_code(out, locks)
    made_from = {
        "split": limit,
        "locks": {name: hashlib.sha256(text).hexdigest() for name, text in locks.items()},
        "code": hashlib.sha256(code).hexdigest(),
        "with_python": with_python,
        "checkpoints": [file for name in CHECKPOINTS if (file := cached_checkpoint(name))],
    }
    part = out.with_name(out.name + ".part")
    if begin(out, part, settings, made_from):
        return
    uncut(part)
    wanted = wanted_wheels(locks.values(), python)
    fetch_wheels(part / "wheels", part / "arriving", wanted, python)
    copy_checkpoints(part / "checkpoints")
    if with_python:
        fetch_python(part, python)
    else:
        shutil.rmtree(part / "python", ignore_errors=True)
    shutil.rmtree(part / "arriving")
    readme = README.format(**settings).encode()
    texts = {**locks, "code.tar.gz": code, "README.txt": readme}
    for name, content in texts.items():
        (part / name).unlink(missing_ok=True)
        (part / name).write_bytes(content)
    paths = [part / name for name in texts]
    for folder in ("wheels", "checkpoints", "python"):
        paths += sorted(path for path in (part / folder).rglob("*") if path.is_file())
    files = {}
    for path in paths:
        name = path.relative_to(part).as_posix()
        files[name] = cut(path, name, limit)
    describe(part, {**settings, **made_from}, files)
    os.sync()
    os.rename(part, out)
    size = sum(whole.size for whole in files.values())
    say(f"{out}: {len(files)} files, {megabytes(size)}, for Python {python} on {platform_tag()}")


README = """Everything to install vqa_repro without a network, for Python {python} on {platform},
torch's build {torch}. Copy this folder to the server, then

    tar -xzf code.tar.gz        # anywhere; it makes the folder vqa_repro
    cd vqa_repro
    ./bootstrap.sh --bundle THIS_FOLDER

which verifies all of it first. To verify it yourself: sha256sum -c MANIFEST.sha256
Files NAME.001, NAME.002 and so on are parts of NAME. bootstrap.sh joins them; by hand:
cat NAME.[0-9][0-9][0-9] >NAME
"""


def begin(out: Path, part: Path, settings: dict[str, Any], made_from: dict[str, Any]) -> bool:
    """Have ``part`` to be worked in, with what an earlier call left; True if ``out`` is done."""
    if out.is_dir() and not any(out.iterdir()):
        out.rmdir()
    if os.path.lexists(out) and os.path.lexists(part):
        raise UserError(f"both {out} and {part} are there: remove one of them")
    for folder in (out, part):
        if not os.path.lexists(folder):
            continue
        if folder == part and folder.is_dir() and set(os.listdir(folder)) <= {f"{DESCRIPTION}.new"}:
            continue  # killed before its first file
        try:
            found = json.loads((folder / DESCRIPTION).read_bytes())
            existing = {key: found[key] for key in settings}
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(
                f"{folder} exists and is not a bundle; remove it, or name another folder"
            ) from None
        for key, ours in settings.items():
            if existing[key] != ours:
                what = f"a bundle of {key} {existing[key]!r}, not {ours!r}"
                raise UserError(f"{folder} is {what}; remove it, or name another folder")
    if out.exists():
        try:
            bundle = read_bundle(out)
            verify(out, bundle)
        except InstallError as problem:
            say(f"{out} is damaged and will be completed: {problem}")
        else:
            if {key: bundle.about.get(key) for key in made_from} == made_from:
                say(f"{out}: complete, nothing to do")
                return True
            say(f"{out} is outdated and will be updated")
        os.rename(out, part)
    elif part.exists():
        say(f"{part} is incomplete and will be continued")
    part.mkdir(parents=True, exist_ok=True)
    for path in list(part.rglob("*")):
        if path.is_symlink():  # writing would follow it
            path.unlink()
    write_text(part / DESCRIPTION, json.dumps(settings))
    for folder in (part / "wheels", part / "checkpoints", part / "arriving"):
        folder.mkdir(exist_ok=True)
    return False


def write_text(path: Path, text: str) -> None:
    write_atomic(path, lambda file: file.write(text.encode("ascii")))


def describe(part: Path, about: dict[str, Any], files: dict[str, Whole]) -> None:
    sizes = {
        name: {"size": whole.size, "sha256": whole.sha256, "parts": [p.size for p in whole.pieces]}
        for name, whole in files.items()
    }
    text = json.dumps({**about, "files": sizes}, indent=1) + "\n"
    write_text(part / DESCRIPTION, text)
    pieces = [piece for whole in files.values() for piece in whole.pieces]
    pieces.append(Piece(DESCRIPTION, len(text), hashlib.sha256(text.encode()).hexdigest()))
    write_text(part / MANIFEST, "".join(f"{piece.sha256}  {piece.path}\n" for piece in pieces))


def tar_of_code(out: Path, locks: Iterable[str]) -> bytes:
    """Pack the project's code and these locks; the same bytes each time they are the same.

    A lock may be untracked, as that of the build cpu, which is made where it is wanted.
    """
    packed = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as tar,
    ):
        for path in sorted({*code_files(out), *(PROJECT / name for name in locks)}):
            info = tarfile.TarInfo(f"vqa_repro/{path.relative_to(PROJECT).as_posix()}")
            info.size = path.stat().st_size
            info.mode = 0o755 if os.access(path, os.X_OK) else 0o644
            with path.open("rb") as file:
                tar.addfile(info, file)
    return packed.getvalue()


def code_files(out: Path) -> list[Path]:
    """What git tracks; where this is no checkout, all but what .gitignore names."""
    git = ["git", "-C", str(PROJECT), "ls-files", "-z"]
    ignore = PROJECT / ".gitignore"
    listing = None
    if (PROJECT / ".git").exists() and shutil.which("git"):
        listing = subprocess.run(git, capture_output=True, stdin=subprocess.DEVNULL)
    if listing and listing.returncode == 0:
        names = filter(None, os.fsdecode(listing.stdout).split("\0"))
        found = [PROJECT / name for name in sorted(names)]
    elif ignore.exists():
        found = files_not_ignored(ignore.read_text(encoding="utf-8").split(), out)
    else:
        raise UserError(f"no {ignore}: this is not a whole copy of the project")
    found = [path for path in found if is_plain(path)]
    sizes = {path: path.stat().st_size for path in found}
    if sum(sizes.values()) > CODE_LIMIT:
        largest = max(found, key=sizes.__getitem__)
        raise UserError(
            f"{PROJECT} holds {megabytes(sum(sizes.values()))}, far more than its code; move what "
            f"is not code elsewhere, first {largest}",
        )
    return found


def files_not_ignored(patterns: list[str], out: Path) -> list[Path]:
    """Walk the project past the bundle and what .gitignore names: /NAME at the top, NAME/ anywhere.

    The bundle goes by its path: a folder of the project may have the same name.
    """
    names = {line.strip("/") for line in patterns if not line.startswith("/")} | {".git"}
    paths = {PROJECT / line.strip("/") for line in patterns if line.startswith("/")}
    paths |= {out.resolve(), out.with_name(f"{out.name}.part").resolve()}
    found = []
    for root, folders, files in os.walk(PROJECT):
        folders[:] = sorted(n for n in folders if n not in names and Path(root, n) not in paths)
        found += [path for name in sorted(files) if (path := Path(root, name)) not in paths]
    return found


def cached_checkpoint(name: str) -> str | None:
    """The file name of this checkpoint if torch.hub finds it, verified."""
    try:
        there = checkpoints.is_verified(name)
    except OSError:
        there = False
    return checkpoints.lookup(name).filename if there else None


def copy_checkpoints(folder: Path) -> None:
    """Copy those that are here; what an earlier call has copied is hashed, not trusted."""
    wanted = [checkpoints.lookup(name) for name in CHECKPOINTS]
    for checkpoint in wanted:
        path = folder / checkpoint.filename
        if is_plain(path) and checkpoint.file.matches(sha256_of(path)):
            continue
        path.unlink(missing_ok=True)
        if not cached_checkpoint(checkpoint.name):
            fix = f"python checkpoints_setup.py {checkpoint.name}, then the same command again"
            say(f"without {checkpoint.filename}, which is not here; first: {fix}")
            continue
        say(f"copying {checkpoint.filename}")
        if not checkpoint.file.matches(join([checkpoints.checkpoint_dir() / path.name], path)):
            path.unlink()
            raise InstallError(
                ExitCode.HASH_MISMATCH, f"{path.name} changed while it was copied; {AGAIN}"
            )
    for path in folder.iterdir():
        if path.name not in {checkpoint.filename for checkpoint in wanted}:
            path.unlink()
