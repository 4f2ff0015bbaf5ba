"""The vocabulary: words of questions and answers of a model as numbers."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from vqa_repro.data.types import Example
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.schema import convert

PADDING, UNKNOWN = 0, 1
_RESERVED = ("<pad>", "<unk>")
MAX_QUESTION_LENGTH = 26  # words, as in the HieCoAtt code; longer questions are truncated

# Scripts written without spaces between words: every character is a token.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
# Vowel signs of Hindi, Arabic and others are part of a word; Python's \\w does not include them.
_MARKS = "".join(chr(c) for c in range(0x300, 0x10000) if unicodedata.category(chr(c))[0] == "M")
_LETTER = rf"(?:(?![{_UNSPACED}])[^\W_{_UNSPACED}]|(?![{_UNSPACED}])[{_MARKS}])"
_TOKEN = re.compile(rf"{_LETTER}+(?:'[^\W\d_{_UNSPACED}]+)?|\S")


def tokenize(question: str) -> list[str]:
    """Split a question into lower-cased words and numbers ("what's" is one).

    Words of every alphabet are tokens. Chinese, Japanese, Thai and other scripts without spaces are
    split into characters. Every other visible character is a token of its own.
    """
    text = unicodedata.normalize("NFC", question.lower().replace("\u2019", "'"))
    return _TOKEN.findall(text)


def is_too_long(question: str) -> bool:
    """Return whether the question is longer than MAX_QUESTION_LENGTH."""
    return len(tokenize(question)) > MAX_QUESTION_LENGTH


@dataclass(frozen=True)
class Vocabulary:
    """``words[i]`` is the word with id i (0 padding, 1 unknown); ``answers[i]`` is class i."""

    words: tuple[str, ...]
    answers: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "_word_id", {word: i for i, word in enumerate(self.words)})
        object.__setattr__(self, "_answer_id", {text: i for i, text in enumerate(self.answers)})

    def encode(self, question: str) -> list[int]:
        """Return the ids of the question's words, never empty: no words become one unknown."""
        word_id: dict[str, int] = self._word_id  # type: ignore[attr-defined]
        ids = [word_id.get(word, UNKNOWN) for word in tokenize(question)[:MAX_QUESTION_LENGTH]]
        return ids or [UNKNOWN]

    def unknown_words(self, question: str) -> list[str]:
        """Return the question's out-of-vocabulary words."""
        word_id: dict[str, int] = self._word_id  # type: ignore[attr-defined]
        return [word for word in tokenize(question) if word not in word_id]

    def answer_id(self, answer: str | None) -> int:
        """Return the class of ``answer``, or -1 if it is not in the answer vocabulary."""
        answer_id: dict[str | None, int] = self._answer_id  # type: ignore[attr-defined]
        return answer_id.get(answer, -1)

    def to_json(self) -> dict[str, Any]:
        return {"words": list(self.words), "answers": list(self.answers)}

    @staticmethod
    def from_json(data: Any, where: str) -> "Vocabulary":
        """Return the inverse of ``to_json``. Raise UserError, naming ``where``, for other data."""
        content = convert(data, _Content, where)
        if content.words[:2] != _RESERVED:
            raise UserError(f"{where}: not a vocabulary of this program")
        return Vocabulary(content.words, content.answers)


class _Content(msgspec.Struct):
    """The content of vocabulary.json."""

    words: tuple[str, ...]
    answers: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]


def build_vocabulary(examples: Iterable[Example], num_answers: int) -> Vocabulary:
    """Return all words of the training questions and the ``num_answers`` most frequent labels.

    Both are ordered by descending frequency, then alphabetically: equal data give equal ids.
    """
    words: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    for example in examples:
        words.update(tokenize(example.question))
        if example.answer is not None:
            answers[example.answer] += 1
    return Vocabulary((*_RESERVED, *_by_frequency(words)), _by_frequency(answers)[:num_answers])


def _by_frequency(counts: Counter[str]) -> tuple[str, ...]:
    ranked: Sequence[tuple[str, int]] = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(text for text, _ in ranked)
