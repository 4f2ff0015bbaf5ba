"""The weight files that a frozen network accepts: every known kind of its own, no others."""

from pathlib import Path

import pytest
import torch
import torchvision
from test_torch_utils import save_tar
from torch import Tensor

from vqa_repro.features.backbones import load_backbone
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


@pytest.mark.parametrize("content", [b"", b"<html>", b"\0" * 10240, b"PK\x03\x04"])
def test_no_checkpoint_at_all(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"w\.pth: not a checkpoint \(.*download it again$"):
        load_backbone("vgg19", tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"none\.pth: no such checkpoint"):
        load_backbone("vgg19", tmp_path / "none.pth")
