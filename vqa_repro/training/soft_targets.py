"""Targets in addition to the label: similar answers, and the answers of teachers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vqa_repro.data.batching import Batch
from vqa_repro.evaluation.ensemble import check_alike, load_ensemble
from vqa_repro.evaluation.inference import outputs
from vqa_repro.evaluation.wups import WordNet
from vqa_repro.features.provider import Runtime
from vqa_repro.run import Run, open_run
from vqa_repro.training.prepare import PreparedData
from vqa_repro.utils.errors import UserError

SIMILAR = 0.9  # least WUP similarity of a similar answer


@dataclass(frozen=True)
class SoftTargets:
    """Target probabilities, and their share of the loss."""

    table: Tensor  # (classes or questions, num_answers): a row for each label, or each question
    by_label: bool
    share: float
    temperature: float = 1.0

    def cross_entropy(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return (B,) cross-entropy of ``logits`` (B, num_answers) at the temperature.

        Times its square, so that gradients do not shrink with it (Hinton et al. 2015).
        """
        target = self.table[batch.label if self.by_label else batch.positions]
        log_p = (logits.float() / self.temperature).log_softmax(1)
        return -(target * log_p).sum(1) * self.temperature**2


def make_soft_targets(run: Run, data: PreparedData, runtime: Runtime) -> list[SoftTargets]:
    """Return the targets in addition to the label that the recipe of ``run`` wants.

    Raise UserError for teachers that do not fit, and if WordNet is needed and missing.
    """
    training = run.recipe.training
    targets = []
    if training.similar_answers:
        if training.answers != "label":
            raise UserError('training.similar_answers needs training.answers = "label"')
        table = similar_answers(run.vocabulary.answers, WordNet()).to(runtime.device)
        targets.append(SoftTargets(table, True, training.similar_answers))
    if training.teachers:
        table = taught_answers(run, data, runtime)
        share, temperature = training.distillation, training.temperature
        targets.append(SoftTargets(table, False, share, temperature))
    if sum(target.share for target in targets) > 1:
        raise UserError("training.similar_answers and training.distillation add up to more than 1")
    return targets


def similar_answers(answers: Sequence[str], wordnet: WordNet) -> Tensor:
    """Return (A, A) float32: for each answer, similar ones by their similarity; rows sum to 1."""
    table = torch.eye(len(answers))
    for i, answer in enumerate(answers):
        for j in range(i):
            similarity = wordnet.similarity(answer, answers[j])
            if similarity >= SIMILAR:
                table[i, j] = table[j, i] = similarity
    return table / table.sum(1, keepdim=True)


def taught_answers(run: Run, data: PreparedData, runtime: Runtime) -> Tensor:
    """Return (N, A) float32: the teachers' mean probabilities for the training questions.

    At the recipe's temperature. "{fold}" in a teacher's path stands for the number of the fold.
    """
    recipe = run.recipe
    number = recipe.data.fold.partition("/")[0]
    teachers = [open_run(Path(t.replace("{fold}", number))) for t in recipe.training.teachers]
    for teacher in teachers:
        if not teacher.finished:
            raise UserError(f"{teacher.folder}: not finished; a teacher must be: train --resume")
        if teacher.recipe.data != recipe.data:
            raise UserError(
                f"{teacher.folder}: its [data] is not that of this training, so it saw other "
                "questions; a teacher must have the same data, folds and validation share"
            )
    check_alike([run, *teachers])
    network = load_ensemble(teachers, runtime.device, temperature=recipe.training.temperature)
    table = torch.zeros(len(data.train), len(run.vocabulary.answers), device=runtime.device)
    for batch, output in outputs(network, data.loader, data.train, runtime.world):
        table[batch.positions] = output.logits.exp()
    return table
