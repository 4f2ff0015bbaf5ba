"""Read the weights of a backbone in any common format, or explain what the file is instead."""

import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import safetensors.torch

from vqa_repro.utils.errors import UserError, first_line
from vqa_repro.utils.torch_utils import load_tar, load_torch

WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys of training checkpoints
# First bytes of files that are not checkpoints -> what they are.
KINDS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself: run `git lfs pull`",
    b"<!doctype html": "a web page: download the file again, logged in",
    b"<html": "a web page: download the file again, logged in",
    b"\x1f\x8b": "compressed with gzip: gunzip it first",
}


def read_weights(path: Path) -> dict[str, Any]:
    """Return the state dict at ``path``: torch.save's formats, safetensors, without wrappers.

    The prefixes of DataParallel ("module.") and the dict around the weights of a training
    checkpoint are removed. Raise UserError for any other file, naming what it is.
    """
    if kind := _kind(path):
        raise UserError(f"{path}: not a checkpoint but {kind}")
    try:
        state = _load(path)
    except pickle.UnpicklingError as error:
        if "unsupported global" not in str(error).lower():
            raise _damaged(path, error) from None
        raise UserError(
            f"{path}: not a checkpoint of weights alone but a whole model or other code: save its "
            "weights alone, torch.save(model.state_dict(), FILE)"
        ) from None
    except Exception as error:  # many kinds, for a damaged file
        raise _damaged(path, error) from None
    for name in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if not isinstance(state, dict):
        raise UserError(f"{path}: contains no state dict; is it another model's file?")
    return {_without_module(str(key)): value for key, value in state.items()}


def _kind(path: Path) -> str:
    """Return what the file is, in words, if it cannot be a checkpoint."""
    try:
        with path.open("rb") as file:
            head = file.read(100)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint; see checkpoints_setup.py") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if not head:
        return "empty: download it again"
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
    return ""


def _load(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    return load_tar(path) if tarfile.is_tarfile(path) else load_torch(path)


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: not a checkpoint ({first_line(error)}); download it again")


def _without_module(key: str) -> str:
    return key.removeprefix("module.").replace(".module.", ".")
