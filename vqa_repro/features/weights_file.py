"""Read the weights of a backbone in any common format, or explain what the file is instead."""

import pickle
import re
import tarfile
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors.torch

from vqa_repro.utils.errors import UserError, first_line
from vqa_repro.utils.files import open_regular
from vqa_repro.utils.paths import dangling_link
from vqa_repro.utils.torch_utils import load_tar, load_torch

# Keys of training checkpoints, one inside the other or alone, and prefixes of the weights' names.
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights")
MOST_WRAPPERS = 3
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.", "encoder.")
# How the readers of all formats say that a file ends too early.
TRUNCATED = re.compile(
    "EOF|end of data|not fully covered|header length|not a zip file"
    "|pop from empty list|filename '.*' not found"  # tar: within its first members
)
# First bytes of files that are not checkpoints -> what they are.
KINDS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself: run `git lfs pull`",
    b"<!doctype html": "a web page: download the file again, logged in",
    b"<html": "a web page: download the file again, logged in",
    b"<?xml": "an error page (XML): download the file again",
    b"{": "JSON text: download the file again",
    b"\x1f\x8b": "compressed with gzip: gunzip it first",
    b"bzh": "compressed with bzip2: bunzip2 it first",
    b"\xfd7zxz": "compressed with xz: unxz it first",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unzstd it first",
    b"7z\xbc\xaf": "a 7z archive: unpack it first",
    b"rar!": "a RAR archive: unpack it first",
    b"\x89hdf": "HDF5 (Keras): save the weights from PyTorch",
}
CAFFE = "Caffe's own: `python checkpoints_setup.py vgg19-caffe` has its weights for PyTorch"


def read_weights(path: Path) -> dict[str, Any]:
    """Return the state dict at ``path``: torch.save's formats, safetensors, without wrappers.

    The prefixes of DataParallel ("module."), torch.compile and Lightning and the dicts around the
    weights of a training checkpoint are removed. Raise UserError for any other file, naming what it
    is.
    """
    if kind := _kind(path):
        raise UserError(f"{path}: not a checkpoint but {kind}")
    try:
        state = _load(path)
    except pickle.UnpicklingError as error:
        if tarfile.is_tarfile(path):  # load_tar names what it refuses
            raise _damaged(path, error) from None
        if "unsupported global" not in str(error).lower():
            raise UserError(
                f"{path}: not a checkpoint: neither PyTorch's formats nor safetensors; download it "
                "again"
            ) from None
        found = re.search(r"GLOBAL (\S+)", str(error))
        code = f" ({found[1]:.60})" if found else ""
        raise UserError(
            f"{path}: not a checkpoint of weights alone but a whole model or other code{code}: "
            "save its weights alone, torch.save(model.state_dict(), FILE)"
        ) from None
    except Exception as error:  # many kinds, for a damaged file
        raise _damaged(path, error) from None
    for _ in range(MOST_WRAPPERS):
        if isinstance(state, dict):
            state = next((state[n] for n in WRAPPERS if isinstance(state.get(n), dict)), state)
    if not isinstance(state, dict):
        raise UserError(f"{path}: contains no state dict; is it another model's file?")
    return _without_prefixes({str(key): value for key, value in state.items()})


def _kind(path: Path) -> str:
    """Return what the file is, in words, if it cannot be a checkpoint."""
    try:
        with open_regular(path) as file:
            head = file.read(100)
    except FileNotFoundError:
        why = dangling_link(path) or "no such checkpoint; see checkpoints_setup.py"
        raise UserError(f"{path}: {why}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if not head:
        return "empty: download it again"
    if path.suffix.lower() == ".caffemodel":
        return CAFFE
    for start, kind in KINDS.items():
        if head.lstrip().lower().startswith(start):
            return kind
    if head.startswith(b"PK\x03\x04"):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except (zipfile.BadZipFile, OSError, ValueError):
            return ""
        if any(name.endswith("/constants.pkl") for name in names):
            return "TorchScript: save its weights alone, torch.save(model.state_dict(), FILE)"
        if not any(name.endswith("data.pkl") for name in names):
            return f"a zip of {', '.join(names[:3])}: unzip it first"
    with suppress(tarfile.TarError, OSError, ValueError), tarfile.open(path, "r:") as tar:
        first = next(iter(tar), None)
        if first and first.name not in ("sys_info", "pickle", "tensors", "storages"):
            return f"a tar of {first.name}: unpack it first"
    return ""


def _load(path: Path) -> Any:
    with path.open("rb") as file:
        is_safetensors = file.read(9)[8:] == b"{"  # after the length of the header
    if is_safetensors:
        return safetensors.torch.load_file(path)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected pickle protocol")  # an error follows
        return load_tar(path) if tarfile.is_tarfile(path) else load_torch(path)


def _damaged(path: Path, error: Exception) -> UserError:
    why = first_line(error)
    if isinstance(error, EOFError) or TRUNCATED.search(why):
        why = f"truncated after {path.stat().st_size:,} bytes"
    fix = "download it again (checkpoints_setup.py verifies its downloads), or copy it again"
    return UserError(f"{path}: not a checkpoint ({why}); {fix}")


def _without_prefixes(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state dict without wrappers' names at the start and in the middle of its keys."""
    state = {re.sub(r"\.(module|_orig_mod)\.", ".", key): value for key, value in state.items()}
    while found := [p for p in PREFIXES if state and all(key.startswith(p) for key in state)]:
        state = {key.removeprefix(found[0]): value for key, value in state.items()}
    return state
