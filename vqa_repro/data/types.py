"""The one record type of every data set: a question about a picture, and what people answered."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Example:
    """One question. ``answers`` and ``answer`` are empty where the data set hides them."""

    question_id: int
    image: str  # key of the picture, unique in the data set
    question: str
    answers: tuple[str, ...]  # the human answers as published: ten, or one
    answer: str | None  # the label: the answer that the data set itself names
    answer_type: str = ""
    question_type: str = ""


@dataclass(frozen=True)
class Split:
    """The questions of one split, and the files of the pictures they ask about.

    A picture's file may be missing: only reading the pictures needs it.
    """

    data: str
    name: str
    examples: list[Example]
    images: dict[str, Path]

    @property
    def hidden(self) -> bool:
        """Whether the data set keeps all answers of this split to itself."""
        return not any(example.answers for example in self.examples)
