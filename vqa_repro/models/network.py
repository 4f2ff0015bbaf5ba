"""Build, save and load the network of a run: its model on the features that it uses."""

import inspect
from pathlib import Path
from typing import Any, get_args, get_origin

import torch
from safetensors.torch import save
from torch import Tensor, nn

from vqa_repro.data.vocabulary import Vocabulary
from vqa_repro.models import MODELS, SAN, HieCoAtt
from vqa_repro.models.cnn import SmallCNN
from vqa_repro.models.common import ModelOutput
from vqa_repro.recipe import Recipe
from vqa_repro.run import WIDEST, Run
from vqa_repro.utils.device import has_bfloat16, use_precision
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.files import write_atomic
from vqa_repro.utils.memory import free_on_host
from vqa_repro.utils.torch_utils import empty_weights, load_safetensors

# Copies of the weights in training, at least: weights, gradients and optimiser state.
COPIES = {"adamw": 4, "sgd": 3, "rmsprop": 3}
MOST_DROPPED = 0.99


class VQAModel(nn.Module):
    """Image features and questions -> ``ModelOutput``: an optional CNN and a model on its grid.

    cnn: maps images (I, S, S, 3) uint8 to a grid (I, R, C); None if the features are a grid.
    scale: factor of the features. precision: of matrix products in training, where the device
    supports it. regions: share of each image's regions that training sees.
    Outside training everything is in float32 and uses all regions; but the validation and the
    test of a training in "tf32" are in that, too.
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
        self._precision = precision
        self._regions = regions

    def forward(
        self,
        features: Tensor,
        tokens: Tensor,
        lengths: Tensor,
        image_index: Tensor | None = None,
    ) -> ModelOutput:
        """Answer N questions about I images; arguments as in ``SAN.forward``."""
        device = features.device
        low = self.training and self._precision is not torch.float32 and has_bfloat16(device)
        with torch.autocast(device.type, self._precision, enabled=low):
            grid = features if self.cnn is None else self.cnn(features)
            if self.training and self._regions < 1:
                grid = sample_regions(grid, self._regions)
            if self.cnn is None and low and _only_projects(self.answerer):
                grid = scaled(grid, self._scale, self._precision)
            elif self.cnn is None:
                grid = self._scale * grid.float()
            output: ModelOutput = self.answerer(grid, tokens, lengths, image_index)
        return output


def _only_projects(answerer: nn.Module) -> bool:
    """Return whether the grid enters a matrix product and nothing else."""
    return isinstance(answerer, SAN | HieCoAtt) and not answerer.input_dropout.p


def scaled(grid: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Return ``scale * grid``, computed in float32 and rounded to ``dtype``, in one pass.

    The same numbers as those that autocast would round, without two float32 copies of the grid.
    """
    factor = torch.full((1,), scale, device=grid.device)
    return torch.mul(grid, factor, out=torch.empty_like(grid, dtype=dtype))


def sample_regions(grid: Tensor, share: float) -> Tensor:
    """Return a random ``share`` of each image's regions (I, R, C), at least one."""
    images, R = grid.shape[:2]
    sample = torch.rand(images, R, device=grid.device).argsort(dim=1)[:, : max(1, round(share * R))]
    return grid[torch.arange(images, device=grid.device)[:, None], sample]


def build(run: Run) -> VQAModel:
    """Return the untrained network of ``run``.

    Raise UserError for an unknown model or option, or a value that makes no sense.
    """
    recipe, vocabulary = run.recipe, run.vocabulary
    options = dict(recipe.model)
    name = options.pop("name")
    if name not in MODELS:
        raise UserError(f"[model] name = {name!r}: choose {', '.join(MODELS)}")
    _check_options(name, options)
    cnn = SmallCNN() if recipe.data.features == "cnn" else None
    image_dim = cnn.channels if cnn else run.features["channels"]
    low = recipe.training.precision == "bfloat16"
    precision = torch.bfloat16 if low else torch.float32
    try:
        answerer = MODELS[name](
            len(vocabulary.words), len(vocabulary.answers), image_dim, **options
        )
        return VQAModel(cnn, answerer, run.features["scale"], precision, recipe.training.regions)
    except (ValueError, TypeError) as error:
        raise UserError(f"[model] {name}: {error}") from None


def check_model(recipe: Recipe) -> None:
    """Raise the UserError of ``build`` for the model of ``recipe``, whatever its data."""
    with empty_weights():
        build(Run(Path(), recipe, Vocabulary(("",), ("",)), {"channels": 1, "scale": 1.0}))


def _check_options(name: str, options: dict[str, Any]) -> None:
    """Raise UserError for an option that model ``name`` does not have, or an impossible value.

    Recipes may be untrusted: sizes are bounded.
    """
    known = {
        p.name: p.annotation
        for p in inspect.signature(MODELS[name]).parameters.values()
        if p.kind is p.KEYWORD_ONLY
    }
    for key, value in options.items():
        if key not in known:
            raise UserError(f"[model] {name} has no option {key!r}; there are {', '.join(known)}")
        if not _fits(value, known[key]):
            raise UserError(f"[model] {key} = {value!r:.80}: expected {_describe(known[key])}")


def _fits(value: Any, hint: Any) -> bool:
    """Return whether ``value`` has the annotated type; sizes must be from 1 to WIDEST."""
    if hint is int:
        return type(value) is int and 1 <= value <= WIDEST
    if hint is bool:
        return type(value) is bool
    if hint is float:  # a share that is dropped; DropoutMask rounds it to 1/256
        return type(value) in (int, float) and 0 <= value <= MOST_DROPPED
    if get_origin(hint) is tuple:
        hints = get_args(hint)
        return (
            isinstance(value, list | tuple)
            and len(value) == len(hints)
            and all(map(_fits, value, hints))
        )
    return True  # the model checks


def _describe(hint: Any) -> str:
    if hint is bool:
        return "true or false"
    if hint is float:
        return f"a number from 0 to {MOST_DROPPED}"
    count = len(get_args(hint))
    return f"{f'{count} whole numbers' if count else 'a whole number'} from 1 to {WIDEST:,}"


def check_memory(run: Run, device: torch.device) -> None:
    """Raise UserError if host memory cannot hold the network of ``run`` in training.

    The network is built there, and without a GPU trained there. Linux overcommits memory and kills
    the process that uses it; a full GPU raises an error of its own.
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
    """Write the weights of ``network`` to ``path`` (safetensors), atomically."""
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    data = save(weights)
    write_atomic(path, lambda file: file.write(data))


def load_model(run: Run, device: torch.device) -> VQAModel:
    """Return the trained network of ``run`` in evaluation mode. Raise UserError if damaged.

    From here on products are in float32 (``use_precision``) until a training says otherwise.
    """
    use_precision("float32")
    path = run.folder / "model.safetensors"
    if not path.is_file():
        raise UserError(f"{path}: missing; the run is unfinished: continue it with --resume")
    with empty_weights():
        network = build(run)
    load_weights(network, path)
    return network.to(device).eval()


def load_weights(network: VQAModel, path: Path) -> None:
    """Load the weights in ``path`` into ``network``. Raise UserError if they are damaged."""
    weights = load_safetensors(path)
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
