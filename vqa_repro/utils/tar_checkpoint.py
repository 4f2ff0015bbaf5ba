"""State dicts in the tar format of PyTorch before 0.1.9 (early 2017), read without running code.

torch.load reads these files only with weights_only=False, which runs whatever they say. The public
conversion of the Caffe VGG-19 is one of them.
"""

import pickle
import struct
import tarfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class _Unpickler(pickle._Unpickler):
    """Makes nothing but an OrderedDict; torch's types stay names.

    Python's own unpickler, not the one in C: that one makes room for as many objects as a single
    number in the file says, which may be gigabytes.
    """

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch":
            return name
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def load_tar(path: Path) -> Any:
    """The object saved at ``path``; its tensors are float32, on the CPU.

    Raises what reading a damaged, hostile or other tar file may: tarfile.TarError, KeyError,
    pickle.UnpicklingError, struct.error, RuntimeError and more.
    """
    tensors: dict[str, Tensor] = {}
    with tarfile.open(path, "r:") as tar:
        storages = _read_storages(tar)
        with _member(tar, "tensors") as file:
            for _ in range(_Unpickler(file).load()):
                key, storage, _kind = _Unpickler(file).load()
                # Kept as 8 bytes, of which PyTorch itself reads 4.
                dimensions, _ = struct.unpack("<ii", file.read(8))
                shape = struct.unpack(f"<{dimensions}q", file.read(8 * dimensions))
                strides = struct.unpack(f"<{dimensions}q", file.read(8 * dimensions))
                (offset,) = struct.unpack("<q", file.read(8))
                tensors[str(key)] = storages[storage].as_strided(shape, strides, offset)
        with _member(tar, "pickle") as file:
            unpickler = _Unpickler(file)
            unpickler.persistent_load = tensors.__getitem__  # type: ignore[assignment]
            return unpickler.load()


def _read_storages(tar: tarfile.TarFile) -> dict[int, Tensor]:
    """Key -> the numbers that one or several tensors are views of, (N,) float32."""
    storages = {}
    with _member(tar, "storages") as file:
        for _ in range(_Unpickler(file).load()):
            key, _device, kind = _Unpickler(file).load()
            if kind != "FloatStorage":
                raise pickle.UnpicklingError(f"it holds a {kind}")
            (size,) = struct.unpack("<q", file.read(8))
            storages[key] = torch.frombuffer(bytearray(file.read(4 * size)), dtype=torch.float32)
    return storages


def _member(tar: tarfile.TarFile, name: str) -> Any:
    file = tar.extractfile(name)
    if file is None:
        raise tarfile.ReadError(f"{name} is no file")
    return file
