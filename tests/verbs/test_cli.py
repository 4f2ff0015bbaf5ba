"""The ``vqa`` command, and the help of every verb without heavy imports."""

import argparse
import importlib
import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from conftest import PROJECT, environ
from PIL import Image

from vqa_repro import __version__
from vqa_repro.cli import VERBS, main
from vqa_repro.recipe import recipe_names
from vqa_repro.utils.errors import UserError

HEAVY = ("torch", "torchvision", "numpy", "PIL", "matplotlib", "cv2", "tensorboard")
each_verb = pytest.mark.parametrize("verb", VERBS)


def python(*arguments: str, cwd: Path = PROJECT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=environ(), capture_output=True, text=True)


@each_verb
@pytest.mark.parametrize("through", ["vqa", "module"])
def test_help_imports_nothing_heavy(verb: str, through: str) -> None:
    module, words = (
        ("vqa_repro.cli", [verb, "--help"])
        if through == "vqa"
        else (f"vqa_repro.{verb}", ["--help"])
    )
    program = (
        "import importlib, sys\n"
        f"try: importlib.import_module({module!r}).main({words!r})\n"
        "except SystemExit as end: assert end.code == 0\n"
        f"print('heavy:', *[name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = python("-c", program)
    assert done.returncode == 0, done.stderr
    usage, _, heavy = done.stdout.rpartition("heavy:")
    assert "usage:" in usage and "--help" in usage
    assert heavy.split() == []


class Parsed(Exception):
    pass


def parser_of(verb: str, monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    """Return the parser of a verb with all its options."""
    parsers: list[argparse.ArgumentParser] = []

    def parse_args(self: argparse.ArgumentParser, *_: object, **__: object) -> None:
        parsers.append(self)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    with pytest.raises(Parsed):
        importlib.import_module(f"vqa_repro.{verb}").main([])
    return parsers[0]


@each_verb
def test_every_option_has_help(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without = [
        a.option_strings or a.dest for a in parser_of(verb, monkeypatch)._actions if not a.help
    ]
    assert without == []


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0 and __version__ in capsys.readouterr().out
    assert main([]) == 0
    usage = capsys.readouterr().out
    assert all(verb in usage for verb in (*VERBS, "list"))


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        (["trian"], "train"),
        (["lst"], "list"),
        (["train", "--recipe", "san-2-lstm-daqar"], "san-2-lstm-daquar"),
        (["train", "--recipe=easyvqa"], "easy-vqa"),
        (["train", "--recipe", "san2"], "san-2-"),
    ],
)
def test_misspelt_names_get_the_nearest_one(words: list[str], nearest: str) -> None:
    with pytest.raises(UserError, match=f"did you mean .*{nearest}"):
        main(words)


def test_a_misspelt_verb_ends_with_exit_code_2() -> None:
    done = python("-m", "vqa_repro", "trian")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "train" in done.stderr


def test_list_names_recipes_with_data_and_reported_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "daquar").mkdir()
    (tmp_path / "daquar" / "qa.37.raw.train.txt").write_text("")
    assert main(["list", "--root", str(tmp_path), "--json"]) == 0
    rows = {row["recipe"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == recipe_names()
    assert rows["easy-vqa"]["present"]
    reduced, whole = rows["san-2-lstm-daquar-reduced"], rows["san-2-lstm-daquar"]
    assert reduced["present"] and not whole["present"]
    assert reduced["data"] == "daquar-reduced" and reduced["reported"] == 46.2
    assert main(["list", "--root", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in recipe_names())
    assert "46.2%" in text and "present" in text and "missing" in text and "docs/data.md" in text


def test_verbs_are_run_with_their_options(finished: Path, drawn_folder: Path) -> None:
    image = drawn_folder / "images" / "1.png"
    words = ["predict", str(finished), "--image", str(image), "--question", "is it red?", "--json"]
    done = python("-m", "vqa_repro", *words)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["question"] == "is it red?"


@pytest.mark.slow
def test_the_package_installs_with_its_data_and_the_command(tmp_path: Path) -> None:
    """``pip install .`` without a network: the build back end is in the environment."""
    copy = tmp_path / "clone"
    files = subprocess.run(
        ["git", "ls-files", "vqa_repro", "pyproject.toml", "README.md", "LICENSE"],
        cwd=PROJECT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in files:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((PROJECT / name).read_bytes())
    uv = [sys.executable, "-m", "uv", "--quiet", "--offline"]
    wheels = tmp_path / "wheels"
    build = [*uv, "build", "--wheel", "--no-build-isolation", "--python", sys.executable]
    subprocess.run([*build, "-o", str(wheels), str(copy)], check=True)
    (wheel,) = wheels.glob("vqa_repro-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert set(archive.namelist()) >= {name for name in files if name.startswith("vqa_repro/")}

    venv = tmp_path / "venv"
    create = [sys.executable, "-m", "venv", "--without-pip", str(venv)]
    subprocess.run(create, check=True)
    install = [*uv, "pip", "install", "--python", str(venv / "bin" / "python"), "--no-deps"]
    subprocess.run([*install, str(wheel)], check=True)
    # The dependencies come from the environment of the tests, which cannot be installed offline.
    (site_packages,) = venv.glob("lib/python*/site-packages")
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command = [str(venv / "bin" / "vqa"), "list"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "easy-vqa" in done.stdout


OWN_DATA = {"train.csv": "image,question,answer\na.png,what?,red\n", "images/a.png": ""}


@pytest.fixture
def own_data(tmp_path: Path) -> Path:
    for name, text in OWN_DATA.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("redirection", "code", "message"),
    [(">&-", 0, ""), (">/dev/full", 2, "standard output cannot be written"), ("| true", 141, "")],
)
def test_a_standard_output_that_takes_nothing(redirection: str, code: int, message: str) -> None:
    script = (
        f"set -o pipefail; {{ sleep 1; {sys.executable} -m vqa_repro.cli list; }} {redirection}"
    )
    command = ["bash", "-c", script]
    done = subprocess.run(command, cwd=PROJECT, env=environ(), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.count("\n") == (1 if message else 0)


@pytest.mark.parametrize("hidden", [".", "images", "images/sub"])
def test_a_folder_without_permission_is_one_line(own_data: Path, hidden: str) -> None:
    (own_data / "images/sub").mkdir()
    (own_data / hidden).chmod(0)
    # Root may read everything, but for this.
    rights = ["setpriv", "--inh-caps=-all", "--bounding-set=-dac_override,-dac_read_search"]
    command = [*(rights if os.geteuid() == 0 else []), sys.executable]
    command += ["-m", "vqa_repro.cli", "check", str(own_data)]
    try:
        done = subprocess.run(command, cwd=PROJECT, env=environ(), capture_output=True, text=True)
    finally:
        (own_data / hidden).chmod(0o755)
    assert (done.returncode, done.stdout) == (2, "")
    assert str(own_data / hidden) in done.stderr and "Permission denied" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "code"),
    [("train --resume", 2), ("report", 2), ("train --help", 0), ("list --root /none", 0)],
)
def test_too_little_virtual_memory_is_named_before_torch_crashes(words: str, code: int) -> None:
    script = f"ulimit -v 2000000; exec {sys.executable} -m vqa_repro.cli {words}"
    command = ["bash", "-c", script]
    done = subprocess.run(command, cwd=PROJECT, env=environ(), capture_output=True, text=True)
    assert done.returncode == code
    assert ("ulimit -v" in done.stderr and done.stderr.count("\n") == 1) == (code == 2)


def test_a_figure_of_another_kind_is_refused(
    finished: Path, drawn_folder: Path, tmp_path: Path
) -> None:
    words = ["predict", str(finished), "--image", str(drawn_folder / "images" / "1.png")]
    for name in ("look", "look.jpg"):
        with pytest.raises(UserError, match=rf"{name}: .*name it look\.png"):
            main([*words, "--question", "is it red?", "--attention", str(tmp_path / name)])
    assert main([*words, "--question", "red?", "--attention", str(tmp_path / "look.PNG")]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["look.PNG"]


def test_a_folder_of_runs_is_no_run_and_one_in_it_is_named(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "first").symlink_to(finished)
    for verb in ("report", "evaluate"):
        with pytest.raises(UserError, match=r"not a run folder .*/first"):
            main([verb, str(tmp_path)])


@pytest.mark.parametrize("option", ["--out", "--root"])
def test_a_link_to_nowhere_in_place_of_a_folder(own_data: Path, option: str) -> None:
    for name in ("val.csv", "images/b.png"):
        (own_data / name).write_bytes((own_data / "train.csv").read_bytes())
    Image.new("RGB", (9, 9)).save(own_data / "images/a.png")
    (own_data / "link").symlink_to("/scratch/that/was/purged")
    places = {"--out": own_data / "run", "--root": own_data / "resources"}
    places[option] = own_data / "link/x"
    words = ["train", "--data", str(own_data), "--set", "data.test=val", "--device", "cpu"]
    with pytest.raises(UserError, match="link is a link to /scratch/that/was/purged"):
        main([*words, *(str(w) for pair in places.items() for w in pair)])
