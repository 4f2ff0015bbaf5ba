"""Verbs that run out of memory, in processes with a memory limit."""

import json
import re
import resource
import shutil
import sys
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import torch
import torchvision
from children import ready
from conftest import LIMIT

from vqa_repro import evaluate, extract, predict
from vqa_repro.utils.errors import EXIT_BAD_INPUT, UserError, main_guard
from vqa_repro.utils.memory import explain_out_of_memory

MAIN = {"evaluate": evaluate.main, "extract": extract.main, "predict": predict.main}
ALLOWANCE = 400 * 2**20  # bytes above the memory of the process at its start


@pytest.fixture(scope="module")
def forks() -> ForkServerContext:
    return ready()


def starved(verb: str, arguments: list[str], output: Path) -> None:
    """Run a verb as the command line does, in its own process with little memory."""
    torch.set_num_threads(1)
    with torch.device("meta"):  # which imports many modules
        torch.nn.LSTM(1, 1)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + ALLOWANCE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    sys.stderr = output.open("w", buffering=1)
    main_guard(lambda: MAIN[verb](arguments))


def of_size(run: Path, finished: Path, size: int) -> Path:
    """Copy the run and set the side of its images to ``size`` pixels."""
    shutil.copytree(finished, run)
    for name, section, key in (
        ("recipe.json", "data", "picture_size"),
        ("features.json", "made_by", "size"),
    ):
        values = json.loads((run / name).read_text())
        values[section][key] = min(size, 1024) if section == "data" else size
        (run / name).write_text(json.dumps(values))
    return run


def vgg16(path: Path) -> Path:
    """Save VGG-16 with one expanded number per tensor: a small file."""
    with torch.device("meta"):
        state = torchvision.models.vgg16().state_dict()
    torch.save({key: torch.zeros(()).expand(value.shape) for key, value in state.items()}, path)
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="it is Linux that keeps to the limit")
@pytest.mark.parametrize("verb", MAIN)
def test_out_of_memory_in_a_verb_is_one_line(
    forks: ForkServerContext, finished: Path, drawn_folder: Path, tmp_path: Path, verb: str
) -> None:
    picture = next((drawn_folder / "images").iterdir())
    arguments: list[object] = ["--device", "cpu"]
    if verb == "extract":
        arguments += ["--data", drawn_folder, "--root", tmp_path, "--backbone", "vgg16"]
        arguments += ["--weights", vgg16(tmp_path / "vgg16.pth")]
    elif verb == "evaluate":
        arguments += ["--run", of_size(tmp_path / "run", finished, 1024), "--root", tmp_path]
    else:
        arguments += ["--run", of_size(tmp_path / "run", finished, 4096)]
        arguments += ["--image", picture, "--question", "is it red?"]
    output = tmp_path / "output"
    process = forks.Process(target=starved, args=(verb, list(map(str, arguments)), output))
    process.start()
    process.join(LIMIT)
    text = output.read_text()
    assert process.exitcode == EXIT_BAD_INPUT, text
    (line,) = [line for line in text.splitlines() if line.startswith("error: ")]
    assert re.fullmatch(r"error: out of memory \(another \d.* requested\): .*--device .*", line)
    assert ("--precision bfloat16" in line) == (verb == "extract")
    assert "Traceback" not in text


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.34 GiB. GPU 0 has"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
        MemoryError("Unable to allocate 2.34 GiB for an array with shape (64, 4096)"),
    ],
)
def test_out_of_memory_errors_are_all_recognised(error: Exception) -> None:
    """Use the errors of torch and numpy in place of a full GPU."""
    pattern = r"out of memory( \(another 2.34 GiB requested\))?: try"
    with pytest.raises(UserError, match=pattern), explain_out_of_memory("try less"):
        raise error
