"""The weight files that a frozen network accepts: every known kind of its own, no others."""

import pickle
import tarfile
import zipfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from test_torch_utils import save_tar
from torch import Tensor, nn

from vqa_repro.features.backbones import load_backbone
from vqa_repro.features.weights_file import read_weights
from vqa_repro.utils.errors import UserError


def weights_of(name: str) -> dict[str, Tensor]:
    """Return a state dict with torchvision's keys and shapes, each one expanded number."""
    with torch.device("meta"):
        shapes = {
            key: value.shape
            for key, value in getattr(torchvision.models, name)().state_dict().items()
        }
    return {
        key: torch.tensor(n / 64).expand(shape) for n, (key, shape) in enumerate(shapes.items())
    }


def features(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if key.startswith("features.")}


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the classifier's keys as in torchvision before March 2017 and in the Caffe file."""
    old = {"classifier.0.": "classifier.1.", "classifier.3.": "classifier.4."}
    return {old.get(key[:13], key[:13]) + key[13:]: value for key, value in state.items()}


@pytest.mark.parametrize("kind", ["torchvision", "renamed", "half, features only", "tar"])
def test_every_kind_of_vgg19_file_is_taken(tmp_path: Path, kind: str) -> None:
    state, path = weights_of("vgg19"), tmp_path / "vgg19.pth"
    if kind == "torchvision":
        torch.save(state, path)
    elif kind == "renamed":
        torch.save(renamed(state), path, _use_new_zipfile_serialization=False)
    elif kind == "tar":
        save_tar(renamed(state), path)
    else:
        torch.save({key: value.half() for key, value in features(state).items()}, path)
    network = load_backbone("vgg19", path)
    loaded = {f"features.{key}": value for key, value in network.state_dict().items()}
    assert loaded.keys() == features(state).keys()
    for key, value in loaded.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, state[key])
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 512, 1, 1)


@pytest.mark.parametrize("name", ["vgg19", "resnet50"])
def test_the_weights_of_the_part_that_is_used_are_taken(tmp_path: Path, name: str) -> None:
    state, path = weights_of(name), tmp_path / "w.pth"
    with torch.device("meta"):
        model = getattr(torchvision.models, name)()
    parts = [nn.Sequential(*list(model.children())[:-1])]
    parts += [model.features] if name == "vgg19" else []
    model.load_state_dict(state, assign=True)
    torch.save(state, path)
    expected = load_backbone(name, path).state_dict()
    for part in parts:
        torch.save(part.state_dict(), path)
        loaded = load_backbone(name, path).state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in expected.items())
    torch.save({"0.weight": torch.ones(64, 3, 3, 3)}, path)
    with pytest.raises(UserError, match=f"not {name}"):
        load_backbone(name, path)


def test_what_a_tar_is_refused_for_is_named(tmp_path: Path) -> None:
    save_tar({"features.0.weight": torch.rand(4, 4)}, tmp_path / "w.pth", kind=torch.DoubleStorage)
    with pytest.raises(UserError, match=r"w\.pth: not a checkpoint \(it contains a DoubleStorage"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("kind", ["zip", "legacy", "tar", "safetensors"])
def test_a_truncated_file_is_called_so(tmp_path: Path, kind: str) -> None:
    path, state = tmp_path / "w.pth", {"features.0.weight": torch.rand(64, 64)}
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "tar":
        save_tar(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    for size in (len(content) // 2, 5000, 600, 50):
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match=rf"w\.pth: .*truncated after {size:,} bytes.* again"):
            read_weights(path)
    if kind == "zip":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes(8) + content[middle + 8 :])
        with pytest.raises(UserError, match=r"w\.pth: .*checksum mismatch.* again"):
            read_weights(path)


@pytest.mark.parametrize(
    ("name", "other", "expected"),
    [
        ("vgg19", "vgg16", "not vgg19: 12 keys missing and 6 too many"),
        ("vgg19", "vgg19_bn", "not vgg19"),
        ("vgg16", "resnet50", "not vgg16"),
        ("resnet50", "vgg16", "not resnet50"),
        ("resnet50", "resnet101", "not resnet50: 0 keys missing and 255 too many"),
        ("resnet101", "resnet152", "not resnet101: 0 keys missing"),
        ("resnet50", "wide_resnet50_2", "not resnet50: size mismatch"),
    ],
)
def test_another_networks_file_is_refused(
    tmp_path: Path, name: str, other: str, expected: str
) -> None:
    torch.save(weights_of(other), tmp_path / "w.pth")
    with pytest.raises(UserError) as error:
        load_backbone(name, tmp_path / "w.pth")
    assert str(error.value).startswith(f"{tmp_path / 'w.pth'}: {expected}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (b"", "empty"),
        (b"<html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"\x1f\x8b\x08", "gunzip"),
        (b"BZh91AY", "bunzip2"),
        (b"\xfd7zXZ\0", "unxz"),
        (b"\x28\xb5\x2f\xfd", "unzstd"),
        (b"7z\xbc\xaf\x27\x1c", "7z"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b'{"message": "Not Found"}', "JSON"),
        (b'<?xml version="1.0"?><Error/>', "error page"),
        (b"\x0a\x0fVGG_ILSVRC_19_layers", "neither PyTorch's formats nor safetensors"),
        (b"\0" * 10240, "download it again"),
        (b"PK\x03\x04", "download it again"),
    ],
)
def test_no_checkpoint_at_all(tmp_path: Path, content: bytes, fact: str) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(UserError, match=rf"w\.pth: not a checkpoint\b.*{fact}"):
        load_backbone("vgg19", tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"none\.pth: no such checkpoint"):
        load_backbone("vgg19", tmp_path / "none.pth")


STATE = {"features.0.weight": torch.ones(2), "features.0.bias": torch.zeros(2)}


@pytest.mark.parametrize(
    "saved",
    [
        STATE,
        {f"module.{key}": value for key, value in STATE.items()},
        {key.replace("features.", "features.module."): value for key, value in STATE.items()},
        {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in STATE.items()}},
        {"model_state_dict": STATE},
        {"model": {"state_dict": {f"module.{key}": value for key, value in STATE.items()}}},
        {"net": {f"module.module.{key}": value for key, value in STATE.items()}, "acc": 71.0},
        {"state_dict": {f"model.{key}": value for key, value in STATE.items()}, "epoch": 3},
        {f"_orig_mod.backbone.{key}": value for key, value in STATE.items()},
    ],
)
def test_wrappers_around_the_weights_are_removed(tmp_path: Path, saved: object) -> None:
    torch.save(saved, tmp_path / "w.pth")
    assert read_weights(tmp_path / "w.pth").keys() == STATE.keys()


def test_safetensors_are_read_and_other_wrappers_are_named(tmp_path: Path) -> None:
    for name in ("w.safetensors", "pytorch_model.bin"):
        save_file(STATE, tmp_path / name)
        assert read_weights(tmp_path / name).keys() == STATE.keys()
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    torch.save(STATE, tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        archive.write(tmp_path / "w.pth", "w.pth")
    with tarfile.open(tmp_path / "w.tar", "w") as tar:
        tar.add(tmp_path / "w.pth", "w.pth")
    (tmp_path / "link.pth").symlink_to(tmp_path / "scratch.pth")
    torch.save({"state_dict": STATE, "args": Namespace()}, tmp_path / "args.pth")
    (tmp_path / "vgg.pkl").write_bytes(pickle.dumps({"conv1": np.ones(3)}))
    (tmp_path / "VGG.caffemodel").write_bytes(b"\n\x0fVGG_ILSVRC_19_layers")
    for name, fact in (
        ("args.pth", r"\(argparse.Namespace\)"),
        ("vgg.pkl", "not a checkpoint"),
        ("VGG.caffemodel", "checkpoints_setup.py vgg19-caffe"),
        ("model.pt", r"state_dict\(\)"),
        ("w.zip", "unzip"),
        ("w.tar", "a tar of w.pth"),
        ("link.pth", "a link to .*scratch.pth"),
    ):
        with pytest.raises(UserError, match=fact):
            read_weights(tmp_path / name)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    state = weights_of("vgg16")
    state["features.0.bias"] = torch.full((64,), float("nan"))
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"features\.0\.bias is not finite"):
        load_backbone("vgg16", tmp_path / "w.pth")
