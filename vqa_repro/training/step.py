"""A training step: the loss of a batch, the gradients of all processes, the update."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vqa_repro.data.batching import Batch
from vqa_repro.models import QuestionOnly
from vqa_repro.models.common import ModelOutput
from vqa_repro.models.network import VQAModel
from vqa_repro.recipe import Training
from vqa_repro.training.loss import cross_entropy, symmetric_divergence
from vqa_repro.training.optim import before_step, fuse_if_possible, make_optimizer, set_rate
from vqa_repro.training.soft_targets import SoftTargets
from vqa_repro.utils.distributed import SINGLE_PROCESS, World


class Step:
    """Training steps of ``network``, which must be on its device already.

    Runs eagerly, kernel by kernel; ``cuda_graphs.GraphedStep`` replays the same work as a graph.
    """

    def __init__(
        self,
        training: Training,
        network: VQAModel,
        world: World = SINGLE_PROCESS,
        soft_targets: Sequence[SoftTargets] = (),
    ) -> None:
        self.network, self.world, self._soft_targets = network, world, soft_targets
        self.parameters = list(network.parameters())
        self.optimizer = make_optimizer(training, network)
        self._fused = fuse_if_possible(training, network, self.optimizer)
        self._training = training
        self._rate: float | None = None

    def __call__(self, batch: Batch, rate: float) -> Tensor:
        """Train on ``batch`` at the learning ``rate``.

        Return totals (3,) float32 on the device: summed loss, correct answers, questions of the
        whole batch, over all processes.
        """
        self.set_rate(rate)
        return self.run(batch)

    def set_rate(self, rate: float) -> None:
        if rate != self._rate:
            set_rate(self.optimizer, rate)
            self._rate = rate

    def run(self, batch: Batch) -> Tensor:
        """Train on ``batch`` at the current learning rate."""
        totals = self.compute_gradients(batch)
        totals = self.world.all_reduce_gradients(self.parameters, totals)
        self.apply_gradients()
        return totals

    def compute_gradients(self, batch: Batch) -> Tensor:
        """Compute this process's share of the gradients of the mean loss; return its totals."""
        self.optimizer.zero_grad()
        network = self.network
        if not len(batch):
            if network.cnn is not None:  # batch normalisation involves all processes
                passes = 2 if self._training.r_drop else 1
                sums = [network.cnn(batch.features).sum() for _ in range(passes)]
                if not isinstance(network.answerer, QuestionOnly):  # it has no gradient for the CNN
                    torch.stack(sums).sum().backward()  # type: ignore[no-untyped-call]
            return batch.weight.new_zeros(3)
        logits = self._logits(batch)
        losses = self._losses(logits, batch)
        if self._training.r_drop:
            again = self._logits(batch)
            losses = (losses + self._losses(again, batch)) / 2
            losses = losses + self._training.r_drop / 2 * symmetric_divergence(logits, again)
        (losses * batch.weight).sum().backward()  # type: ignore[no-untyped-call]
        counted = (batch.weight > 0).float()
        correct = (logits.argmax(1) == batch.label).float()
        return torch.stack([losses.detach(), correct, torch.ones_like(correct)]) @ counted

    def _logits(self, batch: Batch) -> Tensor:
        output: ModelOutput = self.network(
            batch.features, batch.tokens, batch.lengths, batch.image_index
        )
        return output.logits

    def _losses(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return (B,) loss of each question: of its label or answers, and of the soft targets."""
        losses = cross_entropy(logits, batch.label, batch.answers, self._training.answers)
        if not self._soft_targets:
            return losses
        losses = losses * (1 - sum(soft.share for soft in self._soft_targets))
        for soft in self._soft_targets:
            losses = losses + soft.share * soft.cross_entropy(logits, batch)
        return losses

    def apply_gradients(self) -> None:
        """Decay, clip and take the optimiser's step: in two kernels where Triton can."""
        if self._fused is not None:
            self._fused.step()
            return
        before_step(self._training, self.network)
        self.optimizer.step()
