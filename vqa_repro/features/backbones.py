"""Frozen networks, pre-trained on ImageNet: pictures -> a grid of region vectors.

(B, 448, 448, 3) uint8 -> (B, 196, channels): the last pooling layer of VGG (SAN section 3.1) or
the last convolution of a ResNet, 14x14 regions of 32x32 pixels each.
"""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vqa_repro.features.weights_file import read_weights
from vqa_repro.install import checkpoints
from vqa_repro.utils.errors import UserError, first_line
from vqa_repro.utils.outline import empty_weights

# Per-channel statistics of the training pictures, in the order and scale each network was fed.
_CAFFE_MEAN = (103.939, 116.779, 123.68)  # BGR, 0..255 (Simonyan & Zisserman's release)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # RGB, 0..1


@dataclass(frozen=True)
class Backbone:
    """A network of torchvision, known there and in checkpoints_setup.py by one name."""

    channels: int
    size: int = 448  # pixels a side
    regions: int = 196


BACKBONES = {
    "vgg16": Backbone(512),
    "vgg19": Backbone(512),
    "resnet50": Backbone(2048),
    "resnet101": Backbone(2048),
    "resnet152": Backbone(2048),
}
Preprocess = Literal["torchvision", "caffe"]
Precision = Literal["float32", "bfloat16"]


class FrozenBackbone:
    """A backbone with its weights, on a device; ``made_by`` is what its features record.

    precision: of the convolutions. bfloat16 is several times as fast where the processor has
    instructions for it, and differs from float32 by about 1% (docs/fidelity.md).
    """

    def __init__(
        self,
        name: str,
        weights: Path,
        preprocess: Preprocess,
        device: torch.device,
        precision: Precision = "float32",
    ) -> None:
        if name not in BACKBONES:
            raise UserError(f"backbone {name!r}: there are {', '.join(BACKBONES)}")
        self.backbone = BACKBONES[name]
        self.device = device
        self._network = load_backbone(name, weights).to(device)
        self._preprocess = preprocess
        self._dtype: torch.dtype = getattr(torch, precision)
        for part in self._network.modules():
            if isinstance(part, nn.Conv2d):  # normalisations take both, and stay exact
                part.to(self._dtype)
        self.made_by: dict[str, Any] = {
            "backbone": name,
            "weights": weights.name,
            "weights_sha256": weights_digest(weights),
            "preprocess": preprocess,
            "size": self.backbone.size,
            "resize": "squash, bilinear with anti-aliasing (Pillow)",
        }
        if precision != "float32":  # features made before there was a choice do not name it
            self.made_by["precision"] = precision

    @classmethod
    def like(
        cls, made_by: dict[str, Any], weights: Path | None, device: torch.device
    ) -> "FrozenBackbone":
        """The network that made features with the record ``made_by``.

        weights: its file; by default the seeded checkpoint of that name. Raises UserError if it
        is not there or is another one.
        """
        for key in ("backbone", "weights", "weights_sha256", "preprocess"):
            if not isinstance(made_by.get(key), str):
                raise UserError(f"the features' record of what made them names no {key}")
        if Path(made_by["weights"]).name != made_by["weights"]:  # a stranger's run, perhaps
            raise UserError(f"the features' weights are called {made_by['weights']!r}: a path")
        path = weights or checkpoints.checkpoint_dir() / made_by["weights"]
        if not path.is_file():
            raise UserError(
                f"{path}: missing; the features were made with {made_by['weights']}: name it "
                "with --weights FILE"
            )
        precision = made_by.get("precision", "float32")
        network = cls(made_by["backbone"], path, made_by["preprocess"], device, precision)
        if network.made_by["weights_sha256"] != made_by["weights_sha256"]:
            raise UserError(f"{path}: not the weights that made the run's features")
        if network.made_by["size"] != made_by.get("size"):
            raise UserError(
                f"the features' pictures have {made_by.get('size')!r:.80} pixels a side"
            )
        return network

    def __call__(self, pictures: Tensor) -> Tensor:
        """(B, S, S, 3) uint8 RGB -> (B, regions, channels) float32."""
        x = preprocess(pictures, self._preprocess).to(self._dtype)
        with exact_float32():
            maps: Tensor = self._network(x.contiguous(memory_format=torch.channels_last))
        # (B, C, H, W) -> regions row by row from the upper left corner.
        return maps.flatten(2).transpose(1, 2).float()


@contextmanager
def exact_float32() -> Iterator[None]:
    """Keep cuDNN from rounding float32 convolutions to TensorFloat-32, as it does by default."""
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = convolutions.fp32_precision
    convolutions.fp32_precision = "ieee"
    try:
        yield
    finally:
        convolutions.fp32_precision = before


def load_backbone(name: str, weights: Path) -> nn.Module:
    """The frozen, truncated network ``name`` with the weights of the state dict at ``weights``.

    The file may be any that ``read_weights`` reads. The classifier's weights may be missing from
    it or have other names (they are not used); every other key must be there with
    its shape, and no further one. Raises UserError otherwise.
    """
    import torchvision  # takes seconds, and what is trained along does without it

    state = read_weights(weights)
    with empty_weights():
        model: nn.Module = getattr(torchvision.models, name)()
    # Batch counters are used in training only, and older checkpoints lack them.
    unused = ("classifier.", "fc.", "num_batches_tracked")

    def needed(keys: Iterable[str]) -> set[str]:
        return {key for key in keys if not key.startswith(unused) and not key.endswith(unused)}

    expected, found = needed(model.state_dict()), needed(state)
    # Of one kind, a deeper network has all the keys of a shallower one, and more.
    if differing := sorted(expected ^ found):
        raise UserError(
            f"{weights}: not {name}: {len(expected - found)} keys missing and "
            f"{len(found - expected)} too many, e.g. {differing[0]}"
        )
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    for key in sorted(expected):  # before anything is made of them
        value = state[key]
        if not isinstance(value, Tensor) or value.shape != shapes[key]:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise UserError(
                f"{weights}: not {name}: size mismatch for {key}: {shape}, not {tuple(shapes[key])}"
            )
    try:
        used = {key: state[key].float() for key in expected}
        model.load_state_dict(used, strict=False, assign=True)
    except RuntimeError as error:  # quantised or sparse numbers
        raise UserError(f"{weights}: not {name}: {first_line(error)}") from None
    # The convolutions, up to VGG's last pooling: without the average pooling and the classes.
    parts = list(model.children())
    kept = parts[0] if name.startswith("vgg") else nn.Sequential(*parts[:-2])
    return kept.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def preprocess(pictures: Tensor, style: Preprocess) -> Tensor:
    """(B, S, S, 3) uint8 RGB -> (B, 3, S, S) float32 as the network was fed in its training.

    ``style`` "caffe": BGR, 0..255, minus the mean; "torchvision": RGB, 0..1, standardised.
    """
    x = pictures.permute(0, 3, 1, 2).float()
    if style == "caffe":
        return x.flip(1) - _per_channel(_CAFFE_MEAN, x.device)
    mean, std = (_per_channel(values, x.device) for values in (_IMAGENET_MEAN, _IMAGENET_STD))
    return (x / 255 - mean) / std


@cache  # to copy them anew would be to wait for the GPU at every batch
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(values, device=device).view(1, 3, 1, 1)


def weights_digest(path: Path) -> str:
    """sha256 of a weights file, which features carry to tell what made them."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
