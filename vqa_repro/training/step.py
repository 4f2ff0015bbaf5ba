"""A training step: a batch's loss, the gradients of all processes together, the optimiser.

On a GPU a step is hundreds of kernels that take less time than starting them one by one. There it
is recorded once for each size of batch, as a CUDA graph, and started as a whole. Batches are put
into the next larger of a few sizes, filled up with questions that weigh nothing: the gradients are
the same. Where a step cannot be recorded it runs kernel by kernel, and ``Step.eager`` says why.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vqa_repro.data.questions import Batch, Questions
from vqa_repro.features.loader import FeatureLoader
from vqa_repro.models.network import VQAModel
from vqa_repro.recipe import Training
from vqa_repro.training.loss import cross_entropy
from vqa_repro.training.optim import before_step, make_optimizer, set_rate
from vqa_repro.utils.distributed import SINGLE_PROCESS, World, flattened
from vqa_repro.utils.errors import first_line

# Sizes of batches are rounded up to multiples of at least these.
QUESTIONS, PICTURES, WORDS = 16, 4, 4


class Inputs(NamedTuple):
    """What a step reads."""

    features: Tensor  # (I, ...) of the pictures
    which: Tensor  # (B,) int64 positions in the Questions
    image_of: Tensor  # (B,) int64 positions in ``features``
    weight: Tensor  # (B,) float32: of a question's loss; 0 leaves it out
    words: int  # of the longest question


class Recorded(NamedTuple):
    """A step as a CUDA graph, and where it leaves what the others need."""

    graph: torch.cuda.CUDAGraph
    tally: Tensor  # where processes have to meet it is with the gradients, in ``Step._flat``


class Room:
    """Inputs of one fixed size; smaller batches leave in the rest what was there, weighing 0."""

    def __init__(
        self, questions: int, pictures: int, words: int, rows: FeatureLoader, like: Tensor
    ) -> None:
        numbers = like.new_zeros(2, questions)
        first = rows[like.new_zeros(1)]
        features = first.expand(pictures, *first.shape[1:]).clone()
        weight = torch.zeros(questions, device=like.device)
        self.inputs = Inputs(features, numbers[0], numbers[1], weight, words)
        self.recorded: Recorded | None = None

    def take(self, batch: Batch, rows: FeatureLoader) -> Inputs:
        """Put ``batch`` in."""
        count, into = len(batch.questions), self.inputs
        if count:
            into.features[: len(batch.rows)].copy_(rows[batch.rows])
        into.which[:count].copy_(batch.questions)
        into.image_of[:count].copy_(batch.image_of)
        into.weight[:count].fill_(1 / batch.total)
        into.weight[count:].zero_()
        return into


class Step:
    """Steps of ``network``, which has to be on its device already.

    rows: this process's features. questions: all of them, on the device.
    """

    def __init__(
        self,
        training: Training,
        network: VQAModel,
        rows: FeatureLoader,
        questions: Questions,
        world: World = SINGLE_PROCESS,
    ) -> None:
        self._training, self._network, self._world = training, network, world
        self._rows, self._questions = rows, questions
        self._parameters = list(network.parameters())
        self.optimizer = make_optimizer(training, network)
        self._rate: float | None = None
        self._rooms: dict[tuple[int, int, int], Room] = {}
        self._pool: Any = None
        self._stream: torch.cuda.Stream | None = None
        self._flat: Tensor | None = None
        self.eager = reason_for_eager(network, questions.label.device)

    def __call__(self, batch: Batch, rate: float) -> Tensor:
        """Train on ``batch`` at the learning ``rate``.

        Returns (3,) float32 on the device: summed loss, right answers, questions; of the whole
        batch, whatever this process's share of it. The tensor is used again by the next step.
        """
        if rate != self._rate:
            set_rate(self.optimizer, rate)
            self._rate = rate
        if self.eager is None:
            return self._replayed(batch)
        return self._step(self._exactly(batch))

    def _step(self, inputs: Inputs) -> Tensor:
        tally = self._gradients(inputs)
        tally = self._world.all_reduce_gradients(self._parameters, tally)
        self._move()
        return tally

    def _exactly(self, batch: Batch) -> Inputs:
        weight = torch.full_like(batch.questions, 1, dtype=torch.float32) / batch.total
        # A share without any picture is of pictures all the same: none.
        features = self._rows[batch.rows]
        return Inputs(features, batch.questions, batch.image_of, weight, batch.longest)

    def _gradients(self, inputs: Inputs) -> Tensor:
        """Compute the gradients of this process's part of the batch's mean loss; its tally."""
        self.optimizer.zero_grad()
        features, which, image_of, weight, words = inputs
        if not len(which):
            if self._network.cnn is not None:  # its normalisation is that of all processes
                self._network.cnn(features).sum().backward()
            return weight.new_zeros(3)
        questions = self._questions
        tokens = questions.tokens[:, :words][which]
        lengths = questions.lengths[which].clamp(max=words)  # what fills up may be longer
        logits = self._network(features, tokens, lengths, image_of).logits
        losses = cross_entropy(logits, questions, which, self._training.answers)
        (losses * weight).sum().backward()  # type: ignore[no-untyped-call]
        counted = (weight > 0).float()
        right = (logits.argmax(1) == questions.label[which]).float()
        return torch.stack([losses.detach(), right, torch.ones_like(right)]) @ counted

    def _move(self) -> None:
        before_step(self._training, self._network)
        self.optimizer.step()

    def _replayed(self, batch: Batch) -> Tensor:
        most = self._questions.tokens.shape[1]
        size = (
            rounded_up(len(batch.questions), QUESTIONS),
            rounded_up(len(batch.rows), PICTURES),
            min(rounded_up(batch.longest, WORDS), most),
        )
        if size not in self._rooms:
            # The first batch of a size is computed kernel by kernel: that loads libraries, chooses
            # algorithms and makes the optimiser's state, none of which can be recorded.
            room = self._rooms[size] = Room(*size, self._rows, batch.questions)
            return self._beside(room.take(batch, self._rows))
        room = self._rooms[size]
        inputs = room.take(batch, self._rows)
        if room.recorded is None:
            try:
                room.recorded = self._record(inputs)
            except RuntimeError as error:
                # What ends a recording is raised while it says that it was ended.
                why = first_line(error.__context__ or error)
                self.eager = f"CUDA cannot record a step ({why})"
                tqdm.write(f"  done without CUDA graphs: {self.eager}")
                self._rooms.clear()
                return self._step(self._exactly(batch))
        room.recorded.graph.replay()
        if self._flat is None:
            return room.recorded.tally
        tally = self._world.all_reduce_flat(self._parameters, self._flat)
        self._move()
        return tally

    def _beside(self, inputs: Inputs) -> Tensor:
        """A step on the stream that steps are recorded on, as CUDA wants it before that."""
        if self._stream is None:
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream, current = self._stream, torch.cuda.current_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            tally = self._step(inputs)
        current.wait_stream(stream)
        return tally

    def _record(self, inputs: Inputs) -> Recorded:
        """Record the step on ``inputs``; where processes have to meet, up to the gradients."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        if self._flat is None and self._world.size > 1:
            count = sum(parameter.numel() for parameter in self._parameters)
            self._flat = inputs.weight.new_empty(3 + count)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            tally = self._gradients(inputs)
            if self._flat is None:
                self._move()
            else:
                flattened(self._parameters, tally, out=self._flat)
        # Nothing outlives a replay but the tally, so graphs may share their memory.
        self.optimizer.zero_grad()
        return Recorded(graph, tally)


def rounded_up(count: int, least: int) -> int:
    """The next multiple that holds ``count``: of ``least``, or of more where that adds an eighth.

    Few sizes, because recording one takes far longer than replaying it.
    """
    count = max(count, 1)
    multiple = max(least, (1 << count.bit_length() - 1) // 8)
    return -(-count // multiple) * multiple


def reason_for_eager(network: VQAModel, device: torch.device) -> str | None:
    """Why a step cannot be recorded; None if it can."""
    if device.type != "cuda":
        return "CUDA graphs are for GPUs"
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            return "the pictures that fill a batch up would take part in its normalisation"
        if isinstance(part, nn.LSTM) and part.dropout:
            return "the random numbers of cuDNN's dropout between LSTM layers would be the same"
    return None
