"""Features of frozen networks: the store, its origin, and predictions of a run on them."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from conftest import LIMIT, environ
from safetensors.torch import load_file, save_file

from vqa_repro import evaluate, extract, predict, report, train
from vqa_repro.data.images import read_image
from vqa_repro.features.backbones import FrozenBackbone, preprocess
from vqa_repro.features.extractor import store_path
from vqa_repro.features.store import Store, open_store
from vqa_repro.utils.errors import UserError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save VGG-16 with random weights, convolutions only, in half precision."""
    torch.manual_seed(0)
    state = torchvision.models.vgg16().features.state_dict()
    path = tmp_path_factory.mktemp("weights") / "vgg16_random.pth"
    torch.save({f"features.{key}": value.half() for key, value in state.items()}, path)
    return path


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory, drawn_folder: Path) -> Path:
    """Copy six of the drawn images with their questions."""
    folder = tmp_path_factory.mktemp("few") / "data"
    (folder / "images").mkdir(parents=True)
    for split, numbers in (("train", {1, 2, 3, 4}), ("val", {41, 42})):
        for kind in ("questions", "annotations"):
            name = f"{split}_{kind}.json"
            records = json.loads((drawn_folder / name).read_text())[kind]
            kept = [record for record in records if record["image_id"] in numbers]
            (folder / name).write_text(json.dumps({kind: kept}))
        for number in numbers:
            shutil.copy(drawn_folder / "images" / f"{number}.png", folder / "images")
    return folder


def options(few: Path, weights: Path, root: Path) -> list[str]:
    return [
        *("--data", str(few), "--root", str(root), "--backbone", "vgg16"),
        *("--weights", str(weights), "--preprocess", "caffe", "--device", "cpu"),
    ]


@pytest.fixture(scope="module")
def store(few: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    assert extract.main(options(few, weights, root)) == 0
    return store_path(root, str(few), "vgg16", "caffe")


def test_folders_of_equal_name_have_separate_stores(tmp_path: Path) -> None:
    folders = [tmp_path / "a" / "data", tmp_path / "b" / "data"]
    for folder in folders:
        folder.mkdir(parents=True)
    first, second = (store_path(tmp_path, str(folder), "vgg16") for folder in folders)
    assert first != second and first.name.startswith("data-")


def test_caffe_images_are_bgr_from_0_to_255_minus_the_mean() -> None:
    picture = torch.tensor([[[[10, 20, 30]]]], dtype=torch.uint8)
    expected = torch.tensor([30 - 103.939, 20 - 116.779, 10 - 123.68])
    torch.testing.assert_close(preprocess(picture, "caffe").flatten(), expected)
    standard = preprocess(picture, "torchvision").flatten()
    assert standard[0].item() == pytest.approx((10 / 255 - 0.485) / 0.229, rel=1e-5)


def test_rows_are_the_last_pooling_layer_region_by_region(
    store: Path, few: Path, weights: Path
) -> None:
    opened = open_store(store)
    assert opened.rows.shape == (6, 196, 512) and opened.rows.dtype == np.float16
    assert opened.made_by["preprocess"] == "caffe" and opened.made_by["weights"] == weights.name
    network = torchvision.models.vgg16()
    state = {k: v.float() for k, v in torch.load(weights, weights_only=True).items()}
    network.load_state_dict(state, strict=False)
    key = next(key for key in opened.row_of if "42" in key)
    picture = read_image(few / "images" / "42.png", 448)
    x = torch.from_numpy(picture[:, :, ::-1].astype(np.float32))
    x = x - torch.tensor([103.939, 116.779, 123.68])
    with torch.inference_mode():
        maps = network.features(x.permute(2, 0, 1)[None])[0]  # (512, 14, 14)
    for row, column in ((0, 0), (3, 11), (13, 13)):
        region = np.array(opened.rows[opened.row_of[key]][14 * row + column])
        ours = torch.from_numpy(region).float()
        torch.testing.assert_close(ours, maps[:, row, column], rtol=2e-3, atol=2e-3)


# `extract` on images of 64 x 64, slow enough to be stopped in the middle.
SMALL = """
import time
from vqa_repro import extract
from vqa_repro.features import extraction, extractor
from vqa_repro.utils import progress
extraction.SAVE_EVERY = progress.LOG_EVERY = 0.0
fast = extractor.Extractor.__call__
def slow(*arguments):
    time.sleep(0.2)
    return fast(*arguments)
extractor.Extractor.__call__ = slow
extract.main_guard(extract.main)
"""
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


class Small:
    """Runs of ``extract`` in their own processes, with stores below ``root``."""

    def __init__(self, root: Path, data: Path, weights: Path, *launcher: str) -> None:
        (root / "small.py").write_text(SMALL)
        given = [*options(data, weights, root), "--size", "64"]
        self._command = [sys.executable, *launcher, str(root / "small.py"), *given]
        self.path = store_path(root, str(data), "vgg16", "caffe", "64")
        self.done = self.path.with_name(self.path.name + ".done")

    def run(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._command, env=environ(), capture_output=True, text=True, timeout=LIMIT
        )

    def begin(self) -> subprocess.Popen[str]:
        """Start, and wait until some rows are saved."""
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        process = subprocess.Popen(self._command, env=environ(), text=True, **pipes)
        while process.poll() is None and not (self.done.exists() and any(self.done.read_bytes())):
            time.sleep(0.01)
        return process


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, drawn_folder: Path, weights: Path) -> Small:
    """Extract the 52 drawn images in one process without interruption."""
    small = Small(tmp_path_factory.mktemp("small"), drawn_folder, weights)
    ran = small.run()
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert re.search(r"^  \d+ of 52 images, [\d.]+ images/s, \d+ s left$", ran.stderr, re.M)
    assert "\r" not in ran.stdout + ran.stderr, "a bar in what is not a terminal"
    return small


def test_a_killed_extraction_resumes_byte_for_byte(
    whole: Small, drawn_folder: Path, weights: Path, tmp_path: Path
) -> None:
    small = Small(tmp_path, drawn_folder, weights)
    process = small.begin()
    process.kill()
    process.communicate(timeout=LIMIT)
    before = small.done.read_bytes()
    assert not small.path.exists() and any(before) and not all(before)
    assert small.run().returncode == 0
    assert small.path.read_bytes() == whole.path.read_bytes()
    assert list(small.path.parent.iterdir()) == [small.path]


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_two_processes_write_the_bytes_of_one_even_after_a_kill(
    whole: Small, drawn_folder: Path, weights: Path, tmp_path: Path
) -> None:
    small = Small(tmp_path, drawn_folder, weights, *TORCHRUN)
    process = small.begin()
    ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(ranks) == 2
    os.kill(int(ranks[1]), signal.SIGKILL)
    _, output = process.communicate(timeout=LIMIT)
    assert process.returncode == 1 and "SIGKILL" in output, output
    assert not small.path.exists() and not Path(f"/proc/{ranks[0]}").exists(), "all end"
    ran = small.run()
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert small.path.read_bytes() == whole.path.read_bytes()
    assert ran.stdout.count("features: ") == 1, "one process speaks"
    assert list(small.path.parent.iterdir()) == [small.path]


def test_bad_input_of_several_processes_is_reported_once(
    drawn_folder: Path, weights: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(drawn_folder, data)
    for number in (1, 42):  # one in the share of each process
        (data / "images" / f"{number}.png").write_bytes(b"no picture")
    small = Small(tmp_path, data, weights, *TORCHRUN)
    ran = small.run()
    assert ran.returncode == 1 and "exitcode  : 2" in ran.stderr, ran.stderr
    assert ran.stderr.count("error: 2 of 52 images are missing or damaged: ") == 1, ran.stderr
    assert "extract --skip-damaged" in ran.stderr and not small.path.exists()


def largest_difference(store: Store, few: Path, weights: Path) -> float:
    """Compare a row of ``store`` with what the network of its provenance makes of the image."""
    network = FrozenBackbone.like(store.made_by, weights, torch.device("cpu"))
    picture = read_image(few / "images" / "1.png", store.made_by["size"])
    with torch.inference_mode():
        row = network(torch.from_numpy(picture)[None])[0].half().numpy()
    return float(np.abs(row - store.rows[store.row_of["1"]].astype(float)).max())


def test_low_precision_is_close_and_recorded(
    store: Path, few: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert extract.main([*options(few, weights, tmp_path), "--precision", "bfloat16"]) == 0
    path = store_path(tmp_path, str(few), "vgg16", "caffe", "bfloat16")
    assert f"train on them with --features {path}" in capsys.readouterr().out
    low, exact = open_store(path), open_store(store)
    assert low.made_by == {**exact.made_by, "precision": "bfloat16"}
    assert "precision" not in exact.made_by, "as in features of before"
    difference = np.linalg.norm(low.rows.astype(float) - exact.rows)
    assert 0 < difference < 0.02 * np.linalg.norm(exact.rows.astype(float))
    assert largest_difference(low, few, weights) < 0.1


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"preprocess": "Caffe"}, r"'Caffe': choose \w+ or \w+"),
        ({"precision": "load"}, r"'load': choose \w+ or \w+"),
        ({"backbone": "mobilenet"}, r"'mobilenet'.*new images.*vgg19"),
        ({"backbone": ["vgg19"]}, r"made_by.*backbone"),
    ],
)
def test_provenance_of_another_kind_is_refused(
    store: Path, weights: Path, wrong: dict[str, object], line: str
) -> None:
    made_by = {**open_store(store).made_by, **wrong}
    with pytest.raises(UserError, match=line):
        FrozenBackbone.like(made_by, weights, torch.device("cpu"))


def test_another_size_has_another_grid(
    few: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*options(few, weights, tmp_path), "--size", "96"]
    assert extract.main(given) == 0
    path = store_path(tmp_path, str(few), "vgg16", "caffe", "96")
    assert f"train on them with --features {path}" in capsys.readouterr().out
    store = open_store(path)
    assert store.rows.shape == (6, 9, 512) and store.made_by["size"] == 96
    assert largest_difference(store, few, weights) < 0.05
    for size in ("-32", "0", "100", "1056"):
        with pytest.raises(UserError, match=f"{size} pixels a side.*multiple of 32"):
            extract.main([*given[:-1], size])


def test_damaged_images_are_an_error_unless_skipped(
    few: Path, weights: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(few, data)
    picture = data / "images" / "2.png"
    whole = picture.read_bytes()
    picture.write_bytes(whole[:-30])
    (data / "images" / "41.png").unlink()
    given = options(data, weights, tmp_path)
    path = store_path(tmp_path, str(data), "vgg16", "caffe")
    with pytest.raises(UserError) as error:
        extract.main(given)
    output = str(error.value)
    assert output.startswith("2 of 6 images are missing or damaged: ") and "\n" not in output
    assert f"{picture} (not a readable image" in output and "41.jpg (missing)" in output
    assert output.endswith("`extract --skip-damaged`")
    assert not path.exists()
    capsys.readouterr()
    assert extract.main([*given, "--skip-damaged"]) == 0
    assert "skipped as damaged: 2 images, e.g. " in capsys.readouterr().out
    opened = open_store(path)
    assert len(opened.row_of) == 4 and opened.left_out.keys() == {"2", "41"}
    picture.write_bytes(whole)
    shutil.copy(few / "images" / "41.png", data / "images")
    assert extract.main(given) == 0
    opened, expected = open_store(path), open_store(store)
    assert opened.left_out == {} and opened.row_of.keys() == expected.row_of.keys()
    for key, row in opened.row_of.items():
        difference = opened.rows[row].astype(float) - expected.rows[expected.row_of[key]]
        assert np.abs(difference).max() < 0.1, key  # another batch rounds differently


def test_features_for_a_run_are_extracted_with_its_weights_alone(
    store: Path, few: Path, weights: Path, tmp_path: Path
) -> None:
    run, path = tmp_path / "run", store_path(tmp_path, str(few), "vgg16", "caffe")
    path.parent.mkdir()
    shutil.copy(store, path)
    trained = ["--data", str(few), "--set", "data.test=val", "--features", "vgg16-caffe"]
    trained += ["--root", str(tmp_path), "--epochs", "1", "--device", "cpu", "--out", str(run)]
    assert train.main(trained) == 0
    other, renamed = tmp_path / "other.pth", tmp_path / "renamed.pth"
    state = torch.load(weights, weights_only=True)
    state["features.0.bias"][0] += 1
    torch.save(state, other)
    shutil.copy(weights, renamed)
    given = [str(run), "--root", str(tmp_path), "--device", "cpu"]
    for main, arguments in (
        (evaluate.main, given),
        (report.main, ["--examples", *given]),
        (train.main, [*trained, "--resume"]),
    ):
        path.unlink()
        if main is train.main:
            (run / "metrics.json").unlink()  # not finished
        with pytest.raises(UserError, match=r"vgg16_random\.pth: missing.*--weights FILE"):
            main(arguments)
        with pytest.raises(UserError, match="not the weights that made"):
            main([*arguments, "--weights", str(other)])
        assert not path.exists()
        assert main([*arguments, "--weights", str(renamed)]) == 0
        assert open_store(path).made_by == open_store(store).made_by


def test_a_known_checkpoint_that_is_missing_can_be_downloaded(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    made_by = {**open_store(store).made_by, "weights": "vgg19-dcbb9e9d.pth"}
    with pytest.raises(UserError, match=r"missing.*checkpoints_setup\.py vgg19` downloads it"):
        FrozenBackbone.like(made_by, None, torch.device("cpu"))


def test_a_run_on_stored_features_answers_about_a_new_image(
    store: Path, few: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    trained = [
        *("--data", str(few), "--set", "data.test=val", "--features", str(store)),
        *("--epochs", "1", "--out", str(run), "--root", str(tmp_path), "--device", "cpu"),
    ]
    shutil.copy(few / "images" / "1.png", tmp_path / "new.png")
    ask = ["--run", str(run), "--image", str(tmp_path / "new.png"), "--question", "is it red?"]
    assert train.main(trained) == 0  # without the backbone's weights: the features are enough
    capsys.readouterr()
    assert predict.main([*ask, "--weights", str(weights), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["attention"]["hop 1"]) == 196
    with pytest.raises(UserError, match=r"vgg16_random\.pth: missing.*--weights"):
        predict.main(ask)
    other = tmp_path / "other.pth"
    state = torch.load(weights, weights_only=True)
    state["features.0.bias"][0] += 1
    torch.save(state, other)
    with pytest.raises(UserError, match="not the weights that made"):
        predict.main([*ask, "--weights", str(other)])

    # An untrusted features.json with other sizes and matching weights.
    ask += ["--weights", str(weights)]
    features = json.loads((run / "features.json").read_text())
    made_by = features["made_by"] | {"size": 16}
    (run / "features.json").write_text(json.dumps(features | {"made_by": made_by}))
    with pytest.raises(UserError, match="16 pixels a side"):
        predict.main(ask)
    (run / "features.json").write_text(json.dumps(features | {"channels": 7}))
    learnt = load_file(run / "model.safetensors")
    learnt["answerer.W_I.weight"] = learnt["answerer.W_I.weight"][:, :7].contiguous()
    save_file(learnt, run / "model.safetensors")
    with pytest.raises(UserError, match="image_statistics"):
        predict.main(ask)
    (run / "image_statistics.json").unlink()  # optional: runs of early versions have none
    with pytest.raises(UserError, match="not the 512 channels of vgg16"):
        predict.main(ask)


@pytest.mark.parametrize("kind", ["truncated", "text", "empty", "tensor", "resnet", "absent"])
def test_wrong_weights_are_one_clear_line(weights: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "w.pth"
    if kind == "truncated":
        data = weights.read_bytes()
        path.write_bytes(data[: len(data) // 2])
    elif kind == "text":
        path.write_text("<html>login")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "tensor":
        torch.save(torch.zeros(3), path)
    elif kind == "resnet":
        torch.save(torchvision.models.resnet18().state_dict(), path)
    with pytest.raises(UserError) as error:
        FrozenBackbone("vgg16", path, "caffe", torch.device("cpu"))
    assert str(path) in str(error.value) and "\n" not in str(error.value)
