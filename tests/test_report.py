"""The table of runs beside the published figures."""

import json
import shutil
from pathlib import Path

import pytest

from vqa_repro import report
from vqa_repro.errors import UserError
from vqa_repro.recipe import load_recipe
from vqa_repro.run import Run, create_run, open_run, write_json
from vqa_repro.vocab import Vocabulary

VOCABULARY = Vocabulary(("<pad>", "<unk>", "what"), ("chair", "table"))


def finished(folder: Path, seed: int, overall: float, **changes: object) -> Path:
    recipe = load_recipe("san-2-lstm-daquar-reduced", {"training.seed": seed, **changes})
    made_by = {"backbone": "vgg19", "weights_sha256": "abc123"}
    features = {"made_by": made_by, "channels": 512, "scale": 1.0, "fingerprint": "f"}
    run = Run(folder / f"{overall}", recipe, VOCABULARY, features)
    create_run(run, {"device": "a machine", "packages": {"torch": "9.9"}})
    metrics = {"data": "daquar-reduced", "split": "test", "questions": 290, "seed": seed}
    metrics |= {"seconds": 120.0, "epochs": 20, "overall": overall, "wups_0.9": overall + 5}
    write_json(run.folder / "metrics.json", metrics)
    return run.folder


def rows(text: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line[:1] == "|"]


def test_seeds_are_one_row_beside_the_paper_and_changes_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [finished(tmp_path, seed, 45.0 + seed) for seed in range(3)]
    runs.append(finished(tmp_path, 0, 40.0, **{"model.input_dropout": 0.0}))
    assert report.main([str(run) for run in runs]) == 0
    said = capsys.readouterr().out
    assert "### daquar-reduced, test (290 questions)" in said
    _, _, same, changed = rows(said)
    assert same[:3] == ["SAN(2, LSTM) on DAQUAR-REDUCED", "3", "46.2"]
    assert same[3] == "**46.0 ± 1.0** (-0.2)"
    assert same[4] == "51.0 ± 1.0 (51.2)"
    assert changed[0] == "SAN(2, LSTM) on DAQUAR-REDUCED, model.input_dropout=0.0"
    assert changed[1] == "1" and changed[3] == "**40.0** (-6.2)"
    assert "a machine, torch 9.9" in said and "weights_sha256 abc123" in said


def test_it_is_written_whole_to_a_file(tmp_path: Path) -> None:
    out = tmp_path / "table.md"
    assert report.main([str(finished(tmp_path, 0, 45.0)), "--out", str(out)]) == 0
    assert len(rows(out.read_text())) == 3


def test_a_run_that_is_not_finished_is_named(tmp_path: Path) -> None:
    folder = finished(tmp_path, 0, 45.0)
    (folder / "metrics.json").unlink()
    with pytest.raises(UserError, match=r"45\.0: not finished"):
        report.markdown([open_run(folder)])


def test_hidden_answers_have_no_figure(tmp_path: Path) -> None:
    folder = finished(tmp_path, 0, 45.0)
    metrics = json.loads((folder / "metrics.json").read_text())
    shutil.copytree(folder, tmp_path / "hidden")
    write_json(tmp_path / "hidden" / "metrics.json", {**metrics, "overall": None})
    assert rows(report.markdown([open_run(tmp_path / "hidden")]))[2][3] == ""
