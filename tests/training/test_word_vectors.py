"""Runs that start from pre-trained word vectors."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vqa_repro import train
from vqa_repro.run import open_run
from vqa_repro.training.word_vectors import read_word_vectors
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.files import sha256_of


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def start(data: Path, out: str, *more: str) -> Path:
    """Return a run that has learnt nothing since its initial weights."""
    options = ["--data", str(data), "--set", "data.test=val", "--set", "model.embedding=300"]
    options += ["--set", "data.picture_size=32", "--set", "training.learning_rate=0"]
    assert train.main([*options, *more, "--epochs", "1", "--device", "cpu", "--out", out]) == 0
    return Path(out)


def write(path: str, vectors: dict[str, list[float]]) -> str:
    lines = [" ".join([word, *map(str, numbers)]) for word, numbers in vectors.items()]
    Path(path).write_text("\n".join(lines) + "\n")
    return f"training.word_vectors={path}"


def embedding(run: Path) -> dict[str, torch.Tensor]:
    weights = load_file(run / "model.safetensors")
    (name,) = (name for name in weights if name.endswith("W_e.weight"))
    return dict(zip(open_run(run).vocabulary.words, weights[name], strict=True))


@pytest.mark.slow
def test_similar_words_start_with_similar_vectors(drawn_folder: Path) -> None:
    plain = embedding(start(drawn_folder, "plain"))
    words = list(plain)[2:]
    numbers = np.random.default_rng(0).normal(5, 3, (len(words), 50))
    numbers[1] = numbers[0]
    known = dict(zip(words[:-1], numbers.tolist(), strict=False))  # the last word is not known
    option = write("vectors.txt", {**known, "zebra": [0.0] * 50})
    first, again = (start(drawn_folder, out, "--set", option) for out in ("first", "again"))
    vectors = embedding(first)
    assert all(vector.equal(embedding(again)[word]) for word, vector in vectors.items())
    for word in ("<pad>", "<unk>", words[-1]):
        assert vectors[word].equal(plain[word]), word
    found, before = (torch.stack([of[word] for word in known]) for of in (vectors, plain))
    assert found.std().item() == pytest.approx(before.std().item(), rel=0.15)
    alike = torch.nn.functional.cosine_similarity(found[:1], found[1:])
    assert alike[0] == pytest.approx(0.75, abs=0.1)  # a quarter of the variance is random
    assert alike[0] > alike[1:].max() + 0.1
    notes = json.loads((first / "environment.json").read_text())["without"]
    (note,) = (note for note in notes if "word vectors" in note)
    assert f"{len(known)} of {len(vectors)} words" in note and "sha256" in note


def test_fasttext_files_have_a_header_and_the_first_of_two_lines_counts(tmp_path: Path) -> None:
    path = tmp_path / "vectors.vec"
    path.write_text("3 2\nred 1 2\n. . 0.5 0.5\nred 5 6\nblue -1e-3 4 \n")
    found, digest = read_word_vectors(path, {b"red", b"blue", b"3"})
    assert digest == sha256_of(path)
    assert {word: vector.tolist() for word, vector in found.items()} == {
        b"red": [1, 2],
        b"blue": [pytest.approx(-1e-3), 4],
    }


BAD = {
    "red 1 2\nis 1\n": "line 2: not a word and 2 numbers",
    "red 1 2\nis 1 nan\n": "line 2: not a word and 2 numbers",
    "is\n": "line 1: not a word and some numbers",
    "red 1 x\n": "line 1: not a word and",
    "zebra 1 2\n": "has no words of the questions",
    "": "has no words of the questions",
}


@pytest.mark.parametrize("content", BAD)
def test_another_file_is_one_clear_line(drawn_folder: Path, content: str) -> None:
    Path("vectors.txt").write_text(content)
    with pytest.raises(UserError, match=f"vectors.txt.*{BAD[content]}"):
        start(drawn_folder, "run", "--set", "training.word_vectors=vectors.txt")
    assert not Path("run").exists()


def test_a_missing_file_and_two_sources_are_refused(
    drawn_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    missing = ("--set", "training.word_vectors=~/none.txt")
    with pytest.raises(UserError, match=rf"{tmp_path}/none\.txt: cannot be read: No such file"):
        start(drawn_folder, "run", *missing)
    with pytest.raises(UserError, match="choose one"):
        start(drawn_folder, "run", *missing, "--set", "training.init_from=other")
