"""Train a model on a data set; write one run folder.

    python -m vqa_repro.train                        # SAN on easy-VQA, minutes on two CPU cores
    python -m vqa_repro.train --recipe easy-vqa --seed 1 --out runs/second
    python -m vqa_repro.train --resume               # go on with the newest run of the recipe
    python -m vqa_repro.train --set model.layers=1   # any option of the recipe

Ctrl-C, SIGTERM and SIGUSR1 save and stop; --resume goes on exactly there.

Exit codes: 0 trained; 2 bad input; 130, 143, 138 stopped by Ctrl-C, SIGTERM, SIGUSR1.
"""

import argparse
import json
import os
import shlex
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from vqa_repro import doctor
from vqa_repro.answering import ask, predictions
from vqa_repro.device import add_device_option, be_deterministic, choose_device, describe
from vqa_repro.errors import UserError, main_guard
from vqa_repro.events import Events
from vqa_repro.interruption import Interruption
from vqa_repro.loss import cross_entropy
from vqa_repro.material import Material, prepare
from vqa_repro.model import Network, build, load_weights, save_weights
from vqa_repro.optim import before_step, learning_rate, make_optimizer, set_rate
from vqa_repro.outcome import finish, table
from vqa_repro.questions import batches
from vqa_repro.recipe import Recipe, load_recipe, parse_value, recipe_names
from vqa_repro.run import Run, create_run, open_run
from vqa_repro.shortage import explained
from vqa_repro.suspects import NotFiniteError, Suspects

RUNS = Path("runs")
LOG_EVERY = 20  # steps; reading the loss makes the program wait for the GPU
SAVE_EVERY = 60.0  # seconds that a kill can cost


class Stopped(Exception):
    """A signal asked the training to stop; all it did is saved."""

    def __init__(self, run: Run, epoch: int, signal: Interruption) -> None:
        folder = shlex.quote(str(run.folder))
        super().__init__(
            f"stopped in epoch {epoch} of {run.recipe.training.epochs}; saved in {run.folder}\n"
            f"  continue: the same command with --resume --out {folder}\n"
            f"  use it as it is: python -m vqa_repro.predict --run {folder} --image I --question Q"
        )
        self.exit_code = signal.exit_code


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
) -> Run:
    """Train ``recipe`` and return the finished run.

    out: the run's folder; by default the first free one of runs/NAME, runs/NAME-2, ... With
    ``resume`` an unfinished run is continued and a finished one returned as it is; without
    ``out`` that is the newest of this recipe, and a new one where there is none.
    root: where the data sets lie, and their features. Features of a frozen backbone that are not
    there yet are made, with the checkpoint ``weights`` (by default the seeded one), and with
    ``leave_out_damaged`` without the pictures that cannot be read.
    tensorboard: write event files too, in the run folder.
    Raises UserError for bad input, Stopped when a signal ended it early.
    """
    device = device or choose_device("auto")
    folder, run = choose_run(recipe, out, resume)
    if run and run.finished:
        print(f"{folder} is finished; --seed or --out makes another run")
        return run
    torch.manual_seed(recipe.training.seed)
    print(recipe.title)
    begun = run is not None
    run, material = prepare(
        recipe, folder, run, root, device, weights, leave_out_damaged=leave_out_damaged
    )
    vocabulary = run.vocabulary
    network = build(run).to(device)
    if not begun:
        without = done_without(device) + material.left_out
        for line in without:
            print(f"  done without {line}")
        create_run(run, {**doctor.environment(), "device": describe(device), "without": without})
    print(f"  on {describe(device)}, torch {torch.__version__}")
    parameters = sum(p.numel() for p in network.parameters())
    print(
        f"  {parameters:,} parameters; {len(material.train):,} questions to train on, "
        f"{len(material.validation):,} held out, {len(material.test):,} to test on; "
        f"{len(vocabulary.words):,} words, {len(vocabulary.answers):,} answers\n"
        f"  run folder: {folder}",
        flush=True,
    )
    with explained(recipe.training, folder):
        seconds = optimise(run, network, material, device, tensorboard=tensorboard)
        finish(run, network, material, seconds)
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


def done_without(device: torch.device) -> list[str]:
    """What this machine lacks, one phrase each, as bootstrap.sh and torch found it."""
    lines = [line for line in os.environ.get("VQA_REPRO_WITHOUT", "").splitlines() if line]
    if device.type == "cpu":
        seen = "none seen by torch" if not torch.cuda.is_available() else "--device cpu"
        lines.insert(0, f"GPU: {seen}")
    return lines


def optimise(
    run: Run, network: Network, material: Material, device: torch.device, *, tensorboard: bool
) -> float:
    """Train ``network`` to the recipe's last epoch; return the seconds of training, all told."""
    training = run.recipe.training
    questions = material.train

    def shuffled(epoch: int) -> list[Any]:
        seed = training.seed * 1_000_003 + epoch
        return list(batches(questions, training.batch_size, training.order, seed))

    optimizer = make_optimizer(training, network)
    # Batches of whole pictures vary in number a little from epoch to epoch; this is the plan.
    steps = training.epochs * len(shuffled(0))
    step = first_epoch = first_batch = 0
    best, best_epoch = -1.0, 0  # of the held-out questions, in percent
    seconds = 0.0
    weights = run.folder / "model.safetensors"
    epoch_sums, sums = torch.zeros(3, device=device), torch.zeros(3, device=device)
    if (state := run.load_checkpoint(print)) is not None:
        with run.restoring():
            network.load_state_dict(state["network"])
            optimizer.load_state_dict(state["optimizer"])
            epoch_sums, sums = state["epoch_sums"].to(device), state["sums"].to(device)
            step, first_epoch, first_batch = state["step"], state["epoch"], state["batch"]
            best, best_epoch = state["best"], state["best_epoch"]
            seconds = state["seconds"]
            set_random_state(state["random"], device)
        print(f"  resumed after step {step}, in epoch {first_epoch + 1} of {training.epochs}")
    run.keep_log_until(step)
    started = time.monotonic() - seconds
    entry: dict[str, Any]

    def record(entry: dict[str, Any]) -> None:
        log_file.write(json.dumps(entry) + "\n")
        log_file.flush()
        if events:
            events.add(entry)

    def save(epoch: int, batch: int) -> None:
        if sums[2]:
            means(sums, step)  # refuses to save weights that are no longer numbers
        run.save_checkpoint(
            {
                "network": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "epoch_sums": epoch_sums,
                "sums": sums,
                "step": step,
                "epoch": epoch,
                "batch": batch,
                "best": best,
                "best_epoch": best_epoch,
                "seconds": time.monotonic() - started,
                "random": random_state(device),
            }
        )
        if training.keep == "last" or not weights.exists():
            save_weights(network, weights)

    bar = tqdm(
        total=training.epochs * len(questions),
        initial=first_epoch * len(questions),
        desc="training",
        unit=" questions",
        unit_scale=True,
        disable=None,  # a log file gets the plain line per epoch only
        dynamic_ncols=True,
    )
    network.train()
    with (
        bar,
        Interruption() as interruption,
        Suspects(questions) as suspects,
        (run.folder / "log.jsonl").open("a") as log_file,
        Events(run.folder, step) if tensorboard else nullcontext() as events,
    ):
        saved = time.monotonic()
        for epoch in range(first_epoch, training.epochs):
            if training.patience and epoch - best_epoch >= training.patience:
                tqdm.write(f"  no better epoch since epoch {best_epoch}: stopped")
                break
            plan = shuffled(epoch)
            for number, batch in enumerate(plan):
                if epoch == first_epoch and number < first_batch:
                    bar.update(len(batch.questions))
                    continue
                rate = learning_rate(training, step, steps)
                set_rate(optimizer, rate)
                logits = ask(network, material.rows, questions, batch).logits
                label = questions.label[batch.questions]
                loss = cross_entropy(logits, questions, batch.questions, training.answers)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                before_step(training, network)
                optimizer.step()
                step += 1
                suspects.add(step, epoch + 1, number + 1, batch.questions, loss)
                sums += tally(loss, logits, label)
                bar.update(len(label))
                if step % LOG_EVERY == 0:
                    position = epoch + (number + 1) / len(plan)
                    entry = {"type": "step", "step": step, "epoch": position, "rate": rate}
                    entry |= means(sums, step)
                    record(entry)
                    bar.set_postfix_str(
                        f"loss {entry['loss']:.3f}, accuracy {entry['accuracy']:.1f}%"
                    )
                    epoch_sums, sums = epoch_sums + sums, torch.zeros_like(sums)
                due = time.monotonic() - saved > SAVE_EVERY
                if number + 1 < len(plan) and (due or interruption.signal):
                    save(epoch, number + 1)
                    saved = time.monotonic()
                if interruption.signal and number + 1 < len(plan):
                    raise Stopped(run, epoch + 1, interruption)
            epoch_sums, sums = epoch_sums + sums, torch.zeros_like(sums)
            entry = {"type": "epoch", "step": step, "epoch": epoch + 1, **means(epoch_sums, step)}
            epoch_sums = torch.zeros_like(epoch_sums)
            if len(material.validation):
                entry["validation_accuracy"] = accuracy(network, material)
                if entry["validation_accuracy"] > best:
                    best, best_epoch = entry["validation_accuracy"], epoch + 1
                    if training.keep == "best":
                        save_weights(network, weights)
            entry["seconds"] = time.monotonic() - started
            entry["questions_per_second"] = (epoch + 1) * len(questions) / entry["seconds"]
            record(entry)
            tqdm.write(epoch_in_words(entry, training.epochs))
            save(epoch + 1, 0)
            saved = time.monotonic()
            if interruption.signal and epoch + 1 < training.epochs:
                raise Stopped(run, epoch + 1, interruption)
    if training.keep == "best":
        load_weights(network, weights)
        print(f"  kept: epoch {best_epoch}, held-out {best:.2f}%")
    return time.monotonic() - started


def tally(loss: Tensor, logits: Tensor, label: Tensor) -> Tensor:
    """(3,): summed loss, right answers, questions; left on the device."""
    count = torch.full((), len(label), device=label.device)
    right = (logits.argmax(1) == label).sum()
    return torch.stack([loss.detach() * count, right, count])


def means(sums: Tensor, step: int) -> dict[str, float]:
    """Mean loss and accuracy in percent. Raises NotFiniteError if the loss is not finite."""
    loss, right, count = sums.tolist()
    if not loss < float("inf"):
        raise NotFiniteError(step)
    return {"loss": loss / count, "accuracy": 100 * right / count}


def accuracy(network: Network, material: Material) -> float:
    """Percent of the held-out questions answered as labelled."""
    predicted = predictions(network, material.rows, material.validation)
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
        be_deterministic()
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
    try:
        run = train(
            recipe,
            out=args.out,
            root=args.root,
            device=choose_device(args.device),
            weights=args.weights,
            leave_out_damaged=args.leave_out_damaged,
            resume=args.resume,
            tensorboard=args.tensorboard,
        )
    except Stopped as stopped:
        print(stopped)
        return stopped.exit_code
    print(table(run))
    return 0


def change(text: str) -> tuple[str, Any]:
    """ "training.epochs=3" -> ("training.epochs", 3): the value is written as in TOML."""
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set {text}: write SECTION.KEY=VALUE")
    return key.strip(), parse_value(value.strip())


if __name__ == "__main__":
    main_guard(main)
