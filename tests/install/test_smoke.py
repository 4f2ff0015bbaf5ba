"""The environment: `pytest -m smoke` fails if it is broken.

The other tests check the code; these check what it depends on.
"""

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vqa_repro.diagnostics.checks import LOCK
from vqa_repro.diagnostics.facts import PACKAGES, ROOT
from vqa_repro.install.lockfile import differences, read_lock

pytestmark = pytest.mark.smoke


def picture() -> np.ndarray:
    """Return a (48, 64, 3) uint8 image: two ramps and a step."""
    rows, columns = np.mgrid[:48, :64]
    return np.stack([rows * 5, columns * 4, (rows > columns) * 255], axis=-1).astype(np.uint8)


def test_installed_packages_match_the_lock() -> None:
    locked = read_lock(LOCK.read_text(encoding="utf-8"))
    assert set(PACKAGES) <= set(locked)
    assert differences(locked) == []


@pytest.mark.parametrize("module", PACKAGES.values())
def test_package_imports(module: str) -> None:
    importlib.import_module(module)


def test_cv2_writes_and_reads_images(tmp_path: Path) -> None:
    import cv2

    for name, largest_mean_error in (("p.png", 0.0), ("p.jpg", 6.0)):
        assert cv2.imwrite(str(tmp_path / name), picture())
        back = cv2.imread(str(tmp_path / name))
        assert np.abs(back.astype(int) - picture()).mean() <= largest_mean_error


def test_pillow_writes_and_reads_images(tmp_path: Path) -> None:
    from PIL import Image

    for name, largest_mean_error in (("p.png", 0.0), ("p.jpg", 6.0)):
        Image.fromarray(picture()).save(tmp_path / name)
        with Image.open(tmp_path / name) as image:
            back = np.asarray(image.convert("RGB"))
        assert np.abs(back.astype(int) - picture()).mean() <= largest_mean_error


def test_torchvision_computes() -> None:
    import torch
    import torchvision

    # The second box almost covers the first and scores less; the third is separate.
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 11], [20, 20, 30, 30]], dtype=torch.float32)
    kept = torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), iou_threshold=0.5)
    assert kept.tolist() == [0, 2]
    model = torchvision.models.resnet18().eval()
    with torch.inference_mode():
        logits = model(torch.rand(2, 3, 224, 224))
    assert logits.shape == (2, 1000) and bool(logits.isfinite().all()) and logits.std() > 0


def test_safetensors_round_trip(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    tensors = {"a": torch.randn(3, 4), "b": torch.arange(5).to(torch.bfloat16)}
    save_file(tensors, tmp_path / "t.safetensors")
    back = load_file(tmp_path / "t.safetensors")
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_easy_vqa_is_complete() -> None:
    import easy_vqa

    assert len(easy_vqa.get_train_image_paths()) == 4_000
    assert len(easy_vqa.get_test_image_paths()) == 1_000
    assert [len(column) for column in easy_vqa.get_train_questions()] == [38_575] * 3
    assert [len(column) for column in easy_vqa.get_test_questions()] == [9_673] * 3
    assert len(easy_vqa.get_answers()) == 13


def test_the_doctor_finds_no_problem() -> None:
    command = [sys.executable, "-m", "vqa_repro.doctor"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_gpu_computes() -> None:
    import torch

    from vqa_repro.diagnostics.kernel_check import check_device

    if not torch.cuda.is_available():
        pytest.skip("no GPU that torch can use; the doctor says why")
    for index in range(torch.cuda.device_count()):
        kernels = check_device(f"cuda:{index}")["kernels"]
        assert [kernel for kernel in kernels if not kernel["ok"]] == []
