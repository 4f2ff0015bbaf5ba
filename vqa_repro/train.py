"""Train a model on a data set; write one run folder.

    python -m vqa_repro.train                        # SAN on easy-VQA, minutes on two CPU cores
    python -m vqa_repro.train --recipe easy-vqa --seed 1 --out runs/second
    python -m vqa_repro.train --resume               # resume the newest run of the recipe
    python -m vqa_repro.train --set model.layers=1   # any option of the recipe
    python -m vqa_repro.train --seeds 0-4            # five runs side by side, and their table
    python -m vqa_repro.train --folds 5 --out runs/a # cross-validation on the training split
    torchrun --nproc-per-node 4 -m vqa_repro.train   # one process for each of four GPUs

Ctrl-C, SIGTERM, SIGUSR1 and a hang-up (SIGHUP, unless started with nohup) save and stop; --resume
continues exactly there.

Exit codes: 0 trained; 2 bad input; 130, 143, 138, 129 stopped by Ctrl-C, SIGTERM, SIGUSR1, SIGHUP.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqa_repro.recipe import MOST_EPOCHS, Recipe, load_recipe, parse_value
from vqa_repro.training.side_by_side import add_several_arguments, train_side_by_side
from vqa_repro.utils.arguments import (
    add_device_option,
    add_root_option,
    add_skip_damaged_option,
    add_weights_option,
    name_or_path_argument,
    parse_arguments,
    path_argument,
    whole_number,
)
from vqa_repro.utils.errors import EXIT_BAD_INPUT, UserError, main_guard

if TYPE_CHECKING:
    from vqa_repro.features.provider import Runtime
    from vqa_repro.models.network import VQAModel
    from vqa_repro.run import Run
    from vqa_repro.training.prepare import PreparedData
    from vqa_repro.training.soft_targets import SoftTargets
    from vqa_repro.training.trackers import Trackers


def train(
    recipe: Recipe,
    *,
    out: Path | None = None,
    resume: bool = False,
    trackers: Sequence[str] = (),
    runtime: Runtime | None = None,
) -> Run:
    """Train ``recipe`` and return the finished run.

    out: the run folder; by default the first free one of runs/NAME, runs/NAME-2, ...
    resume: continue the run in ``out``, or the newest of this recipe if there is one.
    trackers: any of "tensorboard", "wandb", "mlflow".
    runtime: by default the best device of this machine.
    Raise UserError for bad input, ``training.loop.Stopped`` when a signal ended it early.
    """
    from vqa_repro.evaluation.titles import model_title
    from vqa_repro.features.provider import Runtime
    from vqa_repro.models.network import check_model
    from vqa_repro.training.prepare import build_network
    from vqa_repro.training.pretrained import check_pretrained, copy_pretrained
    from vqa_repro.training.run_folder import choose_run, lock_run, record_start
    from vqa_repro.training.shortage import explain_shortage
    from vqa_repro.training.soft_targets import check_targets, make_soft_targets
    from vqa_repro.training.trackers import Trackers
    from vqa_repro.utils.device import choose_device

    runtime = runtime or Runtime(choose_device("auto"))
    world = runtime.world
    tracking = world.run_together(lambda: Trackers(trackers))
    folder, resumed = world.run_on_main(lambda: choose_run(recipe, out, resume))
    if resumed and resumed.finished:
        print(f"{folder} is finished; --seed or --out makes another run")
        return resumed
    with ExitStack() as locks:
        if resumed:
            world.run_on_main(lambda: locks.enter_context(lock_run(folder)))
        print(model_title(recipe))
        continues = resumed and world.run_on_main(lambda: resumed.has_checkpoint)
        pretrained = not continues and (recipe.training.init_from or recipe.training.word_vectors)
        # Before features are extracted, which can take hours.
        world.run_together(lambda: check_model(recipe))
        world.run_together(lambda: check_targets(recipe))
        if pretrained:
            world.run_together(lambda: check_pretrained(recipe.training))
        run, data = prepare_run(recipe, folder, resumed, runtime)
        taught, soft_targets = world.run_together(lambda: make_soft_targets(run, data, runtime))
        with explain_shortage(recipe.training, folder, runtime.device):
            network = build_network(run, runtime)
            if pretrained:
                note = world.run_together(lambda: copy_pretrained(network, run))
                taught = replace(taught, notes=[*taught.notes, note])
        run = record_start(run, taught, runtime, resumed, out)
        if not resumed:
            world.run_on_main(lambda: locks.enter_context(lock_run(run.folder)))
        describe_start(run, network, taught, runtime)
        fit(run, network, taught, runtime, soft_targets, tracking)
    return run


def prepare_run(
    recipe: Recipe, folder: Path, resumed: Run | None, runtime: Runtime
) -> tuple[Run, PreparedData]:
    """Return the run and its data; extract features that are missing.

    A new run is not on the disk yet.
    """
    from vqa_repro.features.provider import open_or_extract
    from vqa_repro.training.prepare import load_splits, new_run, prepare

    world = runtime.world
    splits = world.run_together(lambda: load_splits(recipe, runtime.root))
    made_by = resumed.features["made_by"] if resumed else None
    store = world.run_together(lambda: open_or_extract(recipe.data, splits, runtime, made_by))
    run = resumed or world.run_together(lambda: new_run(recipe, folder, splits[0], store))
    return run, world.run_together(lambda: prepare(run, splits, store, runtime))


def fit(
    run: Run,
    network: VQAModel,
    data: PreparedData,
    runtime: Runtime,
    soft_targets: Sequence[SoftTargets],
    trackers: Trackers,
) -> None:
    """Train ``network`` to the end, and write the results of the run."""
    from vqa_repro.evaluation.held_out import TEMPERATURES
    from vqa_repro.evaluation.inference import predict_all
    from vqa_repro.reporting import summary
    from vqa_repro.training.loop import Trainer
    from vqa_repro.training.shortage import explain_shortage

    world = runtime.world
    with explain_shortage(run.recipe.training, run.folder, runtime.device), closing(trackers):
        trainer = Trainer(run, network, data, runtime, soft_targets=soft_targets, trackers=trackers)
        seconds = trainer.fit()
        temperatures = TEMPERATURES if run.recipe.data.fold else ()
        predictions = predict_all(network, data.loader, data.test, world, temperatures)
        world.run_on_main(lambda: summary.finish(run, network, data, predictions, seconds))
        world.run_on_main(lambda: trackers.finish(run))


def describe_start(run: Run, network: VQAModel, data: PreparedData, runtime: Runtime) -> None:
    """Print the device, the size of the network and the data, and what is missing."""
    import torch

    from vqa_repro.training.defaults import coverage_line
    from vqa_repro.training.run_folder import missing_capabilities
    from vqa_repro.utils.device import describe

    missing = missing_capabilities(runtime.device, run.recipe.training)
    for line in [*(f"missing: {m}" for m in missing), *(f"note: {note}" for note in data.notes)]:
        print(f"  {line}")
    processes = f", {size} processes" if (size := runtime.world.size) > 1 else ""
    parameters = sum(p.numel() for p in network.parameters())
    print(
        f"  on {describe(runtime.device)}{processes}, torch {torch.__version__}; "
        f"{data.loader.description}\n"
        f"  {parameters:,} parameters; questions: {len(data.train):,} training, "
        f"{len(data.validation):,} validation, {len(data.test):,} test; "
        f"{len(run.vocabulary.words):,} words, {len(run.vocabulary.answers):,} answers\n"
        f"{coverage_line(run, data)}"
        f"  run folder: {run.folder}",
        flush=True,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--recipe",
        type=name_or_path_argument,
        help="a recipe's name (`vqa list` shows all) or a TOML file (default: easy-vqa; with "
        "--data, options for the size of that data)",
    )
    parser.add_argument(
        "--data", type=name_or_path_argument, help="another data set, or a folder with your own"
    )
    parser.add_argument(
        "--features",
        type=name_or_path_argument,
        help="cnn, none, a frozen backbone (vgg19, vgg19-caffe), or a feature store",
    )
    add_weights_option(parser)
    parser.add_argument(
        "--epochs",
        type=whole_number(1, MOST_EPOCHS),
        metavar="N",
        help="passes over the training questions",
    )
    add_several_arguments(parser)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        dest="changes",
        help="change any option of the recipe, for example model.layers=1; may be repeated",
    )
    add_root_option(parser)
    add_skip_damaged_option(parser)
    parser.add_argument(
        "--feature-placement",
        choices=("device", "compressed", "pinned", "disk"),
        help="where features are kept: in the device's memory, there in compressed form, in pinned "
        "host memory, or on the disk (default: the first of these that fits)",
    )
    parser.add_argument("--out", type=path_argument, help="the run folder (default: runs/NAME)")
    parser.add_argument("--resume", action="store_true", help="resume an unfinished run")
    for name, what in [
        ("tensorboard", "also write event files into the run folder"),
        ("wandb", "also log to Weights & Biases, if its package is installed"),
        ("mlflow", "also log to MLflow, if its package is installed"),
    ]:
        parser.add_argument(
            f"--{name}", action="append_const", const=name, dest="trackers", default=[], help=what
        )
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="bit-for-bit reproducible results, also on a GPU (slower)",
    )
    add_device_option(parser)


def main(arguments: list[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    _, args = parse_arguments("train", __doc__, add_arguments, words)
    if type(args.folds) is int or len(args.seeds or []) > 1:
        return train_several(args, words)

    from vqa_repro.features.provider import Runtime
    from vqa_repro.reporting.summary import table
    from vqa_repro.training.defaults import describe_choice
    from vqa_repro.training.loop import Stopped
    from vqa_repro.utils.device import choose_device, use_deterministic_algorithms
    from vqa_repro.utils.distributed import SharedError, init_distributed, leave

    if args.deterministic:
        use_deterministic_algorithms()
    code = 0
    with init_distributed(args.device) as (world, device):
        try:
            recipe = world.run_together(lambda: read_recipe(args))
            if world.is_main and args.data and not args.recipe:
                print(describe_choice(recipe))
            run = train(
                recipe,
                out=args.out,
                resume=args.resume,
                trackers=args.trackers,
                runtime=Runtime(
                    device=choose_device(device),
                    world=world,
                    root=args.root,
                    weights=args.weights,
                    placement=args.feature_placement,
                    skip_damaged=args.skip_damaged,
                ),
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


def train_several(args: argparse.Namespace, words: Sequence[str]) -> int:
    """Train once for each seed, or fold, of the command line ``words``; print their table."""
    from vqa_repro.reporting.comparison import RunSummary
    from vqa_repro.reporting.folds import compare
    from vqa_repro.reporting.tables import markdown
    from vqa_repro.training.run_folder import RUNS

    recipe = read_recipe(args)
    trained = train_side_by_side(args, words, recipe, args.out or RUNS / recipe.name)
    if type(args.folds) is int and len(trained.finished) == args.folds:
        print("\n" + "\n".join(compare([trained.base])))
    elif type(args.folds) is not int and trained.finished:
        print("\n" + markdown([RunSummary.load(folder) for folder in trained.finished]))
    return trained.exit_code()


def read_recipe(args: argparse.Namespace) -> Recipe:
    """Return the recipe with the options of the command line; without one, one made for --data."""
    changes = dict(parse_change(text) for text in args.changes)
    fold = f"1/{args.folds}" if type(args.folds) is int else args.folds  # the first, for all
    for key, value in [
        ("data.name", args.data),
        ("data.features", args.features),
        ("training.epochs", args.epochs),
        ("data.fold", fold),
        ("training.seed", args.seeds[0] if args.seeds else args.seed),
    ]:
        if value is not None:
            changes[key] = value
    data = changes.get("data.name", "easy-vqa")
    if args.recipe or data == "easy-vqa":
        return load_recipe(args.recipe or "easy-vqa", changes)
    from vqa_repro.training.defaults import own_data_recipe

    return own_data_recipe(data, args.root, changes)


def parse_change(text: str) -> tuple[str, Any]:
    """ "training.epochs=3" -> ("training.epochs", 3): the value is written as in TOML."""
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set {text}: write SECTION.KEY=VALUE")
    return key.strip(), parse_value(value.strip())


if __name__ == "__main__":
    main_guard(main)
