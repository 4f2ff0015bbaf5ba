"""The run folder of a training: choose, create and lock it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vqa_repro.diagnostics.facts import environment
from vqa_repro.features.provider import Runtime
from vqa_repro.install import locks
from vqa_repro.recipe import Recipe, Training
from vqa_repro.release import is_release
from vqa_repro.run import Run, create_run, open_run, record_resumed
from vqa_repro.training.prepare import PreparedData
from vqa_repro.utils.device import describe, has_bfloat16
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.files import check_folder

RUNS = Path("runs")
LOCK = ".lock"  # in the run folder


def choose_run(recipe: Recipe, out: Path | None, resume: bool) -> tuple[Path, Run | None]:
    """Return the folder to train in, and the run in it that is to be resumed.

    Raise UserError if no run can be resumed or created there.
    """
    if out is None:
        if resume:
            there = set(os.listdir(RUNS)) if RUNS.is_dir() else set()
            named = [folder for folder in default_folders(recipe) if folder.name in there]
            for folder in filter(is_run, reversed(named)):
                run = open_run(folder)
                if run.recipe.options() == recipe.options():
                    return folder, run
        folder = next(folder for folder in default_folders(recipe) if not folder.exists())
        check_folder(folder, "--out")
        return folder, None
    if is_release(out):
        raise UserError(
            f"--out {out}: holds a release, whose training cannot be resumed; name another folder "
            "(the option training.init_from starts from its weights)"
        )
    if is_run(out):
        if not resume:
            raise UserError(f"--out {out}: holds a run; --resume continues it, or name another")
        run = open_run(out)
        made, now = run.recipe.options(), recipe.options()
        if made != now:  # a new title or published figure does not matter
            other = [
                f"{key}={made.get(key)}" for key in made | now if made.get(key) != now.get(key)
            ]
            raise UserError(
                f"--out {out}: was made with other options ({', '.join(other[:4])}); repeat them, "
                "or name another folder"
            )
        return out, run
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: exists already and is not a run; name another folder")
    check_folder(out, "--out")  # now: features can take hours
    return out, None


def default_folders(recipe: Recipe) -> Iterator[Path]:
    """Yield runs/NAME, runs/NAME-2, ..., which may exist."""
    yield RUNS / recipe.name
    for number in range(2, 10_000):
        yield RUNS / f"{recipe.name}-{number}"


def is_run(folder: Path) -> bool:
    return (folder / "recipe.json").exists()


def claim_run(run: Run, environment: dict[str, Any], out: Path | None) -> Run:
    """Create the folder of a new ``run`` and return the run.

    A run folder appears under its name in one step, so of several trainings that start together
    only one gets it. The others take the next default name; with ``out`` they raise UserError,
    which names the training that uses the folder.
    """
    if out is None:
        for folder in default_folders(run.recipe):
            if folder.exists():
                continue
            try:
                run = replace(run, folder=folder)
                create_run(run, environment)
                return run
            except UserError:
                if not is_run(folder):  # not taken: it cannot be created
                    raise
    try:
        create_run(run, environment)
    except UserError:
        if not is_run(run.folder):
            raise
        with lock_run(run.folder):
            raise UserError(
                f"--out {run.folder}: another training has just made this run; --resume "
                "continues it, or name another"
            ) from None
    return run


def record_start(
    run: Run, data: PreparedData, runtime: Runtime, resumed: Run | None, out: Path | None
) -> Run:
    """Create the run folder, or record where the run is resumed; return the run in its folder."""
    facts: dict[str, Any] = {
        "device": describe(runtime.device),
        "torch_build": torch.__version__,
        "processes": runtime.world.size,
        "without": missing_capabilities(runtime.device, run.recipe.training) + data.notes,
    }

    def record() -> Path:
        if resumed:
            record_resumed(run, facts)
            return run.folder
        features = {"features": data.loader.description}
        return claim_run(run, {**environment(), **facts, **features}, out).folder

    return replace(run, folder=runtime.world.run_on_main(record))


def missing_capabilities(device: torch.device, training: Training) -> list[str]:
    """Return what this machine lacks, one line each, as bootstrap.sh and torch found it."""
    lines = [line for line in os.environ.get("VQA_REPRO_WITHOUT", "").splitlines() if line]
    if device.type == "cpu":
        reason = "--device cpu" if torch.cuda.is_available() else "torch sees none"
        lines.insert(0, f"GPU: {reason}")
    if training.precision == "bfloat16" and not has_bfloat16(device):
        lines.append("bfloat16: not known to be supported here; computed in float32")
    if training.precision == "tf32" and (device.type == "cpu" or not has_bfloat16(device)):
        lines.append("tf32: not supported here; computed in float32")
    return lines


@contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Keep other trainings out of ``folder``. Raise UserError, naming the one that uses it."""
    path = folder / LOCK
    try:
        text = locks.acquire(path, 0, lambda line: print(f"  {path}: {line}"))
    except locks.Busy as busy:
        raise UserError(
            f"{folder}: another training uses this run folder ({busy.owner}); wait for it, or "
            f"name another with --out (if it was on a machine that died, remove {path})"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    try:
        yield
    finally:
        locks.release(path, text)
