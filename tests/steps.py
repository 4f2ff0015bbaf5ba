"""A few training steps on made-up features; test_distributed.py starts them in several processes.

torchrun --nproc-per-node 2 tests/steps.py FILE    # the first process writes the results
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vqa_repro.data.batching import plan_batches
from vqa_repro.data.questions import Questions
from vqa_repro.features.loader import FeatureLoader
from vqa_repro.features.store import Store
from vqa_repro.models.cnn import SmallCNN
from vqa_repro.models.hiecoatt import HieCoAtt
from vqa_repro.models.network import VQAModel
from vqa_repro.models.san import SAN
from vqa_repro.recipe import Training
from vqa_repro.training.step import Step
from vqa_repro.utils.distributed import SINGLE_PROCESS, World, init_distributed, leave

PICTURES, WORDS, ANSWERS, REGIONS, CHANNELS = 11, 9, 5, 4, 6
SAN_OPTIONS = {"embedding": 4, "hidden": 8, "attention": 5, "dropout": 0.0}
SGD = {"optimizer": "sgd", "learning_rate": 0.05, "weight_decay": 1e-3, "clip_per": "tensor"}
# A batch of 3 grouped questions mostly has one image: the other process has no share of it.
CASES = {
    "san": Training(epochs=1, batch_size=8, order="iid", clip=0.1, answers="soft", **SGD),
    "hiecoatt": Training(
        epochs=1, batch_size=3, order="grouped", clip=0.5, learning_rate=1e-3, optimizer="rmsprop"
    ),
    # Normalisation over few images amplifies rounding, so the steps are small.
    "cnn": Training(epochs=1, batch_size=3, order="grouped", learning_rate=1e-3, optimizer="sgd"),
}


def made_up(pictures: bool) -> tuple[Store, Questions]:
    rng = np.random.default_rng(0)
    if pictures:
        rows = rng.integers(0, 256, (PICTURES, 16, 16, 3), dtype=np.uint8)
    else:
        rows = rng.normal(size=(PICTURES, REGIONS, CHANNELS)).astype(np.float16)
    row = np.repeat(np.arange(PICTURES), rng.integers(1, 5, PICTURES))
    lengths = rng.integers(1, 6, len(row))
    tokens = rng.integers(2, WORDS, (len(row), 6)) * (np.arange(6) < lengths[:, None])
    arrays = {
        "question_id": np.arange(len(row)),
        "tokens": tokens,
        "lengths": lengths,
        "row": row,
        "label": rng.integers(0, ANSWERS, len(row)),
        "answers": rng.integers(0, ANSWERS, (len(row), 3)),
    }
    questions = Questions(**{name: torch.from_numpy(array) for name, array in arrays.items()})
    return Store(Path("made up"), rows, {}, {}), questions


def network(case: str) -> VQAModel:
    torch.manual_seed(1)
    if case == "hiecoatt":
        model: torch.nn.Module = HieCoAtt(
            WORDS, ANSWERS, CHANNELS, hidden=6, last_hidden=8, dropout=0.0
        )
        return VQAModel(None, model)
    cnn = SmallCNN(16) if case == "cnn" else None
    return VQAModel(cnn, SAN(WORDS, ANSWERS, 16 if cnn else CHANNELS, **SAN_OPTIONS))


def steps(case: str, world: World = SINGLE_PROCESS) -> dict[str, Tensor]:
    """Return the weights after an epoch and the totals of every step."""
    training = CASES[case]
    store, questions = made_up(pictures=case == "cnn")
    store = Store(store.path, store.rows[world.rank :: world.size], {}, {})
    net = network(case).train()
    step, loader = Step(training, net, world), FeatureLoader(store, torch.device("cpu"))
    plan = plan_batches(questions, training.batch_size, training.order, 0, world)
    totals = [step(batch, training.learning_rate) for batch in loader.epoch(questions, plan)]
    return {"totals": torch.stack(totals), **net.state_dict()}


if __name__ == "__main__":
    with init_distributed("cpu") as (this, _):
        found = {case: steps(case, this) for case in CASES}
        if this.is_main:
            torch.save(found, sys.argv[1])
    if not this.is_main:
        leave(0)
