"""Processes forked from one that has imported torch already: they are at work at once."""

import multiprocessing
from multiprocessing.context import ForkServerContext

MODULES = (
    "torchvision",
    "vqa_repro.data.coco_qa",
    "vqa_repro.evaluation.vqa_accuracy",
    "vqa_repro.train",
)


def ready() -> ForkServerContext:
    """The context whose ``Process`` begins such a process; it has imported all it needs to."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(MODULES))
    first = context.Process(target=int)
    first.start()
    first.join()
    return context
