"""From a run to its network: the model that the recipe names, on the features it names."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_origin

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from vqa_repro.models.baselines import (
    BagOfWords,
    DeeperLSTMNormI,
    QuestionOnly,
    ShowAskAttendAnswer,
)
from vqa_repro.models.cnn import SmallCNN
from vqa_repro.models.common import ModelOutput
from vqa_repro.models.hiecoatt import HieCoAtt
from vqa_repro.models.san import SAN
from vqa_repro.run import WIDEST, Run
from vqa_repro.utils.device import has_bfloat16
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.files import write_atomic
from vqa_repro.utils.memory import free_on_host
from vqa_repro.utils.outline import empty_weights

MODELS: dict[str, Callable[..., nn.Module]] = {
    "san": SAN,
    "hiecoatt": HieCoAtt,
    "question-only": QuestionOnly,
    "bag-of-words": BagOfWords,
    "deeper-lstm": DeeperLSTMNormI,
    "show-ask-attend": ShowAskAttendAnswer,
}
# What training holds at least: weights, gradients, what the optimiser keeps beside them.
COPIES = {"adamw": 4, "sgd": 3, "rmsprop": 3}


class VQAModel(nn.Module):
    """Rows of a feature store and questions -> Answer.

    ``cnn`` turns pictures (I, S, S, 3) uint8 into a grid (I, R, C); None where the rows are such a
    grid already.
    """

    def __init__(
        self,
        cnn: nn.Module | None,
        answerer: nn.Module,
        scale: float = 1.0,
        precision: torch.dtype = torch.float32,
        regions: float = 1.0,
    ) -> None:
        super().__init__()
        self.cnn = cnn
        self.answerer = answerer
        self._scale = scale
        # In training only; answers are in float32, from all regions.
        self._precision = precision  # of matrix products, where the device has it
        self._regions = regions  # share of a picture's

    def forward(
        self, rows: Tensor, tokens: Tensor, lengths: Tensor, image_of: Tensor | None = None
    ) -> ModelOutput:
        low = self.training and self._precision is not torch.float32 and has_bfloat16(rows.device)
        with torch.autocast(rows.device.type, self._precision, enabled=low):
            grid = rows if self.cnn is None else self.cnn(rows)
            if self.training and self._regions < 1:
                grid = sample_regions(grid, self._regions)
            if self.cnn is None:
                grid = self._scale * grid.float()
            answer: ModelOutput = self.answerer(grid, tokens, lengths, image_of)
        return answer


def sample_regions(grid: Tensor, share: float) -> Tensor:
    """A random ``share`` of each picture's regions, at least one: of R in (I, R, C)."""
    pictures, R = grid.shape[:2]
    kept = torch.rand(pictures, R, device=grid.device).argsort(dim=1)[:, : max(1, round(share * R))]
    return grid[torch.arange(pictures, device=grid.device)[:, None], kept]


def build(run: Run) -> VQAModel:
    """The untrained network of ``run``.

    Raises UserError for a model or option that does not exist, or a size that makes no sense.
    """
    recipe, vocabulary = run.recipe, run.vocabulary
    options = dict(recipe.model)
    name = options.pop("name")
    if name not in MODELS:
        raise UserError(f"[model] name = {name!r}: there are {', '.join(MODELS)}")
    known = {
        p.name: p.annotation
        for p in inspect.signature(MODELS[name]).parameters.values()
        if p.kind is p.KEYWORD_ONLY
    }
    for key, value in options.items():
        if key not in known:
            raise UserError(f"[model] {name} has no option {key!r}; there are {', '.join(known)}")
        if not _fits(value, known[key]):
            count = len(get_args(known[key]))
            what = f"{count} whole numbers" if count else "a whole number"
            raise UserError(f"[model] {key} = {value!r:.80}: expected {what} from 1 to {WIDEST:,}")
    cnn = SmallCNN() if recipe.data.features == "cnn" else None
    image_dim = cnn.channels if cnn else run.features["channels"]
    precision = getattr(torch, recipe.training.precision)
    try:
        answerer = MODELS[name](
            len(vocabulary.words), len(vocabulary.answers), image_dim, **options
        )
        return VQAModel(cnn, answerer, run.features["scale"], precision, recipe.training.regions)
    except (ValueError, TypeError) as error:
        raise UserError(f"[model] {name}: {error}") from None


def _fits(value: Any, hint: Any) -> bool:
    """Whether a model's sizes are such as it can be built with: recipes may come from strangers."""
    if hint is int:
        return type(value) is int and 1 <= value <= WIDEST
    if get_origin(hint) is tuple:
        hints = get_args(hint)
        return (
            isinstance(value, list | tuple)
            and len(value) == len(hints)
            and all(map(_fits, value, hints))
        )
    return True


def check_memory(run: Run, device: torch.device) -> None:
    """Raises UserError where the host's memory cannot hold the network of ``run`` in training.

    It is built there, and trained there without a GPU. Linux promises more memory than there is,
    and kills who asks for it; a GPU says itself that it is full.
    """
    with empty_weights():
        parameters = sum(parameter.numel() for parameter in build(run).parameters())
    copies = COPIES[run.recipe.training.optimizer] if device.type == "cpu" else 1
    needed, free = 4 * copies * parameters, free_on_host()
    if needed > free:
        raise UserError(
            f"[model] {run.recipe.model['name']}: {parameters:,} parameters need "
            f"{needed / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} GB are free; make its "
            "layers smaller"
        )


def save_weights(network: VQAModel, path: Path) -> None:
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    data = save(weights)
    write_atomic(path, lambda file: file.write(data))


def load_model(run: Run, device: torch.device) -> VQAModel:
    """The trained network of ``run``, ready to answer. Raises UserError if it is damaged."""
    path = run.folder / "model.safetensors"
    if not path.is_file():
        raise UserError(f"{path}: missing; the run has not got that far: go on with --resume")
    with empty_weights():
        network = build(run)
    load_weights(network, path)
    return network.to(device).eval()


def load_weights(network: VQAModel, path: Path) -> None:
    """Put the weights in ``path`` into ``network``. Raises UserError if they are damaged."""
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged ({error}); train again, or copy the run anew") from None
    for name, expected in network.state_dict().items():
        if name in weights and weights[name].dtype == torch.float16:  # of a release
            weights[name] = weights[name].to(expected.dtype)
        if name in weights and weights[name].dtype != expected.dtype:
            raise UserError(f"{path}: does not fit recipe.json: {name} is {weights[name].dtype}")
    on_meta = next(network.parameters()).is_meta
    try:
        network.load_state_dict(weights, assign=on_meta)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{path}: does not fit recipe.json: {reason}") from None
