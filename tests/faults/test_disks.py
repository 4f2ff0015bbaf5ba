"""Disks without free inodes or mounted read-only: real file systems, mounted for each test."""

import shutil
from pathlib import Path

import pytest
from conftest import Mount, options

from vqa_repro import evaluate, predict, report, train
from vqa_repro.run import open_run
from vqa_repro.utils.errors import UserError


def asked(run: Path, folder: Path, *more: object) -> list[str]:
    picture = next((folder / "images").iterdir())
    given = ("--run", run, "--image", picture, "--question", "is it red?", *more)
    return list(map(str, given))


def test_running_out_of_inodes_in_training_loses_nothing(drawn_folder: Path, mount: Mount) -> None:
    """Run out before the files of a new run, and before its results."""
    disk = mount("nr_inodes=2")
    arguments = [*options(drawn_folder, disk / "run", 1), "--root", str(disk.parent)]
    for count in (3, 9):
        mount(f"nr_inodes={count}")
        resumed = ["--resume"] if (disk / "run").exists() else []
        with pytest.raises(UserError, match=r"for another file.*\(`df -i`\)"):
            train.main([*arguments, *resumed])
        assert (disk / "run").exists() == (count == 9)
        assert not list(disk.glob(".new-run-*"))
    mount("nr_inodes=200")
    assert train.main([*arguments, "--resume"]) == 0
    assert open_run(disk / "run").finished


def test_running_out_of_inodes_in_other_verbs_is_reported(
    finished: Path, drawn_folder: Path, tmp_path: Path, mount: Mount
) -> None:
    disk = mount("nr_inodes=1")
    run, root = ["--run", str(finished)], ["--root", str(tmp_path)]
    for verb, arguments in (
        (evaluate.main, [*run, *root, "--out", str(disk / "answers.json")]),
        (report.main, [str(finished), "--out", str(disk / "report.html")]),
        (predict.main, asked(finished, drawn_folder, "--attention", disk / "look.png")),
    ):
        with pytest.raises(UserError, match=r"\(`df -i`\): remove some files"):
            verb(arguments)
    mount("nr_inodes=3")  # two folders: no inode is left for the features
    with pytest.raises(UserError, match=r"features.*\(`df -i`\)"):
        evaluate.main([*run, "--root", str(disk / "root")])


def test_a_read_only_disk_is_enough_for_reading(
    finished: Path, drawn_folder: Path, tmp_path: Path, mount: Mount
) -> None:
    """Provide a run and its features, as a colleague shares them."""
    disk = mount("size=50m")
    shutil.copytree(finished, disk / "run")
    root = ["--root", str(disk / "root")]
    assert evaluate.main(["--run", str(finished), *root]) == 0
    mount("ro")
    assert evaluate.main(["--run", str(disk / "run"), *root]) == 0
    assert predict.main(asked(disk / "run", drawn_folder)) == 0
    assert report.main([str(disk / "run"), "--out", str(tmp_path / "report.html")]) == 0


def test_a_read_only_disk_refuses_writing(
    finished: Path, drawn_folder: Path, tmp_path: Path, mount: Mount
) -> None:
    disk = mount("size=50m")
    shutil.copytree(finished, disk / "run")
    mount("ro")
    here = ["--root", str(tmp_path)]
    for verb, arguments in (
        (evaluate.main, ["--run", str(finished), *here, "--out", str(disk / "answers.json")]),
        (predict.main, asked(finished, drawn_folder, "--attention", disk / "look.png")),
        (report.main, [str(finished), "--out", str(disk / "report.html")]),
        (train.main, [*options(drawn_folder, disk / "new", 1), *here]),
        (train.main, [*options(drawn_folder, tmp_path / "new", 1), "--root", str(disk)]),
    ):
        with pytest.raises(UserError, match=f"{disk}.*: Read-only file system"):
            verb(arguments)
    assert not (tmp_path / "new").exists()
    for place in (["--root", str(disk)], ["--out", str(disk / "new"), *here]):
        with pytest.raises(UserError, match=place[0]):  # the option that names another place
            train.main([*options(drawn_folder, tmp_path / "new", 1), *place])
