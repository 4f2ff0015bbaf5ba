"""Training steps as CUDA graphs.

On a GPU a step is hundreds of kernels that take less time than launching them one by one. So a
step is captured once for each batch size and then launched as a whole. Batches are padded to the
next of a few sizes with questions of weight zero: the gradients are the same.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vqa_repro.data.batching import Batch
from vqa_repro.models.network import VQAModel
from vqa_repro.training.step import Step
from vqa_repro.utils.distributed import flattened
from vqa_repro.utils.errors import first_line

# Batch sizes are rounded up to multiples of at least these.
QUESTIONS, IMAGES, WORDS = 16, 4, 4


class Graphs(Protocol):
    """What captures work, to be replayed on whatever its input tensors then hold."""

    def warm_up(self, work: Callable[[], Tensor]) -> Tensor:
        """Run ``work`` as required before a capture; return its result."""

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return what replays ``work``. Raise RuntimeError if it cannot be captured."""


class CudaGraphs:
    """CUDA graphs that share one stream and one memory pool.

    Sharing the pool is safe because no result of a replay lives in it (see ``GraphedStep``).
    """

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, work: Callable[[], Tensor]) -> Tensor:
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = work()
        current.wait_stream(self._stream)
        return result

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            work()
        return graph.replay


class StaticInputs:
    """A batch of fixed size; what a smaller one leaves over keeps old values of weight zero."""

    def __init__(self, size: tuple[int, int, int], batch: Batch) -> None:
        questions, images, words = size
        numbers = batch.positions
        self.batch = Batch(
            features=batch.features.new_zeros(images, *batch.features.shape[1:]),
            image_index=numbers.new_zeros(questions),
            tokens=numbers.new_zeros(questions, words),
            lengths=numbers.new_ones(questions),
            label=numbers.new_zeros(questions),
            answers=numbers.new_zeros(questions, batch.answers.shape[1]),
            weight=batch.weight.new_zeros(questions),
            positions=numbers.new_zeros(questions),
            total=batch.total,
        )
        self.replay: Callable[[], None] | None = None

    def copy_from(self, batch: Batch) -> None:
        count, longest = batch.tokens.shape
        static = self.batch
        if count:
            static.features[: len(batch.features)].copy_(batch.features)
            static.tokens[:count, :longest].copy_(batch.tokens)
            static.tokens[:count, longest:].zero_()
            for name in ("image_index", "lengths", "label", "answers", "weight", "positions"):
                getattr(static, name)[:count].copy_(getattr(batch, name))
        static.weight[count:].zero_()


class GraphedStep:
    """``step``, replayed as a CUDA graph once a batch size has been seen twice.

    Called like the eager step and equal to it but for rounding. With several processes a graph
    ends at the gradients, which are then added up and applied outside of it.
    """

    def __init__(self, step: Step, graphs: Graphs | None = None) -> None:
        self._step, self._graphs = step, graphs or CudaGraphs()
        self._inputs: dict[tuple[int, int, int], StaticInputs] = {}
        count = sum(parameter.numel() for parameter in step.parameters)
        like = step.parameters[0]
        # Results outlive a replay, so they are allocated outside the graphs' memory pool.
        self._results = like.new_empty(3 + (count if step.world.size > 1 else 0)).detach()
        self._failed = False

    def __call__(self, batch: Batch, rate: float) -> Tensor:
        """As ``Step``. The returned tensor is overwritten by the next call."""
        step = self._step
        step.set_rate(rate)
        if self._failed:
            return step.run(batch)
        size = padded_size(batch)
        inputs = self._inputs.get(size)
        if inputs is None:
            # The first batch of a size runs eagerly: that loads libraries, selects algorithms and
            # allocates the optimiser's state, none of which can be captured.
            inputs = self._inputs[size] = StaticInputs(size, batch)
            inputs.copy_from(batch)
            static = inputs.batch
            return self._graphs.warm_up(lambda: step.run(static))
        inputs.copy_from(batch)
        if inputs.replay is None:
            try:
                inputs.replay = self._capture(inputs.batch)
            except RuntimeError as error:
                # torch raises what ended a capture while it handles the end of the capture.
                reason = first_line(error.__context__ or error)
                tqdm.write(f"  no CUDA graphs: a step cannot be captured ({reason})")
                self._failed = True
                self._inputs.clear()
                return step.run(batch)
        inputs.replay()
        if step.world.size == 1:
            return self._results
        totals = step.world.all_reduce_flat(step.parameters, self._results)
        step.apply_gradients()
        return totals

    def _capture(self, batch: Batch) -> Callable[[], None]:
        """Capture the step on ``batch``; with several processes up to the gradients."""
        step = self._step

        def work() -> None:
            totals = step.compute_gradients(batch)
            if step.world.size == 1:
                step.apply_gradients()
                self._results.copy_(totals)
            else:
                flattened(step.parameters, totals, out=self._results)

        replay = self._graphs.capture(work)
        step.optimizer.zero_grad()
        return replay


def padded_size(batch: Batch) -> tuple[int, int, int]:
    """Return (questions, images, words) of the padded batch."""
    return (
        rounded_up(len(batch), QUESTIONS),
        rounded_up(len(batch.features), IMAGES),
        rounded_up(batch.tokens.shape[1], WORDS),
    )


def rounded_up(count: int, least: int) -> int:
    """Return the next multiple of ``least`` above ``count``, or of an eighth of ``count``.

    Few sizes, because capturing one takes far longer than replaying it.
    """
    count = max(count, 1)
    multiple = max(least, (1 << count.bit_length() - 1) // 8)
    return -(-count // multiple) * multiple


def reason_for_eager(network: VQAModel, device: torch.device) -> str | None:
    """Return why a step of ``network`` cannot be captured; None if it can."""
    if device.type != "cuda":
        return "CUDA graphs need a GPU"
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            return "padding images would take part in batch normalisation"
        if isinstance(part, nn.LSTM) and part.dropout:
            return "cuDNN's dropout between LSTM layers would repeat its random numbers"
    return None
