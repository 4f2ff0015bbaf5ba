"""Optimisers and learning-rate schedules, as configured in the recipe."""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vqa_repro.models.ops.attention import triton_works
from vqa_repro.recipe import Training

if TYPE_CHECKING:
    from vqa_repro.training.fused_update import FusedUpdate

WARM_UP = 0.1  # share of all steps, for the cosine schedule


def make_optimizer(training: Training, network: nn.Module) -> torch.optim.Optimizer:
    """Return the recipe's optimiser, to be used with ``before_step`` and ``set_rate``.

    adamw: decoupled weight decay, not applied to biases, norms and word embeddings. sgd, rmsprop:
    as in the authors' code of SAN and HieCoAtt; weight decay is part of the gradient (see
    ``before_step``) and not applied to word embeddings. On a GPU the learning rates are tensors on
    the device, so that a captured step reads their current values.
    """
    embeddings, vectors, matrices = [], [], []
    for module in network.modules():
        for parameter in module.parameters(recurse=False):
            if isinstance(module, nn.Embedding):
                embeddings.append(parameter)
            elif parameter.ndim < 2:
                vectors.append(parameter)
            else:
                matrices.append(parameter)
    decoupled = training.weight_decay if training.optimizer == "adamw" else 0.0
    groups = [
        {"params": matrices, "weight_decay": decoupled, "scale": 1.0},
        {"params": vectors, "weight_decay": 0.0, "scale": 1.0},
        {"params": embeddings, "weight_decay": 0.0, "scale": training.embedding_rate},
    ]
    groups = [group for group in groups if group["params"]]
    rate: float | Tensor = training.learning_rate
    on_gpu = any(parameter.is_cuda for parameter in network.parameters())
    if on_gpu:
        for group in groups:
            group["lr"] = torch.tensor(rate, device=next(network.parameters()).device)
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=training.momentum, fused=True)
    if training.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, lr=rate, alpha=0.99, eps=1e-8, capturable=on_gpu)
    return torch.optim.AdamW(groups, lr=rate, fused=True, capturable=on_gpu)


def resume(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load ``state``, but keep the options of this recipe and device."""
    options = [
        {name: value for name, value in group.items() if name != "params"}
        for group in optimizer.param_groups
    ]
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, options, strict=True):
        group.update(own)
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                values[name] = value.to(parameter.device)


def before_step(training: Training, network: nn.Module) -> None:
    """Apply weight decay and clipping to the gradients, before the optimiser's step.

    The decay is clipped too, because SAN's code has it in the loss. With ``clip_per = "tensor"``
    the gradient of each tensor is clipped separately to the L2 norm ``clip``.
    """
    if training.optimizer != "adamw" and training.weight_decay:
        decaying = [
            (parameter.grad, parameter.detach())
            for module in network.modules()
            if not isinstance(module, nn.Embedding)
            for parameter in module.parameters(recurse=False)
            if parameter.grad is not None
        ]
        if decaying:
            torch._foreach_add_(
                [gradient for gradient, _ in decaying],
                [parameter for _, parameter in decaying],
                alpha=training.weight_decay,
            )
    if not training.clip:
        return
    if training.clip_per == "all":
        nn.utils.clip_grad_norm_(network.parameters(), training.clip)
        return
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    # All norms as one tensor: three kernels in total instead of three per parameter.
    scales = (training.clip / torch.stack(torch._foreach_norm(gradients))).clamp(max=1.0)
    torch._foreach_mul_(gradients, scales.unbind())


def fuse(training: Training, network: nn.Module, optimizer: torch.optim.Optimizer) -> "FusedUpdate":
    """Return ``before_step`` and ``optimizer.step`` as two kernels (sgd and rmsprop)."""
    from vqa_repro.training.fused_update import FusedUpdate

    embeddings = (part for part in network.modules() if isinstance(part, nn.Embedding))
    spared = {parameter for part in embeddings for parameter in part.parameters()}
    return FusedUpdate(
        optimizer,
        set(network.parameters()) - spared,
        weight_decay=training.weight_decay,
        clip=training.clip,
        clip_per=training.clip_per,
    )


def fuse_if_possible(
    training: Training, network: nn.Module, optimizer: torch.optim.Optimizer
) -> "FusedUpdate | None":
    """Return the fused update on a GPU where Triton's kernels work; None otherwise."""
    device = next(network.parameters()).device
    # The kernels take weights as flat float32 arrays.
    plain = all(p.is_contiguous() and p.dtype is torch.float32 for p in network.parameters())
    if training.optimizer == "adamw" or not plain or not triton_works(device):
        return None
    from vqa_repro.training import fused_update

    if failure := fused_update.self_test(device):
        tqdm.write(f"  warning: the fused update is not used ({failure})")
        return None
    return fuse(training, network, optimizer)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate * group["scale"])
        else:
            group["lr"] = rate * group["scale"]


def learning_rate(training: Training, step: int, steps: int) -> float:
    """Return the learning rate of ``step`` (from 0) of ``steps``.

    constant; exponential: divided by ten every ``decade`` steps; cosine: linear warm-up, then half
    a cosine to zero.
    """
    if training.schedule == "constant":
        return training.learning_rate
    if training.schedule == "exponential":
        return training.learning_rate * math.exp(math.log(0.1) * step / training.decade)
    warm_up = max(1.0, WARM_UP * steps)
    if step < warm_up:
        return training.learning_rate * (step + 1) / warm_up
    progress = (step - warm_up) / max(1.0, steps - warm_up)
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
