"""A small data set drawn for the tests, runs trained on it, and ways to run the verbs."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from installer_copy import Copy
    from serving import Served

COLORS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}
PROJECT = Path(__file__).parent.parent
Mount = Callable[[str], Path]
# Seconds after which a process or a connection hangs; a busy machine is slow, so there are many.
LIMIT = 1800
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = (
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)


def pytest_configure(config: pytest.Config) -> None:
    """Use one thread, and keep compiled modules even where PYTHONDONTWRITEBYTECODE is set.

    Hundreds of tests start a process that imports torch; compiling it takes longer than the rest.
    What they compute is so small that a second thread costs more than it saves.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's job in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Under nohup. A handler is not inherited, so that processes of the tests end at a hang-up.
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)
    if not sys.dont_write_bytecode:
        return
    folder = tempfile.mkdtemp(prefix="bytecode-")
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = folder
    sys.dont_write_bytecode = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run slow tests last: failures show early."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mount a file system with these options; a second call changes them."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def with_options(wanted: str) -> Path:
        how = "remount," if disk.is_mount() else ""
        command = ["mount", "-t", "tmpfs", "-o", how + wanted, "tmpfs", str(disk)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("tmpfs cannot be mounted here")
        return disk

    yield with_options
    if disk.is_mount():
        subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture(scope="session")
def drawn_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 40 + 12 images of one coloured square, each with three questions, as VQA files."""
    folder = tmp_path_factory.mktemp("drawn data")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    number = 0
    for split, count in (("train", 40), ("val", 12)):
        questions, annotations = [], []
        for _ in range(count):
            number += 1
            color = list(COLORS)[rng.integers(3)]
            image = Image.new("RGB", (48, 36), (240, 240, 230))
            x, y = rng.integers(0, 30), rng.integers(0, 20)
            ImageDraw.Draw(image).rectangle((x, y, x + 14, y + 14), fill=COLORS[color])
            image.save(folder / "images" / f"{number}.png")
            asked = [
                ("what color is it?", color, "other"),
                ("is it red?", "yes" if color == "red" else "no", "yes/no"),
                ("is there a blue square in the picture?", str(color == "blue"), "yes/no"),
            ]
            for k, (question, answer, kind) in enumerate(asked):
                question_id = 10 * number + k
                questions.append(
                    {"question_id": question_id, "image_id": number, "question": question}
                )
                answer = {"True": "yes", "False": "no"}.get(answer, answer)
                annotations.append(
                    {
                        "question_id": question_id,
                        "image_id": number,
                        "answers": [{"answer": answer}],
                        "answer_type": kind,
                        "question_type": question.split()[0],
                    }
                )
        (folder / f"{split}_questions.json").write_text(json.dumps({"questions": questions}))
        (folder / f"{split}_annotations.json").write_text(json.dumps({"annotations": annotations}))
    return folder


def copy_installer(root: Path) -> None:
    """Copy the parts of the package that an installation needs."""
    package = root / "vqa_repro"
    for part in ("install", "utils", "web"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PROJECT / "vqa_repro" / part, package / part, ignore=ignored)
    (package / "__init__.py").touch()


@pytest.fixture(scope="session")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheels that the locks of ``copy`` name."""
    from installer_copy import fill_wheelhouse

    folder = tmp_path_factory.mktemp("wheelhouse")
    fill_wheelhouse(folder)
    return folder


@pytest.fixture
def copy(tmp_path: Path, wheelhouse: Path) -> "Copy":
    """A copy of the project in a folder with an awkward name."""
    from installer_copy import make_copy

    return make_copy(tmp_path / 'it\'s a "copy" [ü]', tmp_path / "home", wheelhouse)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Start the Chromium of this machine."""
    if not CHROMIUM:
        pytest.skip("no Chromium on this machine")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield running
        running.close()


def write_features(
    path: Path,
    keys: Sequence[str],
    shape: tuple[int, int],
    skipped: set[str],
    made_by: dict[str, object],
) -> Path:
    """Write a store with random rows (regions, channels), but for the images in ``skipped``."""
    from vqa_repro.features.store import StoreWriter

    writer = StoreWriter(path, keys, shape, np.float16, made_by)
    rng = np.random.default_rng(0)
    for row, key in enumerate(keys):
        if key not in skipped:
            writer.write(row, rng.normal(size=shape).astype(np.float16))
    writer.finish(dict.fromkeys(skipped, "missing"))
    return path


def environ() -> dict[str, str]:
    """Return the environment of a verb in its own process: this project first, and one thread."""
    return {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}


def run_verb(verb: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run ``python -m vqa_repro.VERB`` in its own process."""
    return subprocess.run(
        [sys.executable, "-m", f"vqa_repro.{verb}", *map(str, arguments)],
        cwd=cwd,
        env=environ(),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=LIMIT,
    )


OPTIONS = (
    *("--set", "data.test=val"),
    *("--set", "data.picture_size=32"),
    *("--set", "data.validation=0.1"),
    *("--set", "training.batch_size=12"),
    *("--set", "model.hidden=16"),
    *("--set", "model.attention=16"),
    *("--set", "model.dropout=0.3"),  # an exact resume then needs the same random numbers
)


def options(folder: Path, out: Path, epochs: int) -> list[str]:
    recipe = ["--recipe", "easy-vqa", "--data", str(folder)]
    return [*recipe, *OPTIONS, "--epochs", str(epochs), "--out", str(out)]


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("a place")


@pytest.fixture(scope="session")
def finished(place: Path, drawn_folder: Path) -> Path:
    """Train 30 epochs without interruption."""
    out = place / "whole"
    done = run_verb("train", *options(drawn_folder, out, 30), cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "this run changed the recipe" in done.stdout and str(out) in done.stdout
    assert "published" not in done.stdout, "the number of another data set"
    assert "\r" not in done.stdout + done.stderr, "a bar in what is not a terminal"
    return out


@pytest.fixture(scope="session")
def finished_hiecoatt(place: Path, drawn_folder: Path) -> Path:
    """Train HieCoAtt briefly; its attention covers words and regions at three levels."""
    recipe = place / "hiecoatt.toml"
    recipe.write_text(
        f'title = "HieCoAtt, drawn squares"\n[data]\nname = "{drawn_folder}"\ntest = "val"\n'
        'features = "cnn"\npicture_size = 32\nvalidation = 0.1\n'
        '[model]\nname = "hiecoatt"\nhidden = 32\nlast_hidden = 32\ndropout = 0.0\n'
        "[training]\nepochs = 12\nlearning_rate = 3e-3\nbatch_size = 12\n"
    )
    out = place / "hiecoatt"
    done = run_verb("train", "--recipe", recipe, "--out", out, cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def unfinished(finished_hiecoatt: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("unfinished") / "hiecoatt"
    shutil.copytree(finished_hiecoatt, run)
    (run / "metrics.json").unlink()
    return run


@pytest.fixture(scope="module")
def served(finished: Path, unfinished: Path) -> Iterator["Served"]:
    """Serve a finished run of SAN and an unfinished one of HieCoAtt."""
    from serving import start, stop

    started = start(finished, unfinished, "--device", "cpu", "--port", 0, cwd=finished)
    yield started
    _, errors = stop(started)
    assert errors == "", "requests are not logged, and none made the server fail"
    assert started.process.returncode == 0


@pytest.fixture(scope="module")
def photo(drawn_folder: Path) -> bytes:
    return (drawn_folder / "images" / "1.png").read_bytes()
