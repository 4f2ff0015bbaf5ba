"""The run folder of a training: choose, create and lock it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from vqa_repro.install import locks
from vqa_repro.recipe import Recipe
from vqa_repro.run import Run, create_run, open_run
from vqa_repro.utils.errors import UserError

RUNS = Path("runs")
LOCK = ".lock"  # in the run folder


def choose_run(recipe: Recipe, out: Path | None, resume: bool) -> tuple[Path, Run | None]:
    """Return the folder to train in, and the run in it that is to be resumed."""
    if out is None:
        if resume:
            for folder in reversed([f for f in default_folders(recipe) if is_run(f)]):
                run = open_run(folder)
                if run.recipe == recipe:
                    return folder, run
        return next(folder for folder in default_folders(recipe) if not folder.exists()), None
    if is_run(out):
        if not resume:
            raise UserError(f"--out {out}: holds a run; --resume continues it, or name another")
        run = open_run(out)
        if run.recipe != recipe:
            raise UserError(f"--out {out}: was made with other options; name another folder")
        return out, run
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: exists already and is not a run; name another folder")
    return out, None


def default_folders(recipe: Recipe) -> list[Path]:
    names = [recipe.name, *(f"{recipe.name}-{n}" for n in range(2, 10_000))]
    return [RUNS / name for name in names]


def is_run(folder: Path) -> bool:
    return (folder / "recipe.json").exists()


def claim_run(run: Run, environment: dict[str, Any], out: Path | None) -> Run:
    """Create the folder of a new ``run`` and return the run.

    A run folder appears under its name in one step, so of several trainings that start together
    only one gets it. The others take the next default name; with ``out`` they raise UserError,
    which names the training that uses the folder.
    """
    if out is None:
        candidates = [folder for folder in default_folders(run.recipe) if not folder.exists()]
        for folder in candidates:
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
