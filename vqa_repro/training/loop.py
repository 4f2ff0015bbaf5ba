"""The training loop: epochs, validation, checkpoints, exact resume, early stopping."""

import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from vqa_repro.data.batching import Batch, BatchIndices, plan_batches
from vqa_repro.evaluation.inference import answers_by_id, predict_all
from vqa_repro.evaluation.scoring import label_accuracy
from vqa_repro.evaluation.vqa_accuracy import score
from vqa_repro.features.provider import Runtime
from vqa_repro.models.network import VQAModel, load_weights, save_weights
from vqa_repro.run import Run
from vqa_repro.training.cuda_graphs import GraphedStep, reason_for_eager
from vqa_repro.training.ema import WeightAverage
from vqa_repro.training.logger import Logger, NonFiniteLossError, NonFiniteLossTracker, means
from vqa_repro.training.optim import learning_rate
from vqa_repro.training.optim import resume as resume_optimizer
from vqa_repro.training.prepare import RANK_SEED, PreparedData
from vqa_repro.training.soft_targets import SoftTargets
from vqa_repro.training.step import Step
from vqa_repro.training.trackers import Trackers
from vqa_repro.utils.device import use_precision
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.progress import Progress
from vqa_repro.utils.side_by_side import is_one_of_several
from vqa_repro.utils.signals import SignalHandler
from vqa_repro.utils.torch_utils import random_state, set_random_state

LOG_EVERY = 20  # steps
SAVE_EVERY = 60.0  # seconds of work that a kill can cost


class Stopped(Exception):
    """A signal ended the training; everything is saved."""

    def __init__(self, run: Run, epoch: int, signal: SignalHandler) -> None:
        folder = shlex.quote(str(run.folder))
        # Of several trainings side by side, the command that started them says how to continue.
        again = f"  continue: the same command with --resume --out {folder}\n"
        super().__init__(
            f"stopped in epoch {epoch} of {run.recipe.training.epochs}; saved in {run.folder}\n"
            f"{'' if is_one_of_several() else again}"
            f"  use it as it is: python -m vqa_repro.predict {folder} --image I --question Q"
        )
        self.exit_code = signal.exit_code or 143  # another process got the signal


@dataclass
class TrainState:
    """The progress of a training. checkpoint.pt stores its ``state_dict``."""

    epoch_sums: Tensor  # (3,) totals of this epoch, up to the last log record
    sums: Tensor  # (3,) totals since the last log record
    step: int = 0  # steps done
    epoch: int = 0  # epochs done
    batch: int = 0  # batches done of the next epoch
    best: float = -1.0  # validation accuracy in percent
    best_epoch: int = 0  # counted from 1
    seconds: float = 0.0  # of training, before this process started

    def state_dict(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for field in fields(self):
            value = state[field.name]
            if isinstance(value, Tensor):
                value = value.to(self.sums.device)
            setattr(self, field.name, value)

    def end_record(self) -> None:
        """Add the totals since the last log record to those of the epoch."""
        self.epoch_sums, self.sums = self.epoch_sums + self.sums, torch.zeros_like(self.sums)


class Trainer:
    """Trains ``network`` until the last epoch of the run's recipe, or until a signal.

    soft_targets: targets in addition to the label. trackers: of the log's records.
    """

    def __init__(
        self,
        run: Run,
        network: VQAModel,
        data: PreparedData,
        runtime: Runtime,
        *,
        soft_targets: Sequence[SoftTargets] = (),
        trackers: Trackers | None = None,
    ) -> None:
        self.run, self.network, self.data = run, network, data
        self._training, self._world = run.recipe.training, runtime.world
        self._device = runtime.device
        self._trackers = trackers or Trackers()
        self._weights = run.folder / "model.safetensors"
        self._questions = [data.untaught.digest(), data.validation.digest()]
        use_precision(self._training.precision)
        self._eager = Step(self._training, network, self._world, soft_targets)
        self._step = choose_step(self._eager, self._device)
        self._average = WeightAverage(network, self._training.ema) if self._training.ema else None
        zeros = torch.zeros(3, device=self._device)
        self.state = TrainState(zeros, zeros.clone())
        # With whole images per batch, epochs differ a little in their number of steps.
        self._steps = self._training.epochs * len(self._plan(0))
        # Communication between processes synchronises with the GPU.
        many_gpus = self._world.size > 1 and self._device.type == "cuda"
        self._sync_every = LOG_EVERY if many_gpus else 1

    def fit(self) -> float:
        """Train; return the seconds of training, including those before a resume.

        Raise Stopped when a signal ended it early, SharedError for a loss that is not finite.
        """
        self._restore()
        state, training, world = self.state, self._training, self._world
        self._started = self._saved = time.monotonic()
        count = len(self.data.train)
        total, done = training.epochs * count, state.epoch * count
        self._tracker = NonFiniteLossTracker(self.data.train.question_id)
        self.network.train()
        with (
            Progress("training", "questions", total, done, show=world.is_main) as self._progress,
            SignalHandler() as self._signals,
            self._tracker.explain(),
        ):
            self._log = self._open_log()
            while state.epoch < training.epochs and not self._stops_early():
                self._run_epoch()
        if self._average:
            self._average.apply()
        if training.keep == "best":
            world.run_on_main(lambda: load_weights(self.network, self._weights))
            world.broadcast_weights(self.network)
            print(f"  selected: epoch {state.best_epoch}, validation {state.best:.2f}%")
        return self._seconds()

    def _stops_early(self) -> bool:
        """Return whether the last ``patience`` epochs were no better than the one before them."""
        patience, state = self._training.patience, self.state
        if not len(self.data.validation):  # every epoch is as good
            return False
        if not patience or state.epoch - state.best_epoch < patience:
            return False
        self._progress.line(f"  early stopping: no better epoch since epoch {state.best_epoch}")
        return True

    def _run_epoch(self) -> None:
        """Train on the remaining batches of an epoch, then validate, log and save."""
        state, loader = self.state, self.data.loader
        plan = self._plan(state.epoch)
        self._progress.advance(sum(indices.total for indices in plan[: state.batch]))
        with closing(loader.epoch(self.data.train, plan[state.batch :])) as batches:
            for batch in batches:
                self._train_on(batch, len(plan))
                if state.batch < len(plan) and state.step % self._sync_every == 0:
                    self._save_if_due()
        self._end_epoch()

    def _end_epoch(self) -> None:
        state = self.state
        state.end_record()
        record: dict[str, Any] = {"type": "epoch", "step": state.step, "epoch": state.epoch + 1}
        record |= means(state.epoch_sums, state.step)
        state.epoch_sums = torch.zeros_like(state.epoch_sums)
        state.epoch, state.batch = state.epoch + 1, 0
        if len(self.data.validation):
            record["validation_accuracy"] = self._validate()
        every = self._training.test_every
        if every and state.epoch % every == 0:
            record["test_accuracy"] = self._test()
        record["seconds"] = self._seconds()
        record["questions_per_second"] = state.epoch * len(self.data.train) / record["seconds"]
        self._log.write(record)
        self._save()  # first: a terminal that is gone refuses the line
        self._progress.line(describe_epoch(record, self._training.epochs))
        (stop,) = self._world.any(self._signals.signal is not None)
        if stop and state.epoch < self._training.epochs:
            raise Stopped(self.run, state.epoch, self._signals)

    def _train_on(self, batch: Batch, batches: int) -> None:
        """Train on ``batch``, one of ``batches`` in this epoch; log every LOG_EVERY steps."""
        state = self.state
        rate = learning_rate(self._training, state.step, self._steps)
        totals = self._step(batch, rate)
        if self._average:
            self._average.update()
        state.sums += totals
        state.step, state.batch = state.step + 1, state.batch + 1
        loss = totals[0] / batch.total
        self._tracker.add(state.step, state.epoch + 1, state.batch, batch.positions, loss)
        self._progress.advance(batch.total)
        if state.step % LOG_EVERY == 0:
            position = state.epoch + state.batch / batches
            record = {"type": "step", "step": state.step, "epoch": position, "rate": rate}
            self._log.defer(record, state.sums)
            state.end_record()

    def _validate(self) -> float:
        """Return the validation accuracy in percent; record the best epoch."""
        validation, world = self.data.validation, self._world
        with self._averaged():
            predictions = predict_all(self.network, self.data.loader, validation, world)
            accuracy = label_accuracy(predictions, validation)
            if accuracy > self.state.best:
                self.state.best, self.state.best_epoch = accuracy, self.state.epoch
        return accuracy

    def _test(self) -> float:
        """Return the official accuracy on the test in percent; it chooses nothing."""
        data = self.data
        with self._averaged():
            predictions = predict_all(self.network, data.loader, data.test, self._world)
        results = answers_by_id(predictions, data.test, self.run.vocabulary.answers)
        return score(results, data.test_split.examples)["overall"]

    def _averaged(self) -> AbstractContextManager[None]:
        """Give the network the weights that are validated and kept meanwhile."""
        return self._average.applied() if self._average else nullcontext()

    def _save_if_due(self) -> None:
        """Save every SAVE_EVERY seconds and after a signal, which also ends the training."""
        due = self._world.is_main and time.monotonic() - self._saved > SAVE_EVERY
        due, stop = self._world.any(due, self._signals.signal is not None)
        if due or stop:
            self._save()
        if stop:
            raise Stopped(self.run, self.state.epoch + 1, self._signals)

    def _save(self) -> None:
        """Save a checkpoint and the current weights."""
        self._log.flush()
        if self.state.sums[2]:
            means(self.state.sums, self.state.step)  # never save what a non-finite loss made
        weights = [v for v in self.network.state_dict().values() if v.is_floating_point()]
        if not torch.stack([value.isfinite().all() for value in weights]).all():
            raise NonFiniteLossError(self.state.step)  # the next one would be
        checkpoint = {
            "network": self.network.state_dict(),
            "optimizer": self._eager.optimizer.state_dict(),
            **self.state.state_dict(),
            "questions": self._questions,
            "seconds": self._seconds(),
            "random": self._world.all_gather(random_state(self._device)),
        }
        if self._average:
            checkpoint["average"] = self._average.state_dict()

        def write() -> None:
            self.run.save_checkpoint(checkpoint)
            if self._keeps_current() or not self._weights.exists():
                self._save_weights()

        self._world.run_on_main(write)
        self._saved = time.monotonic()

    def _keeps_current(self) -> bool:
        """Return whether the weights to keep are the current ones, as far as is known."""
        at_best = self.state.batch == 0 and self.state.epoch == self.state.best_epoch
        return self._training.keep == "last" or at_best

    def _save_weights(self) -> None:
        with self._averaged():
            save_weights(self.network, self._weights)

    def _restore(self) -> None:
        """Load the newest checkpoint, if there is one, to resume exactly there."""
        run, state, world = self.run, self.state, self._world
        checkpoint = world.run_on_main(lambda: run.load_checkpoint(print))
        if checkpoint is None:
            return
        # Checkpoints of older versions do not have it.
        if checkpoint.get("questions", self._questions) != self._questions:
            raise UserError(
                f"{run.folder}: {run.recipe.data.name} has other questions now than when this run "
                "began: restore them, or train with another --out"
            )
        with run.restoring():
            self.network.load_state_dict(checkpoint["network"])
            resume_optimizer(self._eager.optimizer, checkpoint["optimizer"])
            state.load_state_dict(checkpoint)
            if self._average:
                self._average.load_state_dict(checkpoint["average"])
            if self._keeps_current():
                world.run_on_main(self._save_weights)  # a kill may have come before it
            random = checkpoint["random"]
            if len(random) == world.size:
                set_random_state(random[world.rank], self._device)
        epochs = self._training.epochs
        print(f"  resumed after step {state.step}, in epoch {state.epoch + 1} of {epochs}")
        if len(random) != world.size:
            print(
                f"  started with {len(random)} processes, resumes with {world.size}: dropout and "
                "sampled answers differ from those of an uninterrupted training"
            )
            torch.manual_seed(self._training.seed + RANK_SEED * world.rank + state.step)

    def _open_log(self) -> Logger:
        if self._world.is_main:
            self.run.keep_log_until(self.state.step)
        self._world.run_on_main(lambda: self._trackers.start(self.run, self.state.step))
        return Logger(self.run, self._world, self._trackers, self._progress.note)

    def _plan(self, epoch: int) -> list[BatchIndices]:
        training = self._training
        seed = training.seed * 1_000_003 + epoch
        return plan_batches(self.data.train, training.batch_size, training.order, seed, self._world)

    def _seconds(self) -> float:
        return self.state.seconds + time.monotonic() - self._started


def choose_step(step: Step, device: torch.device) -> Callable[[Batch, float], Tensor]:
    """Return ``step`` as a CUDA graph if possible; else unchanged, with a note on a GPU."""
    reason = reason_for_eager(step.network, device)
    if reason is None:
        return GraphedStep(step)
    if device.type == "cuda":
        print(f"  no CUDA graphs: {reason}")
    return step


def describe_epoch(record: dict[str, Any], epochs: int) -> str:
    accuracy = record.get("validation_accuracy")
    validation = f", validation {accuracy:.2f}%" if accuracy is not None else ""
    if "test_accuracy" in record:
        validation += f", test {record['test_accuracy']:.2f}%"
    left = record["seconds"] / record["epoch"] * (epochs - record["epoch"])
    return (
        f"  epoch {record['epoch']:>2}/{epochs}: loss {record['loss']:.4f}, "
        f"accuracy {record['accuracy']:.2f}%{validation}; "
        f"{record['questions_per_second']:,.0f} questions/s, {left:.0f} s left"
    )
