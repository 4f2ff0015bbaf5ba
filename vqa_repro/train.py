"""Train a model on a data set; write one run folder.

    python -m vqa_repro.train                        # SAN on easy-VQA, minutes on two CPU cores
    python -m vqa_repro.train --recipe easy-vqa --seed 1 --out runs/second
    python -m vqa_repro.train --resume               # resume the newest run of the recipe
    python -m vqa_repro.train --set model.layers=1   # any option of the recipe
    torchrun --nproc-per-node 4 -m vqa_repro.train   # one process for each of four GPUs

Ctrl-C, SIGTERM and SIGUSR1 save and stop; --resume continues exactly there.

Exit codes: 0 trained; 2 bad input; 130, 143, 138 stopped by Ctrl-C, SIGTERM, SIGUSR1.
"""

from __future__ import annotations

import argparse
import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqa_repro.recipe import Recipe, Training, load_recipe, parse_value, recipe_names
from vqa_repro.utils.errors import EXIT_BAD_INPUT, UserError, main_guard
from vqa_repro.utils.paths import path_argument

if TYPE_CHECKING:
    import torch

    from vqa_repro.features.provider import Runtime
    from vqa_repro.models.network import VQAModel
    from vqa_repro.run import Run
    from vqa_repro.training.prepare import PreparedData


def train(
    recipe: Recipe,
    *,
    out: Path | None = None,
    resume: bool = False,
    tensorboard: bool = False,
    runtime: Runtime | None = None,
) -> Run:
    """Train ``recipe`` and return the finished run.

    out: the run folder; by default the first free one of runs/NAME, runs/NAME-2, ...
    resume: continue the run in ``out``, or the newest of this recipe if there is one.
    runtime: by default the best device of this machine.
    Raise UserError for bad input, ``training.loop.Stopped`` when a signal ended it early.
    """
    import torch

    from vqa_repro.evaluation.inference import predict_all
    from vqa_repro.evaluation.titles import model_title
    from vqa_repro.features.provider import Runtime, open_or_extract
    from vqa_repro.models.network import build, check_memory
    from vqa_repro.reporting import summary
    from vqa_repro.training import loop
    from vqa_repro.training.prepare import load_splits, new_run, prepare
    from vqa_repro.training.run_folder import choose_run, lock_run
    from vqa_repro.training.shortage import explain_shortage
    from vqa_repro.utils.device import choose_device

    runtime = runtime or Runtime(choose_device("auto"))
    world, device = runtime.world, runtime.device
    folder, resumed = world.run_on_main(lambda: choose_run(recipe, out, resume))
    if resumed and resumed.finished:
        print(f"{folder} is finished; --seed or --out makes another run")
        return resumed
    with ExitStack() as stack:
        if resumed:
            world.run_on_main(lambda: _enter(stack, lock_run(folder)))
        torch.manual_seed(recipe.training.seed)
        print(model_title(recipe))
        splits = world.run_together(lambda: load_splits(recipe, runtime.root))
        store = world.run_together(lambda: open_or_extract(recipe.data, splits, runtime))
        run = resumed or world.run_together(lambda: new_run(recipe, folder, splits[0], store))
        data = world.run_together(lambda: prepare(run, splits, store, runtime))
        world.run_together(lambda: check_memory(run, device))
        with explain_shortage(recipe.training, folder, device):
            network = build(run).to(device)
        world.broadcast_weights(network)
        if world.rank:  # random numbers of its own from here on
            torch.manual_seed(recipe.training.seed + loop.RANK_SEED * world.rank)
        claimed = world.run_on_main(lambda: record_start(run, data, runtime, resumed, out))
        run = replace(run, folder=claimed)
        if not resumed:
            world.run_on_main(lambda: _enter(stack, lock_run(run.folder)))
        describe_start(run, network, data, runtime)
        with explain_shortage(recipe.training, run.folder, device):
            trainer = loop.Trainer(run, network, data, runtime, tensorboard=tensorboard)
            seconds = trainer.fit()
            predictions = predict_all(network, data.loader, data.test, world)
            world.run_on_main(lambda: summary.finish(run, network, data, predictions, seconds))
    return run


def _enter(stack: ExitStack, lock: Any) -> None:
    stack.enter_context(lock)


def record_start(
    run: Run, data: PreparedData, runtime: Runtime, resumed: Run | None, out: Path | None
) -> Path:
    """Create the run folder, or record where the run is resumed; return the folder."""
    import torch

    from vqa_repro.diagnostics.facts import environment
    from vqa_repro.run import record_resumed
    from vqa_repro.training.run_folder import claim_run
    from vqa_repro.utils.device import describe

    facts: dict[str, Any] = {
        "device": describe(runtime.device),
        "torch_build": torch.__version__,
        "processes": runtime.world.size,
        "without": missing_capabilities(runtime.device, run.recipe.training) + data.notes,
    }
    if resumed:
        record_resumed(run, facts)
        return run.folder
    facts["features"] = data.loader.description
    return claim_run(run, {**environment(), **facts}, out).folder


def describe_start(run: Run, network: VQAModel, data: PreparedData, runtime: Runtime) -> None:
    import torch

    from vqa_repro.utils.device import describe

    for line in missing_capabilities(runtime.device, run.recipe.training):
        print(f"  missing: {line}")
    for line in data.notes:
        print(f"  note: {line}")
    size = runtime.world.size
    processes = f", {size} processes" if size > 1 else ""
    parameters = sum(p.numel() for p in network.parameters())
    print(
        f"  on {describe(runtime.device)}{processes}, torch {torch.__version__}; "
        f"{data.loader.description}\n"
        f"  {parameters:,} parameters; questions: {len(data.train):,} training, "
        f"{len(data.validation):,} validation, {len(data.test):,} test; "
        f"{len(run.vocabulary.words):,} words, {len(run.vocabulary.answers):,} answers\n"
        f"  run folder: {run.folder}",
        flush=True,
    )


def missing_capabilities(device: torch.device, training: Training) -> list[str]:
    """Return what this machine lacks, one line each, as bootstrap.sh and torch found it."""
    import torch

    from vqa_repro.utils.device import has_bfloat16

    lines = [line for line in os.environ.get("VQA_REPRO_WITHOUT", "").splitlines() if line]
    if device.type == "cpu":
        reason = "--device cpu" if torch.cuda.is_available() else "torch sees none"
        lines.insert(0, f"GPU: {reason}")
    if training.precision == "bfloat16" and not has_bfloat16(device):
        lines.append("bfloat16: not known to be supported here; computed in float32")
    return lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--recipe", help=f"{', '.join(recipe_names())}, or a TOML file (default: easy-vqa)"
    )
    parser.add_argument("--data", help="train on another data set, or a folder of your own")
    parser.add_argument(
        "--features", help="cnn, none, a frozen backbone (vgg19, vgg19-caffe), or a feature store"
    )
    parser.add_argument(
        "--weights",
        type=path_argument,
        help="the backbone's checkpoint (default: the downloaded one)",
    )
    parser.add_argument("--epochs", type=int, help="passes over the training questions")
    parser.add_argument("--seed", type=int, help="of all random numbers (default: 0)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        dest="changes",
        help="change any option of the recipe, for example model.layers=1; may be repeated",
    )
    parser.add_argument(
        "--root", type=path_argument, default=Path("resources"), help="folder of the data sets"
    )
    parser.add_argument(
        "--skip-damaged",
        "--leave-out-damaged",
        action="store_true",
        help="skip the questions about images that cannot be read",
    )
    parser.add_argument(
        "--feature-placement",
        choices=("device", "compressed", "pinned", "disk"),
        help="where features are kept (default: the first that fits): in the device's memory, "
        "there in compressed form, in pinned host memory, on the disk",
    )
    parser.add_argument("--out", type=path_argument, help="the run folder (default: below runs/)")
    parser.add_argument("--resume", action="store_true", help="resume an unfinished run")
    parser.add_argument(
        "--tensorboard", action="store_true", help="write event files into the run folder too"
    )
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="the same numbers bit for bit each time also on a GPU, at the cost of speed",
    )
    parser.add_argument(
        "--device",
        default="auto",
        metavar="auto|cpu|cuda|cuda:N",
        help="where to compute; auto is the first GPU, or the CPU if there is none",
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m vqa_repro.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    args = parser.parse_args(arguments)
    recipe = read_recipe(args)

    from vqa_repro.features.provider import Runtime
    from vqa_repro.reporting.summary import table
    from vqa_repro.training.loop import Stopped
    from vqa_repro.utils.device import choose_device, use_deterministic_algorithms
    from vqa_repro.utils.distributed import SharedError, init_distributed, leave

    if args.deterministic:
        use_deterministic_algorithms()
    code = 0
    with init_distributed(args.device) as (world, device):
        try:
            run = train(
                recipe,
                out=args.out,
                resume=args.resume,
                tensorboard=args.tensorboard,
                runtime=Runtime(
                    choose_device(device),
                    world,
                    args.root,
                    args.weights,
                    args.feature_placement,
                    args.skip_damaged,
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


def read_recipe(args: argparse.Namespace) -> Recipe:
    """Return the recipe with the changes of the command line."""
    changes = dict(parse_change(text) for text in args.changes)
    for key, value in [
        ("data.name", args.data),
        ("data.features", args.features),
        ("training.epochs", args.epochs),
        ("training.seed", args.seed),
    ]:
        if value is not None:
            changes[key] = value
    return load_recipe(args.recipe or "easy-vqa", changes)


def parse_change(text: str) -> tuple[str, Any]:
    """ "training.epochs=3" -> ("training.epochs", 3): the value is written as in TOML."""
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set {text}: write SECTION.KEY=VALUE")
    return key.strip(), parse_value(value.strip())


if __name__ == "__main__":
    main_guard(main)
