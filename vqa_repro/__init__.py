"""Classic visual question answering, reproduced: SAN and HieCoAtt, on a bare GPU server.

>>> import vqa_repro
>>> model = vqa_repro.load("runs/easy-vqa")
>>> model.predict("picture.png", "what shape is it?").answers
[('circle', 0.99), ('rectangle', 0.01)]
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vqa_repro.evaluation.inference import Predictor

__version__ = "0.1.0"
__all__ = ["load"]


def load(
    run: str | Path, *, device: str = "auto", weights: str | Path | None = None
) -> "Predictor":
    """The trained model in the folder ``run``, to be asked.

    device: "auto" (the first GPU, and the CPU where there is none), "cpu", "cuda", "cuda:1".
    weights: the checkpoint of the frozen backbone, where the model has one; by default the seeded
    one, which has to be the one that the features were made with.
    Raises UserError for a folder that holds no trained run, or a damaged one.
    """
    from vqa_repro.evaluation.inference import Predictor
    from vqa_repro.run import open_run
    from vqa_repro.utils.device import choose_device  # torch takes a second to import

    path = None if weights is None else Path(weights)
    return Predictor(open_run(Path(run)), choose_device(device), path)
