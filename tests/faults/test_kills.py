"""SIGKILL at random moments, repeatedly: the final result equals that of an uninterrupted run, byte
for byte.

    VQA_KILLS=100 python -m pytest tests/faults/test_kills.py
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
import torchvision
from children import ready
from conftest import OPTIONS
from fault_server import FaultServer
from test_checkpoints_setup import DATA, FILES, Run

from vqa_repro import extract, train
from vqa_repro.training import loop

KILLS = int(os.environ.get("VQA_KILLS", 5))
EPOCHS = 2


@pytest.fixture(scope="module")
def forks() -> ForkServerContext:
    return ready()


def run_training(arguments: list[str], log: Path, save_every: float) -> None:
    sys.stdout = sys.stderr = log.open("a")
    loop.SAVE_EVERY = save_every
    sys.exit(train.main(arguments))


def run_extraction(arguments: list[str], log: Path) -> None:
    """Run VGG-16 on images of 32 pixels a side, which is quick."""
    sys.stdout = sys.stderr = log.open("a")
    torch.set_num_threads(1)
    sys.exit(extract.main([*arguments, "--size", "32"]))


def kill_at_random(begin: Callable[[], BaseProcess], seconds: float, rng: random.Random) -> bool:
    """Start and kill within ``seconds``; return False if it finished before."""
    process = begin()
    process.join(rng.uniform(0, seconds))
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def finish(process: BaseProcess, log: Path) -> float:
    """Wait for the end; return the seconds it took."""
    began = time.monotonic()
    process.join(300)
    assert process.exitcode == 0, log.read_text()
    return time.monotonic() - began


def losses(run: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


@pytest.mark.slow
def test_training(
    forks: ForkServerContext,
    drawn_folder: Path,
    tmp_path: Path,
    record_property: Callable[[str, int], None],
) -> None:
    log, root = tmp_path / "output", tmp_path / "root"

    def begin(out: Path, save_every: float = 0.0) -> BaseProcess:
        arguments = ["--recipe", "easy-vqa", "--data", str(drawn_folder), *OPTIONS]
        arguments += ["--epochs", str(EPOCHS)]
        arguments += ["--root", str(root), "--out", str(out), "--resume"]
        process = forks.Process(target=run_training, args=(arguments, log, save_every))
        process.start()
        return process

    whole = tmp_path / "whole"
    seconds = finish(begin(whole), log)

    rng, kills, number = random.Random(0), 0, 0
    while kills < KILLS:
        out, number = tmp_path / f"killed {number}", number + 1
        for _ in range(min(10, KILLS - kills)):
            save_every = rng.choice((0.0, 60.0))  # after every step, or every epoch
            if not kill_at_random(lambda: begin(out, save_every), seconds, rng):  # noqa: B023
                break
            kills += 1
        finish(begin(out), log)
        assert losses(out) == losses(whole)
        for name in ("model.safetensors", "results.json", "vocabulary.json", "features.json"):
            assert (out / name).read_bytes() == (whole / name).read_bytes(), name
        # No half-written file remains, except temporary ones.
        assert {p.name for p in out.iterdir() if p.name[0] != "."} == {
            p.name for p in whole.iterdir()
        }
    record_property("recovered", kills)


@pytest.mark.slow
def test_extraction(
    forks: ForkServerContext,
    drawn_folder: Path,
    tmp_path: Path,
    record_property: Callable[[str, int], None],
) -> None:
    torch.manual_seed(0)
    weights, log = tmp_path / "vgg16.pth", tmp_path / "output"
    state = torchvision.models.vgg16().features.state_dict()
    torch.save({f"features.{key}": value.half() for key, value in state.items()}, weights)

    def begin(store: Path) -> BaseProcess:
        arguments = ["--data", str(drawn_folder), "--backbone", "vgg16", "--device", "cpu"]
        arguments += ["--weights", str(weights), "--out", str(store)]
        process = forks.Process(target=run_extraction, args=(arguments, log))
        process.start()
        return process

    whole = tmp_path / "whole.safetensors"
    seconds = finish(begin(whole), log)

    rng, kills, number = random.Random(1), 0, 0
    while kills < KILLS:
        store, number = tmp_path / f"killed {number}.safetensors", number + 1
        for _ in range(min(10, KILLS - kills)):
            if not kill_at_random(lambda: begin(store), seconds, rng):  # noqa: B023
                break
            kills += 1
        finish(begin(store), log)
        assert store.read_bytes() == whole.read_bytes()
        assert not list(tmp_path.glob(f"{store.name}.*"))
    record_property("recovered", kills)


def test_checkpoint_download(tmp_path: Path, record_property: Callable[[str, int], None]) -> None:
    rng, kills, number = random.Random(2), 0, 0
    with FaultServer(dict(FILES)) as server:
        while kills < KILLS:
            run, number = Run(tmp_path / str(number) / "hub" / "checkpoints"), number + 1
            run.cwd.mkdir()
            for _ in range(min(10, KILLS - kills)):
                process = run.start("toy", "--from", server.url("slow"))
                time.sleep(rng.uniform(0, 1.5))
                process.kill()
                run.finish()
                # At any moment, the target is complete or absent.
                assert not run.target.exists() or run.target.read_bytes() == DATA
                if run.code == 0:
                    break
                kills += 1
            complete = run.target.exists()
            run("toy", "--from", server.url("slow"))
            if complete:  # the kill came after that; its lock and record may be left, harmlessly
                for pattern in (".{}.in-use", "..{}.verified.json.*"):
                    for path in run.folder.glob(pattern.format(run.target.name)):
                        path.unlink()
            run.assert_right()
    record_property("recovered", kills)
