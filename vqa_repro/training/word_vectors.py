"""Pre-trained word vectors, such as GloVe's, as initial values of the word embedding."""

import hashlib
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from vqa_repro.models.network import VQAModel
from vqa_repro.run import Run
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.files import open_regular
from vqa_repro.utils.paths import expand

SHARE = 0.75  # of the variance of an initial vector; the rest is its random initial value
SEED = 2**20  # of the projection, plus the run's: not the random numbers of its other weights
MAX_LINE = 2**20  # bytes


def check_word_vectors(name: str) -> None:
    """Raise UserError if the file ``name`` cannot be read."""
    path = expand(name)
    with _explain_unreadable(path), open_regular(path):
        pass


def copy_word_vectors(network: VQAModel, run: Run) -> str:
    """Start the word embedding of ``network`` from ``training.word_vectors``; return a note.

    The D numbers of each word are standardised over the vocabulary and projected at random to the
    width of the embedding, which keeps its scale. Words that the file lacks keep their random
    initial values. Raise UserError for a file that is not in GloVe's text format or has none of
    the words.
    """
    path = expand(run.recipe.training.word_vectors)
    (embedding,) = (part for part in network.modules() if isinstance(part, nn.Embedding))
    rows = {word.encode(): row for row, word in enumerate(run.vocabulary.words)}
    with _explain_unreadable(path):
        found, digest = read_word_vectors(path, rows)
    if len(found) < 2:
        raise UserError(
            f"training.word_vectors = {path}: has no words of the questions; is it in GloVe's text "
            "format?"
        )
    vectors = torch.stack(list(found.values()))
    vectors = (vectors - vectors.mean(0)) / vectors.std(0).clamp(min=1e-6)
    # The same in every process of a distributed training.
    random = torch.Generator().manual_seed(SEED + run.recipe.training.seed)
    width = vectors.shape[1]
    projection = torch.randn(width, embedding.embedding_dim, generator=random) / width**0.5
    with torch.no_grad():
        known = torch.tensor([rows[word] for word in found], device=embedding.weight.device)
        own = embedding.weight[known]
        mixed = (vectors @ projection).to(own) * own.std() * SHARE**0.5 + own * (1 - SHARE) ** 0.5
        embedding.weight[known] = mixed
    return (
        f"initial word vectors of {path} (sha256 {digest}), which has {len(found):,} of "
        f"{len(rows):,} words"
    )


@contextmanager
def _explain_unreadable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = error.strerror
        raise UserError(f"training.word_vectors = {path}: cannot be read: {why}") from None


def read_word_vectors(path: Path, words: Container[bytes]) -> tuple[dict[bytes, Tensor], str]:
    """Return the float32 vectors (D,) of those of ``words`` that ``path`` has, and its SHA-256.

    A line is a word and its D numbers, separated by spaces, as in the files of GloVe. The first
    may be a header of two numbers, as in those of fastText. Raise UserError for a damaged line.
    """
    vectors: dict[bytes, Tensor] = {}
    digest = hashlib.sha256()
    with open_regular(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE), b""), 1):
            digest.update(line)
            word, *values = line.rstrip().split(b" ", 1)
            if word not in words or word in vectors or (number == 1 and len(line.split()) == 2):
                continue
            vectors[word] = vector = _numbers(values)
            width = len(next(iter(vectors.values())))
            if len(vector) != width or not width or not vector.isfinite().all():
                raise UserError(
                    f"{path}, line {number}: not a word and {width or 'some'} numbers; "
                    "is it in GloVe's text format?"
                )
    return vectors, digest.hexdigest()


def _numbers(texts: list[bytes]) -> Tensor:
    """Return the numbers in ``texts``, NaN if there is something else."""
    try:
        return torch.tensor([float(number) for text in texts for number in text.split()])
    except ValueError:
        return torch.tensor([torch.nan])
