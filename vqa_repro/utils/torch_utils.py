"""PyTorch helpers: modules without memory for their weights, safe readers of weight files, and the
state of random numbers.

Files may come from anywhere: nothing in them is executed, and no number in them is trusted.
"""

import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vqa_repro.utils.errors import UserError


class _SkipInitialization(TorchFunctionMode):
    """Skips random initial values: drawing them on the meta device imports sympy, for seconds."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        # In torch 2.7 and 2.10 what kaiming_uniform_ calls does not come through here.
        if getattr(func, "__name__", "") in ("uniform_", "normal_", "kaiming_uniform_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextmanager
def empty_weights() -> Iterator[None]:
    """Build modules on the meta device: shapes only, weights are assigned later."""
    with torch.device("meta"), _SkipInitialization():
        yield


def load_torch(path: Path) -> Any:
    """Return the object saved by torch.save at ``path``, on the CPU: tensors in plain containers.

    torch.load alone does not verify checksums: a flipped bit would become a wrong weight. And it
    decompresses to any size. Raise many kinds of errors for a damaged or hostile file.
    """
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"  # as torch.load detects it; not before PyTorch 1.6
    if zipped:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            if any(record.compress_type != zipfile.ZIP_STORED for record in records):
                raise ValueError("it is compressed, which torch.save never does")
            if sum(record.file_size for record in records) > path.stat().st_size:
                raise ValueError("its parts overlap")
            if damaged := archive.testzip():
                raise ValueError(f"checksum mismatch in {damaged}")
    return torch.load(path, map_location="cpu", weights_only=True)


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the weights in a safetensors file. Raise UserError if it is damaged."""
    try:
        with path.open("rb"):  # names the system's error, which load_file does not
            return load_file(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except SafetensorError as error:
        raise UserError(f"{path}: damaged ({error}); train again, or copy the run again") from None


class _Unpickler(pickle._Unpickler):
    """Creates no object but an OrderedDict; torch's types stay names.

    Python's own unpickler instead of the one in C, which allocates as many objects as a single
    number in the file says: possibly gigabytes.
    """

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch":
            return name
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        raise pickle.UnpicklingError(f"it requests {module}.{name}")


def load_tar(path: Path) -> Any:
    """Return the object in PyTorch's tar format at ``path``; tensors are float32, on the CPU.

    PyTorch wrote it before 0.1.9 (early 2017), among others for the public conversion of the Caffe
    VGG-19. torch.load reads it only with weights_only=False, which executes code from the file.

    Raise what reading a damaged, hostile or other tar file may: tarfile.TarError, KeyError,
    pickle.UnpicklingError, struct.error, RuntimeError and more.
    """
    tensors: dict[str, Tensor] = {}
    with tarfile.open(path, "r:") as tar:
        storages = _read_storages(tar)
        with _member(tar, "tensors") as file:
            for _ in range(_Unpickler(file).load()):
                key, storage, _kind = _Unpickler(file).load()
                # Stored as 8 bytes, of which PyTorch itself reads 4.
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
    """Return key -> the numbers that one or several tensors are views of, (N,) float32."""
    storages = {}
    with _member(tar, "storages") as file:
        for _ in range(_Unpickler(file).load()):
            key, _device, kind = _Unpickler(file).load()
            if kind != "FloatStorage":
                raise pickle.UnpicklingError(f"it contains a {kind}")
            (size,) = struct.unpack("<q", file.read(8))
            storages[key] = torch.frombuffer(bytearray(file.read(4 * size)), dtype=torch.float32)
    return storages


def _member(tar: tarfile.TarFile, name: str) -> Any:
    """Open a member; refuse those whose size is only a number in the file, and links to them."""
    member = tar.getmember(name)
    if not member.isreg() or member.issparse():
        raise tarfile.ReadError(f"{name} is not an ordinary file")
    if member.size > Path(str(tar.name)).stat().st_size:
        raise tarfile.ReadError(f"{name} is larger than the archive")
    return tar.extractfile(member)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the state of the random numbers on the CPU and on ``device``."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
