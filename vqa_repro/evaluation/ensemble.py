"""Several networks that answer as one: the mean of their probabilities."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vqa_repro.data.batching import Batch
from vqa_repro.data.questions import Questions
from vqa_repro.data.types import Split
from vqa_repro.data.vocabulary import Vocabulary
from vqa_repro.evaluation.inference import outputs
from vqa_repro.features.loader import FeatureLoader
from vqa_repro.features.provider import Runtime, open_or_extract
from vqa_repro.features.store import Store
from vqa_repro.models.common import ModelOutput
from vqa_repro.models.network import VQAModel, load_model
from vqa_repro.recipe import Data
from vqa_repro.run import Run
from vqa_repro.utils.distributed import SINGLE_PROCESS, World
from vqa_repro.utils.errors import UserError


class Ensemble(VQAModel):
    """Networks with the same classes and features; logits are logarithms of mean probabilities.

    allowed: (num_answers,) bool, the classes that may be answered; None: all.
    temperature: that the networks' logits are divided by.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        allowed: Tensor | None = None,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(None, nn.ModuleList(networks))
        self._networks, self._allowed, self._temperature = networks, allowed, temperature

    def __len__(self) -> int:
        return len(self._networks)

    def forward(
        self,
        features: Tensor,
        tokens: Tensor,
        lengths: Tensor,
        image_index: Tensor | None = None,
    ) -> ModelOutput:
        """Answer N questions about I images; without attention, which is not one thing."""
        logits = [
            network(features, tokens, lengths, image_index).logits.float() / self._temperature
            for network in self._networks
        ]
        mean = torch.stack(logits).log_softmax(2).logsumexp(0) - math.log(len(logits))
        if self._allowed is not None:
            mean = mean.masked_fill(~self._allowed, -torch.inf)
        return ModelOutput(mean, {})


def load_ensemble(
    runs: Sequence[Run],
    device: torch.device,
    allowed: Tensor | None = None,
    temperature: float = 1.0,
) -> Ensemble:
    """Return the trained networks of ``runs``, in evaluation mode.

    They have the same features, and classes (``check_classes``).
    """
    networks = [load_model(run, device) for run in runs]
    return Ensemble(networks, allowed, temperature).to(device).eval()


def check_classes(runs: Sequence[Run]) -> None:
    """Raise UserError, naming the run, for one with other words or answers than the first."""
    for run in runs[1:]:
        if run.vocabulary != runs[0].vocabulary:
            raise UserError(f"{run.folder}: has other words or answers than {runs[0].folder}")


def group_by_features(runs: Sequence[Run]) -> list[list[Run]]:
    """Return ``runs`` in groups with the same features, in the order in which they are named."""
    groups: list[list[Run]] = []
    for run in runs:
        made_by = run.features["made_by"]
        group = next((g for g in groups if g[0].features["made_by"] == made_by), None)
        if group is None:
            groups.append(group := [])
        group.append(run)
    return groups


def open_features_of(run: Run, data: Data, splits: Sequence[Split], runtime: Runtime) -> Store:
    """Open the features of ``splits`` that ``data`` names, extracting them if there are none.

    Raise UserError if they are not of the kind that ``run`` was trained on.
    """
    made_by = run.features["made_by"]
    store = open_or_extract(data, splits, runtime, made_by)
    if store.made_by != made_by:
        raise UserError(
            f"{store.path}: made by {store.made_by}, but {run.folder} was trained on features made "
            f"by {made_by}; extract them that way"
        )
    return store


class Member(NamedTuple):
    """Networks with the same features, and their loader."""

    ensemble: Ensemble
    loader: FeatureLoader


def ensemble_outputs(
    members: Sequence[Member], questions: Questions, world: World = SINGLE_PROCESS
) -> Iterator[tuple[Batch, ModelOutput]]:
    """Yield every batch of this process's share, with the logarithms of mean probabilities.

    The loaders serve the images of ``questions`` in the same rows. Every network counts equally.
    The features of a batch are those of the first member.
    """
    sizes = [len(ensemble) for ensemble, _ in members]
    each = (outputs(ensemble, loader, questions, world) for ensemble, loader in members)
    for parts in zip(*each, strict=True):
        logits = [
            output.logits + math.log(size / sum(sizes))
            for size, (_, output) in zip(sizes, parts, strict=True)
        ]
        yield parts[0][0], ModelOutput(torch.stack(logits).logsumexp(0), {})


def allowed_answers(vocabulary: Vocabulary, labels: Iterable[str | None], where: str) -> Tensor:
    """Return (num_answers,) bool: which classes are among ``labels``.

    Raise UserError, naming ``where`` the labels are from, if none is.
    """
    known = set(labels)
    allowed = torch.tensor([answer in known for answer in vocabulary.answers])
    if not allowed.any():
        raise UserError(f"--answers-of {where}: the run can give none of its answers")
    return allowed
