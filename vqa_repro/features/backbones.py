"""Frozen networks, pre-trained on ImageNet: images -> a grid of region vectors.

(B, 448, 448, 3) uint8 -> (B, 196, channels): the last pooling layer of VGG (SAN section 3.1) or
the last convolution of a ResNet, 14x14 regions of 32x32 pixels each. Other sizes have other grids.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from vqa_repro.features.weights_file import read_weights
from vqa_repro.install import checkpoints
from vqa_repro.utils.errors import UserError, first_line
from vqa_repro.utils.files import sha256_of
from vqa_repro.utils.torch_utils import empty_weights

# Per-channel statistics of the training images, in the channel order and scale of the inputs.
_CAFFE_MEAN = (103.939, 116.779, 123.68)  # BGR, 0..255 (Simonyan & Zisserman's release)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # RGB, 0..1

SIZE = 448  # pixels a side, as in the papers
STRIDE = 32  # pixels a side of a region
SIZES = range(STRIDE, 1024 + 1, STRIDE)

# Channels of a region, by the name that the network has in torchvision and checkpoints_setup.py.
BACKBONES = {"vgg16": 512, "vgg19": 512, "resnet50": 2048, "resnet101": 2048, "resnet152": 2048}
Preprocess = Literal["torchvision", "caffe"]
Precision = Literal["float32", "bfloat16"]


class FrozenBackbone:
    """A backbone with its weights, on a device; ``made_by`` is the provenance of its features.

    size: of the images, in pixels a side, one of SIZES.
    precision: of the convolutions. bfloat16 is several times as fast on processors with
    instructions for it, and differs from float32 by about 1% (docs/fidelity.md).
    """

    def __init__(
        self,
        name: str,
        weights: Path,
        preprocess: Preprocess,
        device: torch.device,
        precision: Precision = "float32",
        size: int = SIZE,
    ) -> None:
        if name not in BACKBONES:
            raise UserError(f"backbone {name!r}: there are {', '.join(BACKBONES)}")
        # Runs may be untrusted.
        for value, choices in ((preprocess, Preprocess), (precision, Precision)):
            if value not in get_args(choices):
                raise UserError(f"{value!r:.80}: choose {' or '.join(get_args(choices))}")
        if type(size) is not int or size not in SIZES:
            raise UserError(
                f"images of {size!r:.80} pixels a side: not a multiple of {STRIDE} up to "
                f"{max(SIZES)}"
            )
        self.size, self.device = size, device
        self.row_shape = ((size // STRIDE) ** 2, BACKBONES[name])  # regions, channels
        self._network = load_backbone(name, weights).to(device)
        self._preprocess = preprocess
        self._dtype: torch.dtype = getattr(torch, precision)
        for part in self._network.modules():
            if isinstance(part, nn.Conv2d):  # normalisation layers accept both, and stay in float32
                part.to(self._dtype)
        self.made_by: dict[str, Any] = {
            "backbone": name,
            "weights": weights.name,
            "weights_sha256": sha256_of(weights),
            "preprocess": preprocess,
            "size": size,
            "resize": "squash, bilinear with anti-aliasing (Pillow)",
        }
        if precision != "float32":  # older features do not record it
            self.made_by["precision"] = precision

    @classmethod
    def like(
        cls, made_by: dict[str, Any], weights: Path | None, device: torch.device
    ) -> "FrozenBackbone":
        """Return the network that made features with the provenance ``made_by``.

        weights: its file; by default the downloaded checkpoint of that name. Raise UserError if it
        is missing or has other weights.
        """
        backbone = made_by.get("backbone")
        if isinstance(backbone, str) and backbone not in BACKBONES:
            raise UserError(
                f"the run's features are of {backbone!r:.80}, so it cannot answer about new "
                f"images; networks for that: {', '.join(BACKBONES)}"
            )
        for key in ("backbone", "weights", "weights_sha256", "preprocess"):
            if not isinstance(made_by.get(key), str):
                raise UserError(f"the provenance of the features (made_by) has no {key}")
        if Path(made_by["weights"]).name != made_by["weights"]:  # runs may be untrusted
            raise UserError(
                f"the features' weights are called {made_by['weights']!r}, which is a path"
            )
        path = weights or checkpoints.checkpoint_dir() / made_by["weights"]
        if not path.is_file():
            names = {known.filename: known.name for known in checkpoints.KNOWN}
            name = names.get(made_by["weights"])
            get = f"`python checkpoints_setup.py {name}` downloads it, or " if name else ""
            raise UserError(
                f"{path}: missing; the features were made with {made_by['weights']}: {get}name it "
                "with --weights FILE"
            )
        size, precision = made_by.get("size", 0), made_by.get("precision", "float32")
        network = cls(made_by["backbone"], path, made_by["preprocess"], device, precision, size)
        if network.made_by["weights_sha256"] != made_by["weights_sha256"]:
            raise UserError(f"{path}: not the weights that made the run's features")
        network.made_by["weights"] = made_by["weights"]  # the same file under another name
        return network

    def __call__(self, images: Tensor) -> Tensor:
        """Return region vectors (B, regions, channels) float32 of ``images`` (B, S, S, 3) uint8."""
        x = preprocess(images, self._preprocess).to(self._dtype)
        with exact_float32():
            maps: Tensor = self._network(x.contiguous(memory_format=torch.channels_last))
        # (B, C, H, W) -> regions row by row from the upper left corner.
        return maps.flatten(2).transpose(1, 2).float()


@contextmanager
def exact_float32() -> Iterator[None]:
    """Disable TensorFloat-32, which cuDNN uses for float32 convolutions by default."""
    cudnn: Any = torch.backends.cudnn
    # Torch 2.7 has one switch for all of cuDNN; newer ones reject a mix of both kinds of switches.
    newer = hasattr(cudnn, "conv")
    switch, name = (cudnn.conv, "fp32_precision") if newer else (cudnn, "allow_tf32")
    before = getattr(switch, name)
    setattr(switch, name, "ieee" if newer else False)
    try:
        yield
    finally:
        setattr(switch, name, before)


def load_backbone(name: str, weights: Path) -> nn.Module:
    """Return the frozen, truncated network ``name`` with the state dict in the file ``weights``.

    The file may be any that ``read_weights`` reads. The classifier's weights may be missing from it
    or have other names (they are not used); all other keys and their shapes must match. Raise
    UserError otherwise.
    """
    import torchvision  # takes seconds, and networks trained with the model do not need it

    state = read_weights(weights)
    with empty_weights():
        model: nn.Module = getattr(torchvision.models, name)()
    # Batch counters are used in training only, and older checkpoints lack them.
    unused = ("classifier.", "fc.", "num_batches_tracked")

    def needed(keys: Iterable[str]) -> set[str]:
        return {key for key in keys if not key.startswith(unused) and not key.endswith(unused)}

    expected = needed(model.state_dict())
    fitting = (named for named in _full_names(state, model) if needed(named) == expected)
    state = next(fitting, state)
    found = needed(state)
    # A deeper network of the same family has all the keys of a shallower one, and more.
    if differing := sorted(expected ^ found):
        raise UserError(
            f"{weights}: not {name}: {len(expected - found)} keys missing and "
            f"{len(found - expected)} too many, e.g. {differing[0]}"
        )
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    for key in sorted(expected):  # before anything is computed from them
        value = state[key]
        if not isinstance(value, Tensor) or value.shape != shapes[key]:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise UserError(
                f"{weights}: not {name}: size mismatch for {key}: {shape}, not {tuple(shapes[key])}"
            )
    try:
        used = {key: state[key].float() for key in expected}
        model.load_state_dict(used, strict=False, assign=True)
    except RuntimeError as error:  # quantised or sparse tensors
        raise UserError(f"{weights}: not {name}: {first_line(error)}") from None
    if broken := [key for key in sorted(used) if not used[key].isfinite().all()]:
        raise UserError(f"{weights}: damaged: {broken[0]} is not finite; download it again")
    # The convolutions, up to VGG's last pooling: without average pooling and classifier.
    parts = list(model.children())
    kept = parts[0] if name.startswith("vgg") else nn.Sequential(*parts[:-2])
    return kept.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def _full_names(state: dict[str, Any], model: nn.Module) -> Iterator[dict[str, Any]]:
    """Yield ``state`` with the keys of the whole network, if it was saved from a part of it.

    Keys that begin with a number are those of ``vgg.features``, or of an nn.Sequential of the first
    children of the network.
    """
    if not all(re.match(r"\d+\.", key) for key in state):
        return
    yield {f"features.{key}": value for key, value in state.items()}
    children = {str(n): name for n, (name, _) in enumerate(model.named_children())}
    parts = {key: key.partition(".") for key in state}
    yield {f"{children.get(n, n)}.{rest}": state[key] for key, (n, _, rest) in parts.items()}


def preprocess(images: Tensor, style: Preprocess) -> Tensor:
    """Return (B, S, S, 3) uint8 RGB ``images`` as the network's input (B, 3, S, S) float32.

    ``style`` "caffe": BGR, 0..255, minus the mean; "torchvision": RGB, 0..1, standardised.
    """
    x = images.permute(0, 3, 1, 2).float()
    if style == "caffe":
        return x.flip(1) - _per_channel(_CAFFE_MEAN, x.device)
    mean, std = (_per_channel(values, x.device) for values in (_IMAGENET_MEAN, _IMAGENET_STD))
    return (x / 255 - mean) / std


@cache  # copying them for every batch would synchronise with the GPU
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(values, device=device).view(1, 3, 1, 1)
