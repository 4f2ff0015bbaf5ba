"""The record type of every data set: a question about an image, and its human answers."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Example:
    """One question. ``answers`` is empty and ``answer`` None if the answers are hidden."""

    question_id: int
    image: str  # key of the image, unique in the data set
    question: str
    answers: tuple[str, ...]  # the human answers as published: ten, or one
    answer: str | None  # the label, as named by the data set
    answer_type: str = ""
    question_type: str = ""


@dataclass(frozen=True)
class Split:
    """The questions of one split, and the files of their images (key -> path).

    The files may be missing; only extraction reads them.
    """

    data: str
    name: str
    examples: list[Example]
    images: dict[str, Path]

    @property
    def hidden(self) -> bool:
        """Whether the answers of this split are not published."""
        return not any(example.answers for example in self.examples)
