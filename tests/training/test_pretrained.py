"""Fine-tuning: a run that starts from the weights of another."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from vqa_repro import export, train
from vqa_repro.run import open_run
from vqa_repro.utils.errors import UserError

NO_IMAGE = ["--set", "data.test=val", "--features", "none", "--set", "model.name=question-only"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def other_data(drawn_folder: Path) -> Path:
    """Provide data in which "picture" is called "photo", and "yes" is "si"."""
    folder = Path("other data")
    shutil.copytree(drawn_folder, folder)
    for path in folder.glob("*.json"):
        text = path.read_text().replace("picture?", "photo?").replace('"yes"', '"si"')
        path.write_text(text)
    return folder


def fit(data: Path, out: str, *more: str) -> Path:
    options = ["--data", str(data), *NO_IMAGE, "--epochs", "1", "--device", "cpu", *more]
    assert train.main([*options, "--out", out]) == 0
    return Path(out)


def start(data: Path, out: str, *more: str) -> Path:
    """Return a run that has learnt nothing since its initial weights."""
    return fit(data, out, "--set", "training.learning_rate=0", *more)


@pytest.mark.slow
def test_words_and_answers_keep_their_weights_in_another_vocabulary(
    drawn_folder: Path, other_data: Path
) -> None:
    first = fit(drawn_folder, "first")
    tuned = start(other_data, "tuned", "--set", "training.init_from=first")
    fresh = start(other_data, "fresh")
    runs = [open_run(folder) for folder in (first, tuned)]
    weights = {run: load_file(run / "model.safetensors") for run in (first, tuned, fresh)}
    here, there = (run.vocabulary for run in (runs[1], runs[0]))
    for name, value in weights[tuned].items():
        rows = {len(here.words): "words", len(here.answers): "answers"}.get(len(value))
        if rows is None:
            assert value.equal(weights[first][name]), name
            continue
        for row, text in enumerate(getattr(here, rows)):
            known = text in getattr(there, rows)
            source = weights[first] if known else weights[fresh]
            number = getattr(there, rows).index(text) if known else row
            assert value[row].equal(source[name][number]), (name, text)
    # Killed before the first checkpoint.
    for path in (*tuned.glob("checkpoint*.pt"), tuned / "metrics.json"):
        path.unlink()
    again = start(other_data, "tuned", "--set", "training.init_from=first", "--resume")
    assert all(
        v.equal(weights[tuned][k]) for k, v in load_file(again / "model.safetensors").items()
    )
    notes = json.loads((tuned / "environment.json").read_text())["without"]
    assert any("initial weights of first" in note for note in notes)


def test_what_does_not_fit(drawn_folder: Path) -> None:
    fit(drawn_folder, "first")
    with pytest.raises(UserError, match=r"init_from = first: .*there and .*here"):
        start(
            drawn_folder, "wide", *("--set", "training.init_from=first"), "--set", "model.hidden=9"
        )
    with pytest.raises(UserError, match="init_from = first: another model"):
        image = ["--features", "cnn", "--set", "model.name=bag-of-words"]
        start(drawn_folder, "bag", "--set", "training.init_from=first", *image)
    with pytest.raises(UserError, match="init_from = first: may have trained on fold 1/2"):
        start(drawn_folder, "fold", "--set", "training.init_from=first", "--folds", "1/2")
    Path("first/metrics.json").unlink()
    with pytest.raises(UserError, match="init_from = first: not finished"):
        start(drawn_folder, "early", "--set", "training.init_from=first")
    with pytest.raises(UserError, match="not a run folder"):
        start(drawn_folder, "none", "--set", "training.init_from=no-such-run")
    assert not any(Path(out).exists() for out in ("wide", "bag", "fold", "early", "none"))


def test_a_release_is_compared_by_the_name_of_its_data(drawn_folder: Path) -> None:
    fit(drawn_folder, "first")
    assert export.main(["first", "--out", "released"]) == 0
    with pytest.raises(UserError, match="init_from = released: may have trained on fold 1/2"):
        start(drawn_folder, "fold", "--set", "training.init_from=released", "--folds", "1/2")
    assert fit(drawn_folder, "student", "--set", 'training.teachers=["released"]').is_dir()
