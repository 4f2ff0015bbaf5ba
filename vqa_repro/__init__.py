"""Classic visual question answering, reproduced: SAN and HieCoAtt, on a bare GPU server.

>>> import vqa_repro
>>> model = vqa_repro.load("runs/easy-vqa")
>>> model.predict("image.png", "what shape is it?").answers
[('circle', 0.99), ('rectangle', 0.01)]
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from vqa_repro.utils.errors import UserError
from vqa_repro.utils.paths import expand

if TYPE_CHECKING:
    from vqa_repro.evaluation.inference import Predictor

__version__ = "0.1.0"
__all__ = ["UserError", "__version__", "load"]

# Threads of GNU OpenMP that have nothing to do spin for milliseconds. Where other programs use the
# cores as well, they keep them from the threads that compute (benchmarks/shared_cores.py). torch
# reads this when it is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def load(
    run: str | Path, *, device: str = "auto", weights: str | Path | None = None
) -> "Predictor":
    """Load the trained model of the run folder ``run``.

    device: "auto" (the first GPU, or the CPU if there is none), "cpu", "cuda" or "cuda:1".
    weights: the checkpoint of the frozen backbone, if the model has one; by default the cached
    one. It must be the checkpoint that the features were extracted with.
    Raise UserError if the folder holds no trained run, or a damaged one.
    """
    # torch takes a second to import
    from vqa_repro.evaluation.inference import Predictor
    from vqa_repro.run import open_run
    from vqa_repro.utils.device import choose_device

    path = None if weights is None else expand(weights)
    return Predictor(open_run(expand(run)), choose_device(device), path)
