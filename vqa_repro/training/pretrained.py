"""Pre-trained initial weights: of another run (fine-tuning), or word vectors alone."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from vqa_repro.data.vocabulary import Vocabulary
from vqa_repro.models.network import VQAModel, build, load_model
from vqa_repro.recipe import Training
from vqa_repro.release import is_release, published_data
from vqa_repro.run import Run, open_run
from vqa_repro.training.word_vectors import check_word_vectors, copy_word_vectors
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.torch_utils import empty_weights


def check_pretrained(training: Training) -> None:
    """Raise UserError if the source of initial weights is missing, unfinished, or one of two."""
    if training.init_from and training.word_vectors:
        raise UserError(
            "training.init_from and training.word_vectors: both set the word vectors; choose one"
        )
    if training.init_from:
        open_run(Path(training.init_from)).check_finished("training.init_from")
    else:
        check_word_vectors(training.word_vectors)


def copy_pretrained(network: VQAModel, run: Run) -> str:
    """Give ``network`` the pre-trained weights that the recipe names; return a note on them.

    Raise UserError if they do not fit.
    """
    return (_copy_run if run.recipe.training.init_from else copy_word_vectors)(network, run)


def _copy_run(network: VQAModel, run: Run) -> str:
    """Copy the weights of ``training.init_from`` into ``network``; return a note on them.

    Weights of a word or an answer go to the same word or answer; those that the other run lacks
    keep their initial values. Raise UserError if the other network has other layers, or may have
    trained on the fold that this one holds out.
    """
    path = Path(run.recipe.training.init_from)
    other = open_run(path)
    data, other_data = run.recipe.data, other.recipe.data
    if is_release(other.folder):
        data, other_data = published_data(data), published_data(other_data)
    if data.fold and other_data.name == data.name and other_data.fold != data.fold:
        raise UserError(
            f"training.init_from = {path}: may have trained on fold {data.fold} of {data.name}; "
            "name a run that holds out the same fold, or of another data set"
        )
    pretrained = load_model(other, torch.device("cpu")).state_dict()
    words, answers = run.vocabulary.words, run.vocabulary.answers
    by_word = _growing(run, replace(run.vocabulary, words=(*words, "")))
    by_answer = _growing(run, replace(run.vocabulary, answers=(*answers, "")))
    word_rows = _rows(words, other.vocabulary.words)
    answer_rows = _rows(answers, other.vocabulary.answers)
    own = network.state_dict()
    if own.keys() != pretrained.keys():
        raise UserError(f"training.init_from = {path}: another model, {other.recipe.model}")
    for name, value in own.items():
        rows = word_rows if name in by_word else answer_rows if name in by_answer else None
        source = pretrained[name]
        if source.shape[rows is not None :] != value.shape[rows is not None :]:
            raise UserError(
                f"training.init_from = {path}: {name} is {tuple(source.shape)} there and "
                f"{tuple(value.shape)} here; set the same [model]: {other.recipe.model}"
            )
        pretrained[name] = source if rows is None else _take(source, rows, value)
    network.load_state_dict(pretrained)
    found = [int((rows >= 0).sum()) for rows in (word_rows, answer_rows)]
    return (
        f"initial weights of {path} ({other.recipe.title}), which has {found[0]:,} of "
        f"{len(words):,} words and {found[1]:,} of {len(answers):,} answers"
    )


def _growing(run: Run, vocabulary: Vocabulary) -> set[str]:
    """Return the parameters of the run's network that would be larger with ``vocabulary``."""
    with empty_weights():
        now, then = (build(r).state_dict() for r in (run, replace(run, vocabulary=vocabulary)))
    return {name for name, value in now.items() if value.shape != then[name].shape}


def _rows(wanted: Sequence[str], present: Sequence[str]) -> Tensor:
    """Return the index in ``present`` of each of ``wanted``, -1 if it is absent."""
    index = {text: row for row, text in enumerate(present)}
    return torch.tensor([index.get(text, -1) for text in wanted])


def _take(source: Tensor, rows: Tensor, otherwise: Tensor) -> Tensor:
    """Return ``source[rows]``, with the row of ``otherwise`` where ``rows`` is -1."""
    taken, known = otherwise.clone(), rows >= 0
    taken[known.to(taken.device)] = source[rows[known]].to(taken)
    return taken
