"""Releases of a run: small enough to publish, and sufficient to use the model elsewhere.

A release is a folder or a .tar file with the run's description, its weights in float16, a model
card and SHA256SUMS. ``local_run`` turns either, or the address of a .tar file, into a run folder.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import unquote

from vqa_repro import recipe as recipes
from vqa_repro.data.registry import DATASETS
from vqa_repro.install import locks
from vqa_repro.install.download import RemoteFile, download
from vqa_repro.install.errors import InstallError
from vqa_repro.install.http_client import SourceFailed, TryAgain, check_url, open_url
from vqa_repro.install.progress import say
from vqa_repro.recipe import Data, Recipe
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.files import read_json, reason, sha256_of, write_atomic
from vqa_repro.utils.paths import expand

WEIGHTS, CARD, SUMS = "model.safetensors", "README.md", "SHA256SUMS"
REQUIRED = ("recipe.json", "vocabulary.json", "features.json", WEIGHTS)
OPTIONAL = ("environment.json", "metrics.json", "image_statistics.json")
NAMES = {*REQUIRED, *OPTIONAL, CARD, SUMS}
OTHER_ARCHIVES = (".zip", ".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".7z", ".rar")
MAX_BYTES = 2**31  # of a release, unpacked; GitHub accepts no larger file
STALL_S, LOCK_WAIT_S = 60.0, 1800.0
BEFORE_NAME = re.compile(r"(?<![^\s(])~?/(?:[^/]*/)*")  # what an absolute path has before its name
ADDRESS = re.compile(r"(https?://.+)#sha256=([0-9a-f]{64})")


def pack(run: Path, out: Path, card: str) -> str:
    """Write the finished run in ``run`` as a release; return its sha256, "" for a folder.

    Of the author's paths, it has the last names alone.
    out: a new .tar file, or a new folder. card: the text of the model card. Raise UserError if the
    run is not finished, if float16 cannot hold its weights, or if ``out`` exists.
    """
    if out.suffix.lower() in OTHER_ARCHIVES:
        name = out.stem.removesuffix(".tar")
        raise UserError(f"--out {out}: a release is a folder or a .tar file; name it {name}.tar")
    if missing := [name for name in (*REQUIRED, "metrics.json") if not (run / name).is_file()]:
        raise UserError(f"{run}: {missing[0]} is missing: not a finished run (train --resume)")
    if out.exists():
        raise UserError(f"--out {out}: exists already; name another file or folder")
    names = [name for name in (*REQUIRED, *OPTIONAL) if (run / name).is_file()]
    files = {name: (run / name).read_bytes() for name in names if name != WEIGHTS}
    files.update(_without_paths(run))
    files[WEIGHTS] = half_precision(run / WEIGHTS)
    files[CARD] = card.encode()
    sums = (f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files))
    files[SUMS] = "".join(sums).encode()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.suffix.lower() == ".tar":
            return _write_tar(files, out)
        with tempfile.TemporaryDirectory(prefix=".release-", dir=out.parent) as scratch:
            folder = Path(scratch, "release")
            folder.mkdir()
            for name, content in files.items():
                (folder / name).write_bytes(content)
            os.rename(folder, out)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written: {reason(error, out.parent)}") from None
    return ""


def _without_paths(run: Path) -> dict[str, bytes]:
    """Return the files of the run that name paths, with the last names of these alone."""
    path = run / "recipe.json"
    recipe = published(recipes.from_json(recipes.upgrade(read_json(path)), str(path)))
    contents: dict[str, Any] = {"recipe.json": recipe.to_json()}
    contents["metrics.json"] = {**read_json(run / "metrics.json"), "data": recipe.data.name}
    if (path := run / "environment.json").is_file():
        contents[path.name] = _names_alone(read_json(path))
    return {
        name: f"{json.dumps(content, indent=2)}\n".encode() for name, content in contents.items()
    }


def _names_alone(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _names_alone(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_names_alone(item) for item in value]
    return BEFORE_NAME.sub("", value) if isinstance(value, str) else value


def published(recipe: Recipe) -> Recipe:
    """Return ``recipe`` as a release has it: with the last names of paths alone."""
    training = replace(
        recipe.training,
        init_from=_last_name(recipe.training.init_from),
        word_vectors=_last_name(recipe.training.word_vectors),
        teachers=[_last_name(teacher) for teacher in recipe.training.teachers],
    )
    return replace(recipe, data=published_data(recipe.data), training=training)


def published_data(data: Data) -> Data:
    """Return ``data`` as a release has it; a path stays one, not the name of another thing."""
    name, features = _last_name(data.name), _last_name(data.features)
    if name != data.name and name in DATASETS:
        name = f"./{name}"
    if features != data.features:
        features = f"./{features}"
    return replace(data, name=name, features=features)


def _last_name(path: str) -> str:
    """Return the last name of ``path``; an address is kept."""
    if re.match("https?:", path):
        return path
    return Path(path).name or path


def half_precision(path: Path) -> bytes:
    """Return the weights in the safetensors file ``path`` with float32 tensors in float16.

    Raise UserError for a damaged file, and for a value outside the range of float16.
    """
    import torch
    from safetensors.torch import save

    from vqa_repro.utils.torch_utils import load_safetensors

    weights = load_safetensors(path)
    for name, value in weights.items():
        if value.dtype == torch.float32:
            weights[name] = value.half()
            if not weights[name].isfinite().all():
                raise UserError(f"{path}: {name} has values that float16 cannot hold")
    return save(weights)


def _write_tar(files: dict[str, bytes], out: Path) -> str:
    """Write a .tar that depends on the contents alone; return its sha256."""

    def write(file: BinaryIO) -> None:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for name in sorted(files):
                member = tarfile.TarInfo(name)
                member.size = len(files[name])
                tar.addfile(member, io.BytesIO(files[name]))

    write_atomic(out, write)
    return sha256_of(out)


def local_run(name: str | Path) -> Path:
    """Return the run folder that ``name`` stands for: a folder, a .tar, or an address of one.

    An address ends in "#sha256=" and the checksum of the file. What is unpacked or downloaded is
    kept in ~/.cache/vqa_repro, under its checksum. Raise UserError for a file that is not a
    release, and for a checksum mismatch, also in an unpacked release.
    """
    folder = _folder_of(name)
    if is_release(folder):
        _check_sums(folder, folder, "remove this folder, then copy or unpack the release again")
    return folder


def _folder_of(name: str | Path) -> Path:
    """Return the folder that ``name`` stands for, unpacked or downloaded if need be."""
    text = as_given(name)
    if text.startswith("file://"):
        path = Path(unquote(text.removeprefix("file://").partition("#")[0]))
        raise UserError(f"{text}: an address of a file; give its path instead: {path}")
    if text.startswith(("http://", "https://")):
        match = ADDRESS.fullmatch(text)
        if match is None:
            raise UserError(f"{text}: add #sha256=CHECKSUM, the 64 digits that the release states")
        cache = default_cache()
        url, checksum = match.groups()
        if (cache / checksum).is_dir():
            return cache / checksum
        return _unpacked(_downloaded(url, checksum, cache), checksum, cache)
    path = expand(name)
    if path.is_file():
        return _unpacked(path, sha256_of(path), default_cache())
    return path


def as_given(name: str | Path) -> str:
    """Return ``name`` with the slashes of an address, which pathlib merges; its scheme in small."""
    text = re.sub(r"(?i)^(https?):/+", lambda match: f"{match[1].lower()}://", str(name))
    return re.sub(r"(?i)^file:/+", "file:///", text)


def default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(base if os.path.isabs(base) else os.path.expanduser("~/.cache"))
    if not folder.is_absolute():
        raise UserError("this user has no home folder to unpack releases in: set XDG_CACHE_HOME")
    return folder / "vqa_repro"


def _downloaded(url: str, checksum: str, cache: Path) -> Path:
    """Return the file at ``url``, from the cache if it is there."""
    path = cache / f"{checksum}.tar"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with locks.hold(cache / f".{checksum}.lock", LOCK_WAIT_S, say):
            if not (path.is_file() and sha256_of(path) == checksum):
                file = RemoteFile(path.name, _size_of(url), frozenset({checksum}))
                download(file, check_url(url), path, STALL_S)
    except SourceFailed as failure:
        if failure.wrong_bytes:
            raise UserError(f"{url}: checksum mismatch ({failure})") from None
        raise UserError(f"{url}: cannot be downloaded: {failure}") from None
    except TryAgain as trouble:
        raise UserError(f"{url}: cannot be downloaded: {trouble}; try again") from None
    except locks.Busy as busy:
        raise UserError(
            f"{url}: {busy.owner} is downloading it; wait for it, then try again"
        ) from None
    except InstallError as error:  # no space
        raise UserError(f"{url}: cannot be downloaded: {error.what}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {reason(error, cache)}") from None
    return path


def _size_of(url: str) -> int:
    """Return the size of the file at ``url``, in bytes."""
    with open_url(check_url(url), STALL_S) as answer:  # not HEAD, which signed addresses refuse
        answer.start(0, lambda size: False)
        size = answer.length
    if size is None:
        raise UserError(f"{url}: its server does not say how large it is: download it yourself")
    if size > MAX_BYTES:
        raise UserError(f"{url}: larger than {MAX_BYTES:,} bytes")
    return size


def _unpacked(archive: Path, checksum: str, cache: Path) -> Path:
    """Return the folder with the contents of ``archive``, which may be untrusted."""
    folder = cache / checksum
    if folder.is_dir():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unpack-", dir=cache) as scratch:
            fresh = Path(scratch, "release")
            fresh.mkdir()
            _extract(archive, fresh)
            try:
                os.rename(fresh, folder)
            except OSError:
                if not folder.is_dir():  # not created by another process meanwhile
                    raise
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{archive}: not a release of a run: {error}") from None
    except OSError as error:
        raise UserError(f"{archive}: cannot be unpacked: {reason(error, cache)}") from None
    return folder


def _extract(archive: Path, folder: Path) -> None:
    size = 0
    with tarfile.open(archive, "r:") as tar:
        for member in tar:
            name = PurePosixPath(member.name).name
            if member.name != name or name not in NAMES or not member.isreg():
                raise UserError(f"{archive}: not a release of a run: it contains {member.name!r}")
            size += member.size
            if size > MAX_BYTES:
                raise UserError(f"{archive}: larger than {MAX_BYTES:,} bytes when unpacked")
            source = tar.extractfile(member)
            assert source is not None
            with (folder / name).open("wb") as file:
                shutil.copyfileobj(source, file)
    if not is_release(folder):
        raise UserError(f"{archive}: not a release of a run: it has no {SUMS}")
    _check_sums(folder, archive, "download it again")


def is_release(folder: Path) -> bool:
    return (folder / SUMS).is_file()


def _check_sums(folder: Path, release: Path, fix: str) -> None:
    """Raise UserError, naming ``release``, if ``folder`` differs from its SHA256SUMS."""
    lines = (folder / SUMS).read_text(encoding="utf-8", errors="replace")
    listed = {name: value for value, name in re.findall(r"(?m)^([0-9a-f]{64})  ([\w.]+)$", lines)}
    if missing := [name for name in REQUIRED if name not in listed]:
        raise UserError(f"{release}: not a release of a run: {SUMS} does not list {missing[0]}")
    for name, checksum in listed.items():
        path = folder / name
        if name == CARD and folder == release:
            continue  # publishers add a licence to it
        if not path.is_file() or sha256_of(path) != checksum:
            raise UserError(f"{release}: {name} is missing or damaged; {fix}")
