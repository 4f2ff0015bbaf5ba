"""The verb ``check`` on a folder of two images."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from vqa_repro.check import main
from vqa_repro.training.defaults import own_data_recipe
from vqa_repro.utils.errors import UserError


def test_facts_and_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "images" / "a.png")
    head = "image,question,answer\n"
    (tmp_path / "train.csv").write_text(head + "a.png,what?,red\n" * 3 + "a.png,what?,blue\n")
    (tmp_path / "val.csv").write_text(head + "a.png,what?,red\na.png,what?,green\n")
    assert main([str(tmp_path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    train, val = facts["splits"]
    assert (train["covered"], train["prior"]) == (100, 75)
    assert (val["name"], val["covered"], val["prior"]) == ("val", 50, 50)
    assert facts["shared_images"] == 1
    (tmp_path / "val.csv").write_text(head + "b.png,what?,red\n")
    assert main([str(tmp_path)]) == 1
    assert "b.png (missing)" in capsys.readouterr().out
    with pytest.raises(UserError):
        main([str(tmp_path / "none")])


def test_a_damaged_split_is_an_error_where_an_absent_one_is_not(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (9, 9)).save(images / "a.png")
    for name in ("train", "val"):
        (tmp_path / f"{name}.csv").write_text("image,question,answer\na.png,what?,red\n")
    assert main([str(tmp_path)]) == 0
    (tmp_path / "test.csv").write_text('image,question,answer\na.png,"what?,red\n')
    with pytest.raises(UserError, match=r"test\.csv: line"):
        main([str(tmp_path)])
    with pytest.raises(UserError, match=r"test\.csv: line"):
        own_data_recipe(str(tmp_path), tmp_path, {})


def test_a_pipe_in_place_of_a_file_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    os.mkfifo(tmp_path / "images" / "a.png")
    for name in ("train", "val"):
        (tmp_path / f"{name}.csv").write_text("image,question,answer\na.png,what?,red\n")
    assert main([str(tmp_path)]) == 1
    assert "a.png (not a readable image: not a regular file" in capsys.readouterr().out
    (tmp_path / "val.csv").unlink()
    os.mkfifo(tmp_path / "val.csv")
    with pytest.raises(UserError, match=r"val\.csv: .*not a regular file"):
        main([str(tmp_path)])
    os.mkfifo(tmp_path / "qa.37.raw.train.txt")
    with pytest.raises(UserError, match=r"train\.txt: .*not a regular file"):
        main(["daquar-reduced", "--root", str(tmp_path)])


def test_a_link_to_a_missing_image_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").symlink_to("/scratch/a.png")
    for name in ("train", "val"):
        (tmp_path / f"{name}.csv").write_text("image,question,answer\na.png,what?,red\n")
    assert main([str(tmp_path)]) == 1
    assert "a link to /scratch/a.png" in capsys.readouterr().out
