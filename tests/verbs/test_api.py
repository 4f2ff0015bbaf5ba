"""import vqa_repro: using a trained run in Python."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import LIMIT, environ
from PIL import Image

import vqa_repro
from vqa_repro.utils.errors import UserError


def test_an_image_is_a_file_bytes_or_pixels(finished: Path, drawn_folder: Path) -> None:
    model = vqa_repro.load(finished)
    path = drawn_folder / "images" / "1.png"
    with Image.open(path) as opened:
        pixels = np.array(opened)
        pictures = [path, str(path), path.read_bytes(), opened, pixels]
        answers = [model.predict(picture, "is it red?").answers for picture in pictures]
    assert all(answer == answers[0] for answer in answers)
    assert answers[0][0][1] > 0.5


def test_attention_is_over_regions_and_over_the_words_as_read(
    finished_hiecoatt: Path, drawn_folder: Path
) -> None:
    model = vqa_repro.load(str(finished_hiecoatt), device="cpu")
    prediction = model.predict(drawn_folder / "images" / "2.png", "What COLOR is it?")
    assert prediction.words == ["what", "color", "is", "it", "?"]
    assert len(prediction.attention) == 6
    for name, weights in prediction.attention.items():
        assert len(weights) == (5 if name.endswith("/question") else 16)
        assert weights.sum() == pytest.approx(1, abs=1e-5)


def test_a_question_mark_that_training_questions_lack_is_not_an_unknown_word(
    finished_hiecoatt: Path, drawn_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_hiecoatt, run)
    file = run / "vocabulary.json"
    file.write_text(file.read_text().replace('"?"', '"never"'))
    model = vqa_repro.load(run, device="cpu")
    picture = drawn_folder / "images" / "2.png"
    asked, without = (model.predict(picture, f"what color is it{end}") for end in (" ?", ""))
    assert asked.answers == without.answers and asked.question == "what color is it ?"
    assert asked.words == ["what", "color", "is", "it"] and asked.unknown_words == []
    assert model.predict(picture, "what? is it?").unknown_words == ["?"]
    assert model.predict(picture, "?").unknown_words == ["?"]


def test_an_image_is_encoded_once_for_many_questions(finished: Path, drawn_folder: Path) -> None:
    model = vqa_repro.load(finished)
    picture = drawn_folder / "images" / "3.png"
    row = model.extract(picture)
    for question in ("is it red?", "what color is it?"):
        assert model.answer(row, question).answers == model.predict(picture, question).answers


def test_the_model_itself_is_a_plain_module(finished: Path) -> None:
    network = vqa_repro.load(finished, device="cpu").network
    assert isinstance(network, torch.nn.Module) and not network.training
    san = network.answerer
    grid = torch.zeros(1, 16, san.W_I.in_features)
    answer = san(grid, torch.tensor([[2, 3]]), torch.tensor([2]))
    assert answer.logits.shape[0] == 1 and set(answer.attention) == {"hop 1", "hop 2"}


def test_a_folder_that_is_not_a_run_is_one_clear_line(tmp_path: Path, finished: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        vqa_repro.load(tmp_path)
    with pytest.raises(UserError, match="no such device"):
        vqa_repro.load(finished, device="toaster")
    with pytest.raises(UserError, match="not a readable image"):
        vqa_repro.load(finished).predict(np.zeros((2, 2, 7), np.uint8), "is it red?")


def test_importing_the_package_is_quick() -> None:
    """torch takes a second to import; a program that reads the version need not wait for it."""
    code = "import sys, vqa_repro; sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], env=environ(), timeout=LIMIT).returncode == 0
    )


def test_all_lists_the_public_names() -> None:
    assert vqa_repro.__all__ == ["UserError", "__version__", "load"]
    assert all(hasattr(vqa_repro, name) for name in vqa_repro.__all__)
    assert vqa_repro.UserError is UserError


@pytest.mark.parametrize(("given", "spins"), [({}, "1000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)])
def test_idle_threads_do_not_spin_for_long_unless_asked(
    given: dict[str, str], spins: str | None
) -> None:
    code = "import os, vqa_repro; print(os.environ.get('GOMP_SPINCOUNT'))"
    clean = {key: value for key, value in environ().items() if key != "GOMP_SPINCOUNT"}
    command = [sys.executable, "-c", code]
    output = subprocess.check_output(command, env=clean | given, text=True, timeout=LIMIT)
    assert output.strip() == str(spins)
