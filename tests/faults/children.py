"""Processes forked from one that has imported torch: they start without delay."""

import multiprocessing
from multiprocessing.context import ForkServerContext

MODULES = (
    "torchvision",
    "vqa_repro.data.coco_qa",
    "vqa_repro.evaluation.vqa_accuracy",
    "vqa_repro.train",
)


def ready() -> ForkServerContext:
    """Return the context whose ``Process`` forks from a server with all imports done."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(MODULES))
    first = context.Process(target=int)
    first.start()
    first.join()
    return context
