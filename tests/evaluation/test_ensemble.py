"""Runs on different features that answer, and teach, together."""

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import write_features

from vqa_repro import evaluate, train
from vqa_repro.data.folder import load_folder
from vqa_repro.data.questions import encode
from vqa_repro.evaluation.vqa_accuracy import read_results
from vqa_repro.features.provider import Runtime
from vqa_repro.features.store import open_store
from vqa_repro.models.network import load_model
from vqa_repro.run import open_run
from vqa_repro.training.prepare import load_splits, prepare
from vqa_repro.training.soft_targets import taught_answers
from vqa_repro.utils.distributed import World
from vqa_repro.utils.errors import UserError

CPU = torch.device("cpu")


class Trained(NamedTuple):
    """Runs a (two seeds) and b, on two stores with other rows, regions and channels."""

    folder: Path
    data: Path
    runs: tuple[str, ...] = ("a-seed-0", "a-seed-1", "b")

    def probabilities(self, split: str, image: str, question: str) -> np.ndarray:
        """Return the mean (A,) float64 over the runs, one question and one run at a time."""
        example = next(
            e
            for e in load_folder(self.data, split).examples
            if (e.image, e.question) == (image, question)
        )
        found = []
        for name in self.runs:
            run = open_run(self.folder / name)
            store = open_store(Path(run.recipe.data.features))
            asked = encode([example], run.vocabulary, store.row_of)
            row = torch.from_numpy(np.array(store.rows[asked.row.numpy()]))
            logits = load_model(run, CPU)(row, asked.tokens, asked.lengths, None).logits
            found.append(logits.detach().double().softmax(1).numpy()[0])
        return np.mean(found, axis=0)


def features(path: Path, keys: list[str], shape: tuple[int, int], skipped: str) -> Path:
    """Write a store whose provenance is its name."""
    return write_features(path, keys, shape, {skipped}, {"backbone": path.stem, "size": 4})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, drawn_folder: Path) -> Trained:
    folder = tmp_path_factory.mktemp("ensemble")
    keys = [k for name in ("train", "val") for k in load_folder(drawn_folder, name).images]
    a = features(folder / "a.safetensors", keys, (4, 8), "42")
    b = features(folder / "other.safetensors", keys[::-1], (9, 5), "41")
    common = ["--data", str(drawn_folder), "--set", "data.test=val", "--epochs", "2"]
    common += ["--set", "model.hidden=16", "--device", "cpu"]
    for name, store, seed in (("a-seed-0", a, "0"), ("a-seed-1", a, "1"), ("b", b, "0")):
        given = ["--features", str(store), "--seed", seed, "--out", str(folder / name)]
        assert train.main([*common, *given]) == 0
    return Trained(folder, drawn_folder)


def test_runs_on_different_features_answer_by_mean_probability(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [str(trained.folder / name) for name in trained.runs]
    out = tmp_path / "results.json"
    assert evaluate.main([*folders, "--device", "cpu", "--out", str(out), "--json"]) == 0
    assert "6 of 36 questions are not answered" in capsys.readouterr().err, "two images"
    results = read_results(out)
    answers = open_run(Path(folders[0])).vocabulary.answers
    for example in load_folder(trained.data, "val").examples:
        if example.image not in ("41", "42"):
            expected = trained.probabilities("val", example.image, example.question)
            assert results[example.question_id] == answers[expected.argmax()]


def test_teachers_have_features_of_their_own(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers = [str(trained.folder / name) for name in trained.runs]
    run = open_run(trained.folder / "a-seed-0")
    recipe = replace(
        run.recipe, training=replace(run.recipe.training, teachers=teachers, temperature=1.0)
    )
    run = replace(run, recipe=recipe)
    store = open_store(Path(recipe.data.features))
    tables = []
    for world in (World(0, 1), World(0, 2), World(1, 2)):
        runtime = Runtime(CPU, world)
        data = prepare(run, load_splits(recipe, runtime.root), store, runtime)
        tables.append(taught_answers(run, data, runtime))
    table = tables[0]
    # Each of two processes has the answers about its own images.
    torch.testing.assert_close(tables[1] + tables[2], table)
    images = list(store.row_of)
    asked = {e.question_id: e.question for e in load_folder(trained.data, "train").examples}
    for position in range(0, len(table), 7):
        image = images[data.train.row[position]]
        question = asked[int(data.train.question_id[position])]
        expected = trained.probabilities("train", image, question)
        np.testing.assert_allclose(table[position].numpy(), expected, rtol=1e-4, atol=1e-6)

    def exhausted(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 19.00 GiB")

    with monkeypatch.context() as patched, pytest.raises(UserError, match="--feature-placement"):
        patched.setattr("vqa_repro.training.soft_targets.ensemble_outputs", exhausted)
        taught_answers(run, data, runtime)

    student = ["--data", str(trained.data), "--set", "data.test=val", "--epochs", "1"]
    student += ["--features", str(store.path), "--set", "model.hidden=16", "--device", "cpu"]
    student += ["--set", f"training.teachers={json.dumps(teachers)}"]
    student += ["--set", "training.teacher_images=1", "--out", str(tmp_path / "student")]
    assert train.main(student) == 0 and open_run(tmp_path / "student").finished


def test_features_of_a_teacher_that_lack_an_image_are_refused(
    trained: Trained, tmp_path: Path
) -> None:
    few = trained.folder / "few.safetensors"
    keys = [k for name in ("train", "val") for k in load_folder(trained.data, name).images]
    features(few, keys, (4, 8), keys[0])
    common = ["--data", str(trained.data), "--set", "data.test=val", "--epochs", "1"]
    common += ["--set", "model.hidden=16", "--device", "cpu"]
    assert train.main([*common, "--features", str(few), "--out", str(tmp_path / "few")]) == 0
    teacher = f'training.teachers=["{tmp_path / "few"}"]'
    given = [*common, "--features", str(trained.folder / "a.safetensors"), "--set", teacher]
    with pytest.raises(UserError, match=r"few\.safetensors: skips 1 image"):
        train.main([*given, "--out", str(tmp_path / "student")])
    assert not (tmp_path / "student").exists()
