"""Words, answers and batches as arrays."""

from vqa_repro.data.questions import encode, train_validation_split
from vqa_repro.data.types import Example
from vqa_repro.data.vocabulary import UNKNOWN, Vocabulary, build_vocabulary, tokenize


def example(number: int, image: str, question: str = "what is it?", answer: str = "a") -> Example:
    return Example(number, image, question, (answer,), answer)


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


def test_encoding_keeps_every_question_with_its_words_and_image() -> None:
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


def test_in_vocabulary_human_answers_are_kept_with_the_label() -> None:
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


def test_held_out_images_keep_all_questions_and_never_change() -> None:
    examples = [example(10 * i + k, f"p{i}") for i in range(50) for k in range(3)]
    kept, held = train_validation_split(examples, 0.2)
    assert len(held) == 30 and len(kept) == 120
    assert not {e.image for e in kept} & {e.image for e in held}
    assert train_validation_split(list(reversed(examples)), 0.2)[1] == list(reversed(held))
    assert train_validation_split(examples, 0) == (examples, [])


def test_questions_end_after_26_words() -> None:
    vocabulary = Vocabulary(("<pad>", "<unk>", "a", "b"), ("x",))
    assert vocabulary.encode("a " * 26 + "b") == [2] * 26


def test_held_out_images_are_neighbours_by_number() -> None:
    examples = [example(i, f"image{i}") for i in range(1, 321)]
    kept, held = train_validation_split(examples, 0.25)
    numbers = sorted(e.question_id for e in held)
    assert len(held) == 80 and len(kept) == 240
    runs = [n for n in numbers if n - 1 not in numbers]
    assert len(runs) <= 5  # of 16 images each
    assert (
        train_validation_split(examples[::-1], 0.25)[1][::-1] == held
    )  # whatever the order of the questions
