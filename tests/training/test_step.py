"""A training step: grouped questions, padded batches, and replayed CUDA graphs."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import steps
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vqa_repro.data.batching import Batch, plan_batches
from vqa_repro.features.loader import FeatureLoader
from vqa_repro.models.hiecoatt import HieCoAtt
from vqa_repro.models.network import MODELS as ALL_MODELS
from vqa_repro.models.network import VQAModel
from vqa_repro.models.san import SAN
from vqa_repro.recipe import Training
from vqa_repro.training.cuda_graphs import GraphedStep, StaticInputs, rounded_up
from vqa_repro.training.optim import before_step, learning_rate, make_optimizer, resume
from vqa_repro.training.step import Step
from vqa_repro.utils.distributed import SINGLE_PROCESS, World

CPU = torch.device("cpu")
SIZES = (steps.WORDS, steps.ANSWERS, steps.CHANNELS)
MODELS: dict[str, Callable[[], nn.Module]] = {
    "san": lambda: SAN(*SIZES, **steps.SAN_OPTIONS),
    "san released": lambda: SAN(*SIZES, fidelity="released", **steps.SAN_OPTIONS),
    "hiecoatt parallel": lambda: HieCoAtt(*SIZES, hidden=6, last_hidden=8, dropout=0.0),
    "hiecoatt alternating": lambda: HieCoAtt(
        *SIZES, coattention="alternating", hidden=6, last_hidden=8, dropout=0.0
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_questions_that_share_an_image_have_the_gradients_of_single_questions(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().double()
    _, questions = steps.made_up(pictures=False)
    (batch,) = plan_batches(questions, 1000, "grouped")
    grid = torch.randn(len(batch.rows), steps.REGIONS, steps.CHANNELS, dtype=torch.float64)
    positions = batch.positions
    tokens, lengths = questions.tokens[positions], questions.lengths[positions]
    gradients = []
    for given, image_of in ((grid, batch.image_index), (grid[batch.image_index], None)):
        logits = model(given, tokens, lengths, image_of).logits
        loss = nn.functional.cross_entropy(logits, questions.label[positions])
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    for (parameter, _), a, b in zip(model.named_parameters(), *gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14, msg=parameter)


def a_step(case: str, training: Training | None = None, world: World = SINGLE_PROCESS) -> Step:
    return Step(training or steps.CASES[case], steps.network(case).train(), world)


def an_epoch(seed: int = 0, size: int = 8) -> list[Batch]:
    """Return batches of grouped questions about made-up features."""
    store, questions = steps.made_up(pictures=False)
    loader = FeatureLoader(store, CPU)
    return list(loader.epoch(questions, plan_batches(questions, size, "grouped", seed)))


@pytest.mark.parametrize("case", ["san", "hiecoatt"])
def test_padding_a_batch_changes_no_gradient(case: str) -> None:
    step, plan = a_step(case), an_epoch()
    static = StaticInputs((32, 12, 6), plan[0])
    for batch in plan:  # the padding of the second keeps values of the first
        static.copy_from(batch)
        totals, gradients = [], []
        for inputs in (batch, static.batch):
            totals.append(step.compute_gradients(inputs))
            gradients.append([p.grad.clone() for p in step.parameters])
        torch.testing.assert_close(*totals)
        for (name, _), a, b in zip(step.network.named_parameters(), *gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7, msg=name)
        assert totals[1][2] == len(batch) < 32


class OnMeta(TorchDispatchMode):
    """Refuse host tensors, which would have to be copied to the device."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        assert all(tensor.is_meta for tensor in tensors), func
        # torch.tensor and lists as indices create host tensors.
        assert func is not torch.ops.aten.lift_fresh.default
        return func(*args, **(kwargs or {}))


ON_META: dict[str, Callable[[], nn.Module]] = {
    **{name: partial(model, *SIZES) for name, model in ALL_MODELS.items()},
    "san, released": lambda: SAN(*SIZES, fidelity="released"),
    "san, cnn": lambda: SAN(*SIZES, question="cnn"),
    "hiecoatt, released": lambda: HieCoAtt(*SIZES, fidelity="released"),
    "hiecoatt, alternating": lambda: HieCoAtt(*SIZES, coattention="alternating"),
}


@pytest.mark.parametrize("name", ON_META)
def test_a_step_neither_reads_from_the_device_nor_writes_to_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A captured step must not do either. Tensors on "meta" have no values to read."""
    meta = torch.device("meta")
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # unknown
    with meta:
        network = VQAModel(None, ON_META[name](), regions=0.5).train()
    (batch,) = an_epoch(size=1000)
    parts = {name: getattr(batch, name) for name in Batch.__dataclass_fields__}
    on_meta = {n: part.to(meta) if isinstance(part, Tensor) else part for n, part in parts.items()}
    batch = Batch(**on_meta)
    training = Training(
        epochs=1, learning_rate=0.1, optimizer="rmsprop", clip=0.1, weight_decay=0.1, answers="soft"
    )
    for clip_per in ("tensor", "all"):
        changed = replace(training, clip_per=clip_per)  # type: ignore[arg-type]
        step = Step(changed, network)
        static = StaticInputs((64, 16, 6), batch)
        with OnMeta():
            static.copy_from(batch)
            assert step.compute_gradients(static.batch).shape == (3,)
            before_step(changed, network)
        assert all(p.grad is not None and p.grad.is_meta for p in network.parameters())


class Recomputed:
    """Replace CUDA graphs: a replay computes on the present content of the static inputs."""

    def __init__(self, error: str = "") -> None:
        self.captured = 0
        self._error = error

    def warm_up(self, work: Callable[[], Tensor]) -> Tensor:
        return work()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        if self._error:
            raise RuntimeError(self._error)
        self.captured += 1
        return work


class Alike(World):
    """Two processes with equal values: summing doubles."""

    def all_reduce(self, values: Tensor) -> Tensor:
        return values.mul_(2)


@pytest.mark.parametrize("world", [SINGLE_PROCESS, Alike(0, 2)], ids=["one process", "two"])
def test_replays_train_as_eager_steps_do(world: World) -> None:
    """Check a graphed step without CUDA: sizes, static inputs, when it is captured."""
    training = Training(epochs=1, learning_rate=0.05, optimizer="sgd", clip=0.5)
    eager, wrapped = (a_step("san", training, world) for _ in range(2))
    graphs = Recomputed()
    graphed = GraphedStep(wrapped, graphs)
    done, sizes = 0, set()
    for epoch in range(6):
        for batch in an_epoch(epoch):
            rate = learning_rate(training, done, 100)
            torch.testing.assert_close(graphed(batch, rate), eager(batch, rate))
            sizes.add((len(batch), len(batch.features), batch.tokens.shape[1]))
            done += 1
    for a, b in zip(wrapped.parameters, eager.parameters, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert 1 <= graphs.captured <= len(sizes) and graphs.captured < done / 2


def test_sizes_are_few_and_at_most_an_eighth_too_large() -> None:
    sizes = [rounded_up(count, 4) for count in range(2000)]
    assert sizes == sorted(sizes) and len(set(sizes)) < 70
    assert all(size >= max(1, count) for count, size in enumerate(sizes))
    assert all(size <= max(count + 3, count * 9 / 8) for count, size in enumerate(sizes) if count)


def test_a_step_that_cannot_be_captured_runs_eagerly_with_one_note(
    capsys: pytest.CaptureFixture[str],
) -> None:
    eager = a_step("san")
    graphed = GraphedStep(a_step("san"), Recomputed("not permitted when stream is capturing"))
    for epoch in range(3):
        for batch in an_epoch(epoch):
            torch.testing.assert_close(graphed(batch, 0.01), eager(batch, 0.01))
    printed = capsys.readouterr().out
    assert printed.count("no CUDA graphs") == 1 and "not permitted" in printed


def test_a_resumed_optimiser_takes_the_options_of_the_present_device() -> None:
    training = steps.CASES["hiecoatt"]
    network = steps.network("hiecoatt")
    state = make_optimizer(training, network).state_dict()
    for group in state["param_groups"]:  # as a GPU leaves it
        group |= {"lr": torch.tensor(7.0), "capturable": True}
    optimizer = make_optimizer(training, network)
    resume(optimizer, state)
    for group in optimizer.param_groups:
        assert group["lr"] == training.learning_rate and not group["capturable"]


def test_training_drops_regions_and_evaluation_keeps_all() -> None:
    seen: list[Tensor] = []

    class Looks(nn.Module):
        def forward(self, grid: Tensor, *_: object) -> None:
            seen.append(grid)

    rows = torch.arange(3 * 8.0).view(3, 8, 1).expand(3, 8, 2).half()
    network = VQAModel(None, Looks(), 0.5, regions=0.25)
    torch.manual_seed(0)
    for _ in range(2):
        network(rows, rows, rows)
    network.eval()(rows, rows, rows)
    first, second, answering = (2 * grid[:, :, 0] for grid in seen)
    assert first.shape == (3, 2) and not torch.equal(first, second)
    for picture, regions in enumerate(first):
        assert len(set(regions.tolist()) & set(range(8 * picture, 8 * picture + 8))) == 2
    torch.testing.assert_close(answering, rows[:, :, 0].float())
