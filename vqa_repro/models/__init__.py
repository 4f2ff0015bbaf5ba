"""The models: plain ``nn.Module``s that know no recipe and no file (``network.build`` does)."""

from collections.abc import Callable

from torch import nn

from vqa_repro.models.baselines import (
    BagOfWords,
    DeeperLSTMNormI,
    QuestionOnly,
    ShowAskAttendAnswer,
)
from vqa_repro.models.hiecoatt import HieCoAtt
from vqa_repro.models.san import SAN

__all__ = [
    "MODELS",
    "SAN",
    "BagOfWords",
    "DeeperLSTMNormI",
    "HieCoAtt",
    "QuestionOnly",
    "ShowAskAttendAnswer",
]

# Names in recipes; keyword-only constructor arguments are the options of [model].
MODELS: dict[str, Callable[..., nn.Module]] = {
    "san": SAN,
    "hiecoatt": HieCoAtt,
    "question-only": QuestionOnly,
    "bag-of-words": BagOfWords,
    "deeper-lstm": DeeperLSTMNormI,
    "show-ask-attend": ShowAskAttendAnswer,
}
