"""PyTorch's old tar format, written here as by PyTorch 0.1; today's PyTorch still reads it."""

import io
import pickle
import struct
import tarfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vqa_repro.utils.torch_utils import load_tar


class Pickler(pickle.Pickler):
    """Return tensors by name."""

    def __init__(self, file: io.BytesIO, tensors: list[Tensor]) -> None:
        super().__init__(file, protocol=2)
        self.tensors = tensors

    def persistent_id(self, item: Any) -> str | None:
        if not isinstance(item, Tensor):
            return None
        self.tensors.append(item)
        return str(1000 + len(self.tensors) - 1)


def save_tar(state: Any, path: Path, *, kind: type = torch.FloatStorage) -> None:
    """Save as PyTorch 0.1 did: the object, the shapes of its tensors, and their values."""
    tensors: list[Tensor] = []
    pickled, shapes, numbers = io.BytesIO(), io.BytesIO(), io.BytesIO()
    Pickler(pickled, tensors).dump(state)
    pickle.dump(len(tensors), shapes, 2)
    storages = {tensor.untyped_storage().data_ptr(): tensor for tensor in tensors}
    for number, tensor in enumerate(tensors, start=1000):
        storage = tensor.untyped_storage().data_ptr()
        pickle.dump((number, storage, torch.FloatTensor), shapes, 2)
        layout = (*tensor.shape, *tensor.stride(), tensor.storage_offset())
        shapes.write(struct.pack(f"<ii{len(layout)}q", tensor.ndim, 0, *layout))
    pickle.dump(len(storages), numbers, 2)
    for storage, tensor in storages.items():
        content = bytes(tensor.untyped_storage())
        pickle.dump((storage, "cpu", kind), numbers, 2)
        numbers.write(struct.pack("<q", len(content) // 4) + content)
    pickle.dump([], numbers, 2)
    with tarfile.open(path, "w:", format=tarfile.PAX_FORMAT) as tar:
        members = {"sys_info": b"", "pickle": pickled, "tensors": shapes, "storages": numbers}
        for name, content in members.items():
            data = content if isinstance(content, bytes) else content.getvalue()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def example() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3, 2, 2, generator=generator)
    return OrderedDict(
        weight=weight, turned=weight.transpose(0, 1), part=weight[1:, 2], one=weight.sum()
    )


# torch's own reader extracts the members without a filter.
by_torch = pytest.mark.filterwarnings("ignore:Python 3.14 will, by default:DeprecationWarning")


@by_torch
def test_it_is_read_as_torch_does(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    save_tar(example(), path)
    state, expected = load_tar(path), torch.load(path, weights_only=False)
    assert list(state) == list(expected) == list(example())
    for name, tensor in example().items():
        assert state[name].dtype == torch.float32
        assert torch.equal(state[name], tensor)
        assert torch.equal(state[name], expected[name])


class Harm:
    """An object that writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@by_torch
def test_no_code_in_it_is_run(tmp_path: Path) -> None:
    path, harm = tmp_path / "old.pth", tmp_path / "harm"
    save_tar(OrderedDict(example(), harm=Harm(harm)), path)
    with pytest.raises(pickle.UnpicklingError, match="it requests"):
        load_tar(path)
    assert not harm.exists()
    torch.load(path, weights_only=False)
    assert harm.exists()  # the payload works


def test_other_numbers_are_refused(tmp_path: Path) -> None:
    save_tar(example(), tmp_path / "old.pth", kind=torch.DoubleStorage)
    with pytest.raises(pickle.UnpicklingError, match="it contains a DoubleStorage"):
        load_tar(tmp_path / "old.pth")


@pytest.mark.parametrize("member", ["pickle", "tensors", "storages"])
@pytest.mark.parametrize("rest", [0, 20])
def test_a_truncated_file_is_refused(tmp_path: Path, member: str, rest: int) -> None:
    path = tmp_path / "old.pth"
    save_tar(example(), path)
    with tarfile.open(path) as tar:
        kept = tar.getmember(member).offset_data + rest
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises((tarfile.TarError, KeyError)):
        load_tar(path)


@pytest.mark.parametrize("member", ["pickle", "tensors", "storages"])
@pytest.mark.parametrize("kind", ["sparse", "false size", "link"])
def test_a_size_that_the_archive_does_not_have_is_refused(
    tmp_path: Path, member: str, kind: str
) -> None:
    """A few bytes of a sparse member stand for as many zeros as its header says."""
    path, hostile = tmp_path / "old.pth", tmp_path / "hostile.pth"
    save_tar(example(), path)
    with tarfile.open(path) as source, tarfile.open(hostile, "w:") as tar:
        for info in source.getmembers():
            content = source.extractfile(info)
            if info.name == member:
                info.pax_headers = {"GNU.sparse.size": str(1 << 40)}
                if kind != "false size":
                    info.pax_headers["GNU.sparse.map"] = f"0,{info.size}"
                if kind == "link":
                    info.name = "elsewhere"
            tar.addfile(info, content)
        if kind == "link":
            link = tarfile.TarInfo(member)
            link.type, link.linkname = tarfile.SYMTYPE, "elsewhere"
            tar.addfile(link)
    with pytest.raises(tarfile.ReadError, match=f"^{member} is "):
        load_tar(hostile)
