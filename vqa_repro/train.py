"""Train a model on a data set; write one run folder.

    python -m vqa_repro.train                        # SAN on easy-VQA, minutes on two CPU cores
    python -m vqa_repro.train --recipe easy-vqa --seed 1 --out runs/second
    python -m vqa_repro.train --resume               # go on with the newest run of the recipe
    python -m vqa_repro.train --set model.layers=1   # any option of the recipe
    torchrun --nproc-per-node 4 -m vqa_repro.train   # one process for each of four GPUs

Ctrl-C, SIGTERM and SIGUSR1 save and stop; --resume goes on exactly there.

Exit codes: 0 trained; 2 bad input; 130, 143, 138 stopped by Ctrl-C, SIGTERM, SIGUSR1.
"""

import argparse
import os
import shlex
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from vqa_repro.data.questions import Batch, batches
from vqa_repro.diagnostics.facts import environment
from vqa_repro.evaluation.inference import predictions
from vqa_repro.features.loader import PLACEMENTS, Placement
from vqa_repro.models.network import VQAModel, build, check_memory, load_weights, save_weights
from vqa_repro.recipe import Recipe, Training, load_recipe, parse_value, recipe_names
from vqa_repro.reporting.summary import finish, table
from vqa_repro.run import Run, create_run, open_run, record_resumed
from vqa_repro.training.logger import Log, means
from vqa_repro.training.optim import learning_rate
from vqa_repro.training.optim import resume as resume_optimizer
from vqa_repro.training.prepare import PreparedData, prepare
from vqa_repro.training.step import Step
from vqa_repro.training.suspects import NonFiniteLossTracker
from vqa_repro.utils.device import (
    add_device_option,
    choose_device,
    describe,
    has_bfloat16,
    use_deterministic_algorithms,
)
from vqa_repro.utils.distributed import SINGLE_PROCESS, SharedError, World, init_distributed, leave
from vqa_repro.utils.errors import EXIT_BAD_INPUT, UserError, main_guard
from vqa_repro.utils.shortage import explained
from vqa_repro.utils.signals import SignalHandler

RUNS = Path("runs")
LOG_EVERY = 20  # steps
SAVE_EVERY = 60.0  # seconds that a kill can cost
RANK_SEED = 7919  # between the seeds of two processes


class Stopped(Exception):
    """A signal asked the training to stop; all it did is saved."""

    def __init__(self, run: Run, epoch: int, signal: SignalHandler) -> None:
        folder = shlex.quote(str(run.folder))
        super().__init__(
            f"stopped in epoch {epoch} of {run.recipe.training.epochs}; saved in {run.folder}\n"
            f"  continue: the same command with --resume --out {folder}\n"
            f"  use it as it is: python -m vqa_repro.predict --run {folder} --image I --question Q"
        )
        self.exit_code = signal.exit_code or 143  # it was another process that was asked


def train(
    recipe: Recipe,
    *,
    out: Path | None = None,
    root: Path = Path("resources"),
    device: torch.device | None = None,
    weights: Path | None = None,
    leave_out_damaged: bool = False,
    resume: bool = False,
    tensorboard: bool = False,
    place: Placement | None = None,
    world: World = SINGLE_PROCESS,
) -> Run:
    """Train ``recipe`` and return the finished run.

    out: the run's folder; by default the first free one of runs/NAME, runs/NAME-2, ... With
    ``resume`` an unfinished run is continued and a finished one returned as it is; without
    ``out`` that is the newest of this recipe, and a new one where there is none.
    root: where the data sets lie, and their features. Features of a frozen backbone that are not
    there yet are made, with the checkpoint ``weights`` (by default the seeded one), and with
    ``leave_out_damaged`` without the pictures that cannot be read.
    tensorboard: write event files too, in the run folder.
    place: where features are kept; by default where there is room for them.
    world: the processes that train together; all of them call this.
    Raises UserError for bad input, Stopped when a signal ended it early.
    """
    device = device or choose_device("auto")
    folder, run = world.run_on_main(lambda: choose_run(recipe, out, resume))
    if run and run.finished:
        print(f"{folder} is finished; --seed or --out makes another run")
        return run
    torch.manual_seed(recipe.training.seed)
    print(recipe.title)
    begun = run
    run, material = world.run_together(
        lambda: prepare(
            *(recipe, folder, begun, root, device, weights),
            leave_out_damaged=leave_out_damaged,
            place=place,
            world=world,
        )
    )
    world.run_together(lambda: check_memory(run, device))
    with explained(recipe.training, folder, device):
        network = build(run).to(device)
    world.broadcast_weights(network)
    if world.rank:  # from here on, random numbers of its own
        torch.manual_seed(recipe.training.seed + RANK_SEED * world.rank)
    facts: dict[str, Any] = {
        "device": describe(device),
        "torch_build": torch.__version__,
        "processes": world.size,
        "without": missing_capabilities(device, recipe.training) + material.left_out,
    }
    for line in facts["without"]:
        print(f"  done without {line}")
    if begun:
        world.run_on_main(lambda: record_resumed(run, facts))
    else:
        facts["features"] = material.rows.description
        world.run_on_main(lambda: create_run(run, {**environment(), **facts}))
    processes = f", {world.size} processes" if world.size > 1 else ""
    print(
        f"  on {describe(device)}{processes}, torch {torch.__version__}; "
        f"{material.rows.description}"
    )
    parameters = sum(p.numel() for p in network.parameters())
    print(
        f"  {parameters:,} parameters; {len(material.train):,} questions to train on, "
        f"{len(material.validation):,} held out, {len(material.test):,} to test on; "
        f"{len(run.vocabulary.words):,} words, {len(run.vocabulary.answers):,} answers\n"
        f"  run folder: {folder}",
        flush=True,
    )
    with explained(recipe.training, folder, device):
        seconds = optimise(run, network, material, device, world, tensorboard=tensorboard)
        finish(run, network, material, seconds, world)
    return run


def choose_run(recipe: Recipe, out: Path | None, resume: bool) -> tuple[Path, Run | None]:
    """The folder to train in, and the run in it that goes on."""
    if out is None:
        numbered = [RUNS / recipe.name, *(RUNS / f"{recipe.name}-{n}" for n in range(2, 10_000))]
        if resume:
            for folder in reversed([f for f in numbered if (f / "recipe.json").exists()]):
                run = open_run(folder)
                if run.recipe == recipe:
                    return folder, run
        return next(folder for folder in numbered if not folder.exists()), None
    if (out / "recipe.json").exists():
        if not resume:
            raise UserError(f"--out {out}: holds a run; --resume continues it, or name another")
        run = open_run(out)
        if run.recipe != recipe:
            raise UserError(f"--out {out}: was made with other options; name another folder")
        return out, run
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: is there already, and is no run; name another folder")
    return out, None


def missing_capabilities(device: torch.device, training: Training) -> list[str]:
    """What this machine lacks, one phrase each, as bootstrap.sh and torch found it."""
    lines = [line for line in os.environ.get("VQA_REPRO_WITHOUT", "").splitlines() if line]
    if device.type == "cpu":
        seen = "none seen by torch" if not torch.cuda.is_available() else "--device cpu"
        lines.insert(0, f"GPU: {seen}")
    if training.precision == "bfloat16" and not has_bfloat16(device):
        lines.append("bfloat16: no known instructions for it here; done in float32")
    return lines


def optimise(
    run: Run,
    network: VQAModel,
    material: PreparedData,
    device: torch.device,
    world: World,
    *,
    tensorboard: bool,
) -> float:
    """Train ``network`` to the recipe's last epoch; return the seconds of training, all told."""
    training = run.recipe.training
    questions = material.train

    def shuffled(epoch: int) -> list[Batch]:
        seed = training.seed * 1_000_003 + epoch
        return batches(questions, training.batch_size, training.order, seed, world)

    step = Step(training, network, material.rows, questions, world)
    if device.type == "cuda" and step.eager:
        print(f"  done without CUDA graphs: {step.eager}")
    # Batches of whole pictures vary in number a little from epoch to epoch; this is the plan.
    steps = training.epochs * len(shuffled(0))
    done = first_epoch = first_batch = 0
    best, best_epoch = -1.0, 0  # of the held-out questions, in percent
    seconds = 0.0
    weights = run.folder / "model.safetensors"
    epoch_sums, sums = torch.zeros(3, device=device), torch.zeros(3, device=device)
    if (state := world.run_on_main(lambda: run.load_checkpoint(print))) is not None:
        with run.restoring():
            network.load_state_dict(state["network"])
            resume_optimizer(step.optimizer, state["optimizer"])
            epoch_sums, sums = state["epoch_sums"].to(device), state["sums"].to(device)
            done, first_epoch, first_batch = state["step"], state["epoch"], state["batch"]
            best, best_epoch = state["best"], state["best_epoch"]
            seconds = state["seconds"]
            processes = len(state["random"])
            if processes == world.size:
                set_random_state(state["random"][world.rank], device)
        print(f"  resumed after step {done}, in epoch {first_epoch + 1} of {training.epochs}")
        if processes != world.size:
            print(
                f"  begun with {processes} processes, goes on with {world.size}: what dropout "
                "leaves out and which answers are drawn is not what it would have been"
            )
            torch.manual_seed(training.seed + RANK_SEED * world.rank + done)
    log = Log(run, done, world, tensorboard=tensorboard)
    # Reading what the others wish makes the program wait for the GPU.
    meet_every = LOG_EVERY if world.size > 1 and device.type == "cuda" else 1
    started = time.monotonic() - seconds

    def save(epoch: int, batch: int) -> None:
        log.flush()
        if sums[2]:
            means(sums, done)  # refuses to save weights that are no longer numbers
        random = world.all_gather(random_state(device))
        state = {
            "network": network.state_dict(),
            "optimizer": step.optimizer.state_dict(),
            "epoch_sums": epoch_sums,
            "sums": sums,
            "step": done,
            "epoch": epoch,
            "batch": batch,
            "best": best,
            "best_epoch": best_epoch,
            "seconds": time.monotonic() - started,
            "random": random,
        }

        def write() -> None:
            run.save_checkpoint(state)
            if training.keep == "last" or not weights.exists():
                save_weights(network, weights)

        world.run_on_main(write)

    bar = tqdm(
        total=training.epochs * len(questions),
        initial=first_epoch * len(questions),
        desc="training",
        unit=" questions",
        unit_scale=True,
        disable=None if world.is_main else True,  # a log file gets the plain line per epoch only
        dynamic_ncols=True,
    )
    network.train()
    entry: dict[str, Any]
    with bar, SignalHandler() as interruption, NonFiniteLossTracker(questions) as suspects, log:
        saved = time.monotonic()
        for epoch in range(first_epoch, training.epochs):
            if training.patience and epoch - best_epoch >= training.patience:
                tqdm.write(f"  no better epoch since epoch {best_epoch}: stopped")
                break
            plan = shuffled(epoch)
            for number, batch in enumerate(material.rows.ahead(plan)):
                if epoch == first_epoch and number < first_batch:
                    bar.update(batch.total)
                    continue
                rate = learning_rate(training, done, steps)
                tally = step(batch, rate)
                sums += tally
                done += 1
                suspects.add(done, epoch + 1, number + 1, batch.questions, tally[0] / batch.total)
                bar.update(batch.total)
                if done % LOG_EVERY == 0:
                    position = epoch + (number + 1) / len(plan)
                    entry = {"type": "step", "step": done, "epoch": position, "rate": rate}
                    log.later(entry, sums, bar)
                    epoch_sums, sums = epoch_sums + sums, torch.zeros_like(sums)
                if number + 1 == len(plan) or done % meet_every:
                    continue
                due = world.is_main and time.monotonic() - saved > SAVE_EVERY
                due, stop = world.any(due, interruption.signal is not None)
                if due or stop:
                    save(epoch, number + 1)
                    saved = time.monotonic()
                if stop:
                    raise Stopped(run, epoch + 1, interruption)
            epoch_sums, sums = epoch_sums + sums, torch.zeros_like(sums)
            entry = {"type": "epoch", "step": done, "epoch": epoch + 1, **means(epoch_sums, done)}
            epoch_sums = torch.zeros_like(epoch_sums)
            if len(material.validation):
                entry["validation_accuracy"] = accuracy(network, material, world)
                if entry["validation_accuracy"] > best:
                    best, best_epoch = entry["validation_accuracy"], epoch + 1
                    if training.keep == "best":
                        world.run_on_main(lambda: save_weights(network, weights))
            entry["seconds"] = time.monotonic() - started
            entry["questions_per_second"] = (epoch + 1) * len(questions) / entry["seconds"]
            log.record(entry)
            tqdm.write(epoch_in_words(entry, training.epochs))
            save(epoch + 1, 0)
            saved = time.monotonic()
            (stop,) = world.any(interruption.signal is not None)
            if stop and epoch + 1 < training.epochs:
                raise Stopped(run, epoch + 1, interruption)
    if training.keep == "best":
        world.run_on_main(lambda: load_weights(network, weights))
        world.broadcast_weights(network)
        print(f"  kept: epoch {best_epoch}, held-out {best:.2f}%")
    return time.monotonic() - started


def accuracy(network: VQAModel, material: PreparedData, world: World = SINGLE_PROCESS) -> float:
    """Percent of the held-out questions answered as labelled."""
    predicted = predictions(network, material.rows, material.validation, world)
    return 100 * float((predicted == material.validation.label.cpu()).float().mean())


def epoch_in_words(entry: dict[str, Any], epochs: int) -> str:
    validation = entry.get("validation_accuracy")
    held_out = f", held-out {validation:.2f}%" if validation is not None else ""
    left = entry["seconds"] / entry["epoch"] * (epochs - entry["epoch"])
    return (
        f"  epoch {entry['epoch']:>2}/{epochs}: loss {entry['loss']:.4f}, "
        f"accuracy {entry['accuracy']:.2f}%{held_out}; "
        f"{entry['questions_per_second']:,.0f} questions/s, {left:.0f} s left"
    )


def random_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m vqa_repro.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--recipe", help=f"{', '.join(recipe_names())}, or a TOML file (default: easy-vqa)"
    )
    parser.add_argument("--data", help="train on another data set, or a folder of your own")
    parser.add_argument(
        "--features", help="cnn, none, a frozen backbone (vgg19, vgg19-caffe), or a feature store"
    )
    parser.add_argument(
        "--weights", type=Path, help="the frozen backbone's checkpoint, if not the seeded one"
    )
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seed", type=int)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        dest="changes",
        help="change any option of the recipe, for example model.layers=1; may be repeated",
    )
    parser.add_argument("--root", type=Path, default=Path("resources"), help="where data sets lie")
    parser.add_argument(
        "--leave-out-damaged",
        action="store_true",
        help="do without the questions about pictures that cannot be read",
    )
    parser.add_argument(
        "--rows",
        choices=PLACEMENTS,
        help="where features are kept; by default where there is room: in the device's memory, "
        "there without the zeros, in the host's memory, on the disk",
    )
    parser.add_argument("--out", type=Path, help="the run's folder (default: below runs/)")
    parser.add_argument("--resume", action="store_true", help="go on with a run that is there")
    parser.add_argument(
        "--tensorboard", action="store_true", help="write event files into the run's folder too"
    )
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="the same numbers bit for bit each time also on a GPU, which costs speed",
    )
    add_device_option(parser)
    args = parser.parse_args(arguments)
    if args.deterministic:
        use_deterministic_algorithms()
    changes = dict(change(text) for text in args.changes)
    for key, value in [
        ("data.name", args.data),
        ("data.features", args.features),
        ("training.epochs", args.epochs),
        ("training.seed", args.seed),
    ]:
        if value is not None:
            changes[key] = value
    recipe = load_recipe(args.recipe or "easy-vqa", changes)
    code = 0
    with init_distributed(args.device) as (world, device):
        try:
            run = train(
                recipe,
                out=args.out,
                root=args.root,
                device=choose_device(device),
                weights=args.weights,
                leave_out_damaged=args.leave_out_damaged,
                resume=args.resume,
                tensorboard=args.tensorboard,
                place=args.rows,
                world=world,
            )
            if world.is_main:
                print(table(run))
        except Stopped as stopped:
            print(stopped)
            code = stopped.exit_code
        except SharedError:
            if world.is_main:
                raise
            code = EXIT_BAD_INPUT
    if not world.is_main:
        leave(code)
    return code


def change(text: str) -> tuple[str, Any]:
    """ "training.epochs=3" -> ("training.epochs", 3): the value is written as in TOML."""
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set {text}: write SECTION.KEY=VALUE")
    return key.strip(), parse_value(value.strip())


if __name__ == "__main__":
    main_guard(main)
