"""A run folder serves one training at a time; default names are claimed without a race."""

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import environ

from vqa_repro.run import Run, open_run
from vqa_repro.training.run_folder import LOCK, choose_run, claim_run, lock_run
from vqa_repro.utils.errors import UserError

HOLD = """
import sys, time
from pathlib import Path
from vqa_repro.training.run_folder import lock_run
with lock_run(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


def new(finished: Path, folder: Path) -> Run:
    """Return a run that is not on disk yet."""
    return replace(open_run(finished), folder=folder)


def test_a_second_training_is_refused_and_names_the_first(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, env=environ(), stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout and other.stdout.readline() == "locked\n"
        with pytest.raises(UserError) as error, lock_run(tmp_path):
            pass
        message = str(error.value)
        assert f"process {other.pid} on {socket.gethostname()}" in message
        assert str(tmp_path) in message and "\n" not in message
        other.kill()
        other.wait()
    with lock_run(tmp_path):  # its owner has ended
        assert os.path.lexists(tmp_path / LOCK)
    assert not os.path.lexists(tmp_path / LOCK)


def test_a_changed_title_does_not_prevent_resuming(finished: Path) -> None:
    recipe = open_run(finished).recipe
    assert choose_run(replace(recipe, title="Another title"), finished, True)[1] is not None
    other = replace(recipe, training=replace(recipe.training, batch_size=7))
    with pytest.raises(UserError, match=r"other options \(training\.batch_size="):
        choose_run(other, finished, True)


def test_the_second_of_two_runs_takes_the_next_default_name(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = open_run(finished).recipe.name
    # Both chose the first name before either made its folder.
    runs = [claim_run(new(finished, Path("runs") / name), {}, None) for _ in range(3)]
    assert [run.folder.name for run in runs] == [name, f"{name}-2", f"{name}-3"]
    assert all(open_run(run.folder).recipe == run.recipe for run in runs)


def test_the_newest_run_is_resumed_and_only_names_up_to_the_next_are_tried(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe, exists, tried = open_run(finished).recipe, Path.exists, []

    def counting(path: Path) -> bool:
        tried.append(path)
        return exists(path)

    monkeypatch.setattr(Path, "exists", counting)
    assert choose_run(recipe, None, True) == (Path("runs", recipe.name), None)
    for _ in range(2):
        claim_run(new(finished, Path("runs") / recipe.name), {}, None)
    folder, run = choose_run(recipe, None, True)
    assert folder.name == f"{recipe.name}-2" and run and run.folder == folder
    assert choose_run(recipe, None, False) == (Path("runs", f"{recipe.name}-3"), None)
    assert len(tried) < 50  # a network's file system is asked for each


def test_the_second_of_two_runs_with_one_chosen_name_is_refused(
    finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    claim_run(new(finished, out), {"first": True}, out)
    with pytest.raises(UserError, match=str(out)):
        claim_run(new(finished, out), {"first": False}, out)
    assert "true" in (out / "environment.json").read_text()
