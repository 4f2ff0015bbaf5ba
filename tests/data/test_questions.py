"""Words, answers and batches as arrays."""

from collections import Counter

import pytest
import torch

from vqa_repro.data.questions import Questions, batches, encode, train_validation_split
from vqa_repro.data.types import Example
from vqa_repro.data.vocabulary import UNKNOWN, Vocabulary, build_vocabulary, tokenize


def example(number: int, image: str, question: str = "what is it?", answer: str = "a") -> Example:
    return Example(number, image, question, (answer,), answer)


def many(pictures: int = 40) -> Questions:
    """Picture i has i % 7 + 1 questions; the last answer cannot be given."""
    examples = [
        example(100 * i + k, f"p{i}", answer="rare" if k == 6 else "a")
        for i in range(pictures)
        for k in range(i % 7 + 1)
    ]
    vocabulary = build_vocabulary(examples, num_answers=1)
    return encode(examples, vocabulary, {f"p{i}": pictures - i for i in range(pictures)})


def test_tokens() -> None:
    assert tokenize("What's the man's COLOUR, 3.5 or red-ish?") == [
        *("what's", "the", "man's", "colour", ",", "3", ".", "5", "or", "red", "-", "ish", "?")
    ]
    assert tokenize("what\u2019s it") == ["what's", "it"]


def test_vocabulary_is_ordered_by_frequency_and_survives_json() -> None:
    examples = [example(0, "p", "b a b c", "yes"), example(1, "p", "a b", "no")]
    vocabulary = build_vocabulary(examples, num_answers=1)
    assert vocabulary.words == ("<pad>", "<unk>", "b", "a", "c")
    assert vocabulary.answers == ("no",)  # as frequent as "yes": alphabetical
    assert vocabulary.encode("a zebra b") == [3, UNKNOWN, 2]
    assert vocabulary.encode("  ") == [UNKNOWN]
    assert vocabulary.answer_id("yes") == -1
    assert Vocabulary.from_json(vocabulary.to_json(), "here") == vocabulary


def test_encoding_keeps_every_question_with_its_words_and_picture() -> None:
    examples = [example(7, "b", "a b c"), example(8, "a", "a"), example(9, "b", "c b", "z")]
    vocabulary = build_vocabulary(examples[:2], num_answers=5)
    questions = encode(examples, vocabulary, {"a": 0, "b": 1})
    assert questions.question_id.tolist() == [8, 7, 9]
    assert questions.row.tolist() == [0, 1, 1]
    assert questions.lengths.tolist() == [1, 3, 2]
    words = [
        [vocabulary.words[i] for i in ids[:n]]
        for ids, n in zip(questions.tokens.tolist(), questions.lengths.tolist(), strict=True)
    ]
    assert words == [["a"], ["a", "b", "c"], ["c", "b"]]
    assert questions.tokens[0, 1:].tolist() == [0, 0]
    assert questions.label.tolist() == [0, 0, -1]
    assert questions.trainable("label").question_id.tolist() == [8, 7]


def test_human_answers_that_can_be_given_are_kept_beside_the_label() -> None:
    asked = [
        Example(1, "p", "a", ("x", "y", "rare", "x"), "x"),
        Example(2, "p", "a", ("rare", "y"), "rare"),
        Example(3, "p", "a", ("rare",), "rare"),
        Example(4, "p", "a", (), None),
    ]
    vocabulary = Vocabulary(("<pad>", "<unk>", "a"), ("x", "y"))
    questions = encode(asked, vocabulary, {"p": 0})
    assert questions.answers.tolist() == [
        [0, 1, -1, 0],
        [-1, 1, -1, -1],
        [-1, -1, -1, -1],
        [-1, -1, -1, -1],
    ]
    assert questions.trainable("label").question_id.tolist() == [1]
    assert questions.trainable("sampled").question_id.tolist() == [1, 2]


@pytest.mark.parametrize("order", ["grouped", "iid", "stored"])
@pytest.mark.parametrize("size", [1, 10, 1000])
def test_every_question_once_with_its_picture(order: str, size: int) -> None:
    questions = many()
    seen: Counter[int] = Counter()
    for batch in batches(questions, size, order, seed=3):
        seen.update(batch.questions.tolist())
        assert torch.equal(batch.rows[batch.image_of], questions.row[batch.questions])
        assert len(batch.rows) == len(set(batch.rows.tolist()))
    assert seen == Counter(range(len(questions)))


def test_grouped_batches_hold_whole_pictures_and_about_the_size_asked_for() -> None:
    questions = many()
    sizes, where = [], {}
    for number, batch in enumerate(batches(questions, 20, "grouped", seed=1)):
        sizes.append(len(batch.questions))
        for row in batch.rows.tolist():
            assert where.setdefault(row, number) == number, "a picture in two batches"
    assert max(sizes) <= 20 + 7 and sum(sizes) == len(questions)


@pytest.mark.parametrize("order", ["grouped", "iid"])
def test_equal_seeds_give_equal_batches(order: str) -> None:
    questions = many()
    first, again, other = (
        torch.cat([b.questions for b in batches(questions, 16, order, seed)]) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_held_out_pictures_are_whole_and_always_the_same() -> None:
    examples = [example(10 * i + k, f"p{i}") for i in range(50) for k in range(3)]
    kept, held = train_validation_split(examples, 0.2)
    assert len(held) == 30 and len(kept) == 120
    assert not {e.image for e in kept} & {e.image for e in held}
    assert train_validation_split(list(reversed(examples)), 0.2)[1] == list(reversed(held))
    assert train_validation_split(examples, 0) == (examples, [])


def test_questions_end_after_26_words() -> None:
    vocabulary = Vocabulary(("<pad>", "<unk>", "a", "b"), ("x",))
    assert vocabulary.encode("a " * 26 + "b") == [2] * 26


def test_held_out_pictures_are_neighbours_by_their_number() -> None:
    examples = [example(i, f"image{i}") for i in range(1, 321)]
    kept, held = train_validation_split(examples, 0.25)
    numbers = sorted(e.question_id for e in held)
    assert len(held) == 80 and len(kept) == 240
    runs = [n for n in numbers if n - 1 not in numbers]
    assert len(runs) <= 5  # of 16 pictures each
    assert (
        train_validation_split(examples[::-1], 0.25)[1][::-1] == held
    )  # whatever the order of the questions
