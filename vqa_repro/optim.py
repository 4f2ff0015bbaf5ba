"""Optimisers and learning-rate schedules, by the recipe's words."""

import math

import torch
from torch import nn

from vqa_repro.recipe import Training

WARM_UP = 0.1  # of all steps


def make_optimizer(training: Training, network: nn.Module) -> torch.optim.Optimizer:
    """The recipe's optimiser. Weight decay spares biases, norms and embeddings."""
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for module in network.modules():
        for parameter in module.parameters(recurse=False):
            plain = parameter.ndim < 2 or isinstance(module, nn.Embedding)
            (spared if plain else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": training.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=training.learning_rate)


def learning_rate(training: Training, step: int, steps: int) -> float:
    """The rate for ``step`` (from 0) of ``steps``: linear warm-up, then half a cosine to zero."""
    warm_up = max(1.0, WARM_UP * steps)
    if step < warm_up:
        return training.learning_rate * (step + 1) / warm_up
    progress = (step - warm_up) / max(1.0, steps - warm_up)
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
