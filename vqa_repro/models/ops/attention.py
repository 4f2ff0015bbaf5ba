"""Attention operations: dispatch to the fastest implementation for a device.

On the CPU: the blockwise functions of cpu.py. On a GPU: additive scores (also inside co-attention)
and pooling in Triton (triton_kernels.py) where it works, everything else in plain PyTorch
(reference.py). ``groups`` assigns N questions to I images; adjacent questions about one image are
fastest.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from vqa_repro.models.common import QuestionGroups
from vqa_repro.models.ops import cpu, reference


def additive_scores(
    image: Tensor, question: Tensor, w: Tensor, groups: QuestionGroups, dropout: float = 0.0
) -> Tensor:
    """Return w . dropout(tanh(image + question)) for all regions of each question's image, (N, R).

    SAN's equations 15 and 16, and the second step of HieCoAtt's equation 6.
    image: (I, R, k). question: (N, k). w: (k,). dropout: its probability, 0 when not training.
    """
    scores: Tensor = _implementation(image).additive_scores(image, question, w, groups, dropout)
    return scores


def coattention(
    Q_b: Tensor,
    b: Tensor,
    W_q_Q: Tensor,
    V: Tensor,
    W_v_V: Tensor,
    w_hv: Tensor,
    groups: QuestionGroups,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Return the part of parallel co-attention that joins words and regions.

    HieCoAtt, equation 3 and the region side of 4. With C = tanh(Q_b V^T + b): the region scores
    w_hv . dropout(tanh(W_v_V + C^T W_q_Q)) (N, R), and C W_v_V (N, T, d), the context of each word.
    Q_b, W_q_Q: (N, T, d). b: (N, T). V, W_v_V: (I, R, d). w_hv: (d,). Q_b and b must be 0 beyond
    a question's end, so that C is.
    """
    inputs = (Q_b, b, W_q_Q, V, W_v_V, w_hv, groups, dropout)
    implementation = _implementation(V)
    if implementation is cpu:
        return cpu.coattention(*inputs)
    return reference.coattention(*inputs, scores_of=implementation.additive_scores)


def pool(p: Tensor, v: Tensor, groups: QuestionGroups) -> Tensor:
    """Return the mean of an image's regions v (I, R, d), weighted by p (N, R): (N, d)."""
    means: Tensor = _implementation(v).pool(p, v, groups)
    return means


OLDEST = (7, 0)  # compute capability that Triton compiles for: Pascal and older are below
_forced: Any = None


@contextmanager
def plain_forms() -> Iterator[None]:
    """Use the plain PyTorch forms on every device, to compare the fast ones with them."""
    global _forced
    _forced = reference
    try:
        yield
    finally:
        _forced = None


def triton_works(device: torch.device) -> bool:
    """Return whether Triton's kernels pass their test on ``device``; warn once if not."""
    forced_or_cpu = _forced is not None or device.type != "cuda"
    return not forced_or_cpu and _triton_or_reference(device) is not reference


def _implementation(x: Tensor) -> Any:
    """Return the module with the fastest ``additive_scores`` and ``pool`` for ``x``."""
    if _forced is not None:
        return _forced
    if torch.compiler.is_exporting():
        return reference
    if x.device.type == "cpu":
        return cpu
    if not x.is_cuda or x.dtype is torch.float64:
        return reference
    return _triton_or_reference(x.device)


def too_old_for_triton(capability: tuple[int, int]) -> str | None:
    """Return why Triton cannot compile for cards of this compute capability; None if it can."""
    if capability >= OLDEST:
        return None
    return f"compute capability {'.'.join(map(str, capability))}; Triton needs 7.0 or higher"


@cache
def _triton_or_reference(device: torch.device) -> Any:
    failure: str | None
    try:
        from vqa_repro.models.ops import triton_kernels
    except ImportError as error:
        failure = str(error)
    else:
        failure = too_old_for_triton(torch.cuda.get_device_capability(device))
        if (failure := failure or triton_kernels.self_test(device)) is None:
            return triton_kernels
    tqdm.write(
        f"  warning: Triton kernels unavailable ({failure}); "
        "using the slower PyTorch implementation"
    )
    return reference
