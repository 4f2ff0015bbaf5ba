"""Several networks that answer as one: the mean of their probabilities."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from vqa_repro.data.vocabulary import Vocabulary
from vqa_repro.models.common import ModelOutput
from vqa_repro.models.network import VQAModel, load_model
from vqa_repro.run import Run
from vqa_repro.utils.errors import UserError


class Ensemble(VQAModel):
    """``networks`` with the same classes. Its logits are logarithms of mean probabilities.

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
    """Return the trained networks of ``runs`` as one, in evaluation mode.

    Raise UserError as ``check_alike`` does.
    """
    check_alike(runs)
    networks = [load_model(run, device) for run in runs]
    return Ensemble(networks, allowed, temperature).to(device).eval()


def check_alike(runs: Sequence[Run]) -> None:
    """Raise UserError, naming the run, for one with another vocabulary or other features."""
    first = runs[0]
    for run in runs[1:]:
        if run.vocabulary != first.vocabulary:
            raise UserError(f"{run.folder}: has other words or answers than {first.folder}")
        if run.features["made_by"] != first.features["made_by"]:
            raise UserError(f"{run.folder}: was trained on other features than {first.folder}")


def allowed_answers(vocabulary: Vocabulary, labels: Iterable[str | None], where: str) -> Tensor:
    """Return (num_answers,) bool: which classes are among ``labels``.

    Raise UserError, naming ``where`` the labels are from, if none is.
    """
    known = set(labels)
    allowed = torch.tensor([answer in known for answer in vocabulary.answers])
    if not allowed.any():
        raise UserError(f"--answers-of {where}: the run can give none of its answers")
    return allowed
