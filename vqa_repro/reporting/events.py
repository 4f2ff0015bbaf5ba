"""Options, test scores and attention pictures of a finished run, for TensorBoard."""

from contextlib import closing
from typing import Any

import numpy as np
from PIL import Image

from vqa_repro.run import Run
from vqa_repro.utils.files import read_json


def write_results(run: Run) -> None:
    """Add them to the event files in the folder of ``run``."""
    from torch.utils.tensorboard import SummaryWriter  # takes seconds

    metrics = read_json(run.folder / "metrics.json")
    recipe = run.recipe.to_json()
    options = {
        f"{section}.{key}": value if isinstance(value, bool | int | float | str) else str(value)
        for section in ("data", "model", "training")
        for key, value in recipe[section].items()
    }
    folder = str(run.folder / "tensorboard")
    with closing(SummaryWriter(folder)) as writer:
        writer.add_hparams(options, _scores(metrics), run_name=".")
        for path in sorted((run.folder / "attention").glob("*.png")):
            with Image.open(path) as image:
                pixels = np.array(image.convert("RGB"))
            name = f"attention/{path.stem}"
            writer.add_image(name, pixels, metrics["epochs"], dataformats="HWC")


def _scores(metrics: dict[str, Any]) -> dict[str, float]:
    scores = {key: metrics.get(key) for key in ("overall", "prior", "coverage")}
    scores |= {key: value for key, value in metrics.items() if key.startswith("wups")}
    scores |= metrics["per_answer_type"]
    return {f"test/{key}": value for key, value in scores.items() if value is not None}
