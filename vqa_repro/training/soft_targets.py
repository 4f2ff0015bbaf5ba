"""Targets in addition to the label: similar answers, and the answers of teachers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from vqa_repro.data.batching import Batch
from vqa_repro.data.questions import Questions
from vqa_repro.evaluation.ensemble import (
    Member,
    check_classes,
    ensemble_outputs,
    group_by_features,
    load_ensemble,
    open_features_of,
)
from vqa_repro.evaluation.wups import WordNet
from vqa_repro.features.loader import FeatureLoader, MappedLoader
from vqa_repro.features.provider import Runtime
from vqa_repro.recipe import Data, Recipe
from vqa_repro.release import is_release, published_data
from vqa_repro.run import Run, open_run
from vqa_repro.training.prepare import PreparedData
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.memory import explain_out_of_memory
from vqa_repro.utils.plurals import plural

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


def check_targets(recipe: Recipe) -> None:
    """Raise UserError for options that do not fit together, or a teacher that does not fit."""
    training = recipe.training
    if training.similar_answers and training.answers != "label":
        raise UserError('training.similar_answers needs training.answers = "label"')
    if training.teacher_images and not training.teachers:
        raise UserError(
            "training.teacher_images needs training.teachers: name finished runs, "
            '--set \'training.teachers=["runs/a", "runs/b"]\''
        )
    if training.teachers and training.similar_answers + training.distillation > 1:
        raise UserError("training.similar_answers and training.distillation add up to more than 1")
    open_teachers(recipe)


def make_soft_targets(
    run: Run, data: PreparedData, runtime: Runtime
) -> tuple[PreparedData, list[SoftTargets]]:
    """Return the data to train on, and the targets in addition to the label.

    With ``training.teacher_images`` the data has more questions than ``data``, labelled by the
    teachers. Raise UserError for teachers that do not fit, and if WordNet is needed and missing.
    """
    training = run.recipe.training
    targets = []
    if training.similar_answers:
        table = similar_answers(run.vocabulary.answers, WordNet()).to(runtime.device)
        targets.append(SoftTargets(table, True, training.similar_answers))
    if training.teachers:
        if count := training.teacher_images:
            train = with_other_images(data.train, count, training.seed)
            note = f"the teachers answer every question about {count} other images, too"
            data = replace(data, train=train, notes=[*data.notes, note])
        table = taught_answers(run, data, runtime)
        data = replace(data, train=with_labels(data.train, table.argmax(1)))
        share, temperature = training.distillation, training.temperature
        targets.append(SoftTargets(table, False, share, temperature))
    return data, targets


def with_other_images(questions: Questions, count: int, seed: int) -> Questions:
    """Return ``questions``, and each of them about ``count`` images more, drawn at random.

    Those have no label (-1). A teacher has not learnt their answers by heart, so they show more of
    the function that it computes (Beyer et al. 2022, "A good teacher is patient and consistent").
    """
    images, copies = torch.unique(questions.row), len(questions) * count
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(images), (copies,), generator=generator).to(images.device)
    row = torch.cat([questions.row, images[drawn]])
    order = row.argsort(stable=True)
    position = order % len(questions)
    own = order < len(questions)
    return Questions(
        question_id=questions.question_id[position],
        tokens=questions.tokens[position],
        lengths=questions.lengths[position],
        row=row[order],
        label=questions.label[position].where(own, -1),
        answers=questions.answers[position].where(own[:, None], -1),
    )


def with_labels(questions: Questions, answers: Tensor) -> Questions:
    """Return ``questions`` with ``answers`` (N,) as the label of those that have none."""
    missing = (questions.label < 0) & (questions.answers < 0).all(1)
    label = questions.label.where(~missing, answers)
    return replace(
        questions, label=label, answers=questions.answers.where(~missing[:, None], label[:, None])
    )


def similar_answers(answers: Sequence[str], wordnet: WordNet) -> Tensor:
    """Return (A, A) float32: for each answer, similar ones by their similarity; rows sum to 1."""
    table = torch.eye(len(answers))
    for i, answer in enumerate(answers):
        for j in range(i):
            similarity = wordnet.similarity(answer, answers[j])
            if similarity >= SIMILAR:
                table[i, j] = table[j, i] = similarity
    return table / table.sum(1, keepdim=True)


def open_teachers(recipe: Recipe) -> list[Run]:
    """Open the runs in ``training.teachers``; "{fold}" in a path stands for the fold's number.

    Raise UserError for one that is missing, unfinished or was trained on other data.
    """
    number = recipe.data.fold.partition("/")[0]
    teachers = [open_run(Path(t.replace("{fold}", number))) for t in recipe.training.teachers]
    for teacher in teachers:
        teacher.check_finished("training.teachers")
        data, its = recipe.data, teacher.recipe.data
        if is_release(teacher.folder):
            data, its = published_data(data), published_data(its)
        if _without_features(its) != _without_features(data):
            raise UserError(
                f"{teacher.folder}: its [data] is not that of this training, so it saw other "
                "questions; a teacher must have the same data, folds and validation share"
            )
    return teachers


def taught_answers(run: Run, data: PreparedData, runtime: Runtime) -> Tensor:
    """Return (N, A) float32: the teachers' mean probabilities for the training questions.

    At the recipe's temperature. Raise UserError for teachers with other classes or features.
    """
    teachers = open_teachers(run.recipe)
    check_classes([run, *teachers])
    members = []
    for group in group_by_features(teachers):
        same = group[0].features["made_by"] == run.features["made_by"]
        loader = data.loader if same else _loader_of(group[0], run.recipe.data.name, data, runtime)
        temperature = run.recipe.training.temperature
        members.append(Member(load_ensemble(group, runtime.device, None, temperature), loader))
    fix = "--feature-placement pinned and fewer training.teacher_images take less"
    with explain_out_of_memory(fix, " where the teachers answer"):
        table = torch.zeros(len(data.train), len(run.vocabulary.answers), device=runtime.device)
        for batch, output in ensemble_outputs(members, data.train, runtime.world):
            table[batch.positions] = output.logits.exp()
    return table


def _without_features(data: Data) -> Data:
    """Return ``data`` without what describes features: a teacher may have others."""
    return replace(data, features="", feature_scale="auto", picture_size=8)


def _loader_of(teacher: Run, name: str, data: PreparedData, runtime: Runtime) -> FeatureLoader:
    """Return a loader of the teacher's features of the data ``name``, in the rows of ``data``.

    Raise UserError if they lack an image to train on.
    """
    its = replace(teacher.recipe.data, name=name)
    store = open_features_of(teacher, its, [data.train_split], runtime)
    index, world = data.store.rows_in(store), runtime.world
    missing = int((index[torch.unique(data.train.row).cpu()] < 0).sum())
    if missing:
        raise UserError(
            f"{store.path}: skips {missing:,} {plural(missing, 'image', 'images')} as damaged "
            f"that {data.store.path} has"
        )
    return MappedLoader(store, runtime.device, index[world.rank :: world.size])
