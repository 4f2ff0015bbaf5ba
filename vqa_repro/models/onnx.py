"""Write the network of a run as an ONNX model, which other programs can run without PyTorch.

Inputs, for N questions, each with an image of its own:

features  (N, R, C) float32 region vectors, or "images" (N, S, S, 3) uint8 for a run with a CNN
tokens    (N, 26) int64 word ids, 0 at the right of a question
lengths   (N,) int64 numbers of words, at least 1

Outputs: "logits" (N, answers) and the attention maps, named like "hop_1" or "word_image". The
words and answers are in the model's metadata, as JSON lists whose positions are the ids.
"""

import json
import re
import warnings
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

from vqa_repro.data.vocabulary import MAX_QUESTION_LENGTH
from vqa_repro.models.network import VQAModel, load_model
from vqa_repro.run import Run
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.files import reason, write_atomic

MAX_BYTES = 2**31  # of a protobuf message
MANY = 2**31  # torch 2.7 excludes the largest integer, and therefore wants a bound


class _Flat(nn.Module):
    """The network with a tuple as output: logits, then the attention maps."""

    def __init__(self, network: VQAModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: Tensor, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        logits, attention = self.network(features, tokens, lengths)
        return (logits, *attention.values())


def write_onnx(run: Run, path: Path) -> None:
    """Write the trained network of ``run`` to the new file ``path``, atomically.

    Raise UserError if the run is not finished, if ``path`` exists or cannot be written, and if the
    package onnxscript, with which PyTorch writes the format, is not installed.
    """
    if find_spec("onnxscript") is None:
        raise UserError(
            "--onnx: the package onnxscript is not installed; pip install onnx onnxscript"
        )
    if path.exists():
        raise UserError(f"--onnx {path}: exists already; name another file")
    network = load_model(run, torch.device("cpu"))
    if sum(parameter.nbytes for parameter in network.parameters()) >= MAX_BYTES:
        raise UserError(f"{run.folder}: an ONNX file holds 2 GB, and this network has more weights")
    content = _serialized(run, _Flat(network).eval())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, lambda file: file.write(content))
    except OSError as error:
        raise UserError(f"--onnx {path}: cannot be written: {reason(error, path.parent)}") from None


def _serialized(run: Run, network: _Flat) -> bytes:
    # torch.export takes an example's size of 1 as a constant, and so would the model.
    features = _example(run, 2, regions=3)
    tokens = torch.ones(2, MAX_QUESTION_LENGTH, dtype=torch.int64)
    inputs = (features, tokens, torch.tensor([MAX_QUESTION_LENGTH, 1]))
    with torch.inference_mode():
        maps = network.network(*inputs).attention
    questions = Dim("questions", max=MANY)
    sizes: dict[int, Dim] = {0: questions}
    if features.ndim == 3 and features.shape[1] > 1:
        sizes[1] = Dim("regions", max=MANY)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch, about its own internals
        program = torch.onnx.export(
            torch.export.export(
                network,
                inputs,
                dynamic_shapes=(sizes, {0: questions}, {0: questions}),
                strict=False,  # the default since torch 2.9
            ),
            input_names=["images" if features.ndim == 4 else "features", "tokens", "lengths"],
            output_names=["logits", *(re.sub(r"\W", "_", name) for name in maps)],
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    vocabulary = run.vocabulary
    for key, value in {"words": vocabulary.words, "answers": vocabulary.answers}.items():
        proto.metadata_props.add(key=key, value=json.dumps(list(value)))
    content: bytes = proto.SerializeToString()
    return content


def _example(run: Run, images: int, regions: int) -> Tensor:
    """Return zeros with the shape and type of the features that the network takes."""
    if run.recipe.data.features == "cnn":
        side = run.recipe.data.picture_size
        return torch.zeros(images, side, side, 3, dtype=torch.uint8)
    return torch.zeros(images, regions, run.features["channels"])
