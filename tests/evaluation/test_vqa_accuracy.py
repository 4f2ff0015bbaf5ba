"""The official VQA accuracy: hand-made cases, a naive reimplementation, real answers."""

import hashlib
import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqa_repro.data import vqa
from vqa_repro.data.types import Example
from vqa_repro.evaluation import vqa_accuracy
from vqa_repro.evaluation.vqa_accuracy import (
    accuracy,
    check_results,
    process,
    read_results,
    score,
    write_results,
)
from vqa_repro.utils.errors import UserError

SHARED = Path(__file__).parents[3] / "shared" / "data"

GOLDEN = {
    # case, spaces, empty results
    "Yes": "yes",
    "  two   words ": "2 words",
    "a\u00a0b": "b",
    "É": "é",
    "": "",
    "the": "",
    "!": "",
    # number words, "none" with them; only whole words
    "none": "0",
    "None": "0",
    "zero": "0",
    "one": "1",
    "ten": "10",
    "eleven": "eleven",
    "twenty one": "twenty 1",
    "no one": "no 1",
    "someone": "someone",
    "nonetheless": "nonetheless",
    # articles; only whole words, only after the punctuation is gone
    "a dog": "dog",
    "an apple": "apple",
    "the a an": "",
    "The End": "end",
    "theatre": "theatre",
    "a-frame": "frame",
    "vitamin a": "vitamin",
    "(a) dog": "dog",
    # punctuation between letters becomes a space
    "red-car": "red car",
    "a red-car": "red car",
    "black/white": "black white",
    "t_shirt": "t shirt",
    "t-shirt": "t shirt",
    "what?no": "what no",
    "black&white": "black&white",
    "50%": "50%",
    "$5": "$5",
    "2:30": "2:30",
    "2;30": "2 30",
    "#1": "#1",
    "rock'n'roll": "rock'n'roll",
    # a mark next to a space deletes every mark of its kind in the text
    "red - car": "red car",
    "red -car": "red car",
    "red- car": "red car",
    "red- blue-green": "red bluegreen",
    "red, white": "red white",
    "red,white": "red white",
    "red, white,blue": "red whiteblue",
    "what? no?yes": "what noyes",
    "red- white,blue": "red white blue",
    # at the ends of the text there is no space, so it becomes one and goes with the split
    "yes!": "yes",
    "yes?!": "yes",
    '"stop"': "stop",
    "[stop]": "stop",
    "{stop}": "stop",
    "`stop`": "stop",
    "<b>": "b",
    "a=b": "b",
    "1+1": "1 1",
    "a\\b": "b",
    "me@home": "me home",
    # a comma inside a number deletes every mark in the text
    "1,000": "1000",
    "1,000,000": "1000000",
    "1,000-2,000": "10002000",
    "1,000 red-cars": "1000 redcars",
    "1, 2": "1 2",
    "1 ,2": "1 2",
    "a,1": "1",
    "1,a": "1",
    "\u0661,\u0662": "\u0661 \u0662",
    # periods go unless a digit follows
    "yes.": "yes",
    "no .": "no",
    "3.5": "3.5",
    "3.": "3",
    ".5": ".5",
    "a.5": "a.5",
    "u.s.a.": "usa",
    "p.m.": "pm",
    "5 p.m": "5 pm",
    "www.cnn.com": "wwwcnncom",
    "...": "",
    "1.000.000": "1.000.000",
    "." * 32: "",
    "." * 33: ".",
    "." * 40 + "yes": "........yes",
    # contractions get their missing apostrophes
    "dont": "don't",
    "Dont": "don't",
    "don't": "don't",
    "cant": "can't",
    "isnt it": "isn't it",
    "its": "its",
    "it's": "it's",
    "itll": "it'll",
    "im": "im",
    "ive": "ive",
    "Im": "im",
    "id've": "id've",
    "lets": "lets",
    "let's": "let's",
    "shes": "shes",
    "hes": "he's",
    "couldnt've": "couldn't've",
    "couldn'tve": "couldn't've",
    "somebody'd": "somebodyd",
    "ow's'at": "'ow's'at",
    "'ow'sat": "'ow's'at",
    "twas": "'twas",
    "oclock": "o'clock",
    "5 oclock": "5 o'clock",
    "yall": "y'all",
    "y'alld've": "y'all'd've",
    "maam": "ma'am",
    "don-t": "don t",
    "d.ont": "don't",
    "youre": "you're",
    "wont": "won't",
    "weve": "we've",
    "were": "were",
    "well": "well",
    "hell": "hell",
    "whos": "who's",
    "10 oclock, a.m.": "10 o'clock am",
}


@pytest.mark.parametrize(("text", "expected"), GOLDEN.items())
def test_process(text: str, expected: str) -> None:
    assert process(text) == expected


def test_contractions_are_the_official_table() -> None:
    # Fingerprint of the table in vqaEval.py, less the four keys with a capital and the two
    # entries that change nothing (let's, she's).
    table = json.dumps(sorted(vqa_accuracy._CONTRACTIONS.items()))
    assert len(vqa_accuracy._CONTRACTIONS) == 114
    assert hashlib.sha256(table.encode()).hexdigest()[:16] == "853d25c89947b7f6"


# The rules again, character by character and without a regular expression.

DIGITS = "0123456789"


def naive_punctuation(text: str) -> str:
    number = any(
        text[i] in DIGITS and text[i + 1] == "," and text[i + 2] in DIGITS
        for i in range(len(text) - 2)
    )
    spared = []
    for mark in text:
        if mark not in ';/[]"{}()=+\\_-><@`,?!':
            spared.append(mark)
            continue
        beside_space = any({text[i], text[i + 1]} == {mark, " "} for i in range(len(text) - 1))
        if not (beside_space or number):
            spared.append(" ")
    removed = 0
    out = []
    for i, mark in enumerate(spared):
        if mark == "." and not (spared[i + 1 :] and spared[i + 1] in DIGITS) and removed < 32:
            removed += 1
        else:
            out.append(mark)
    return "".join(out)


def naive_words(text: str) -> str:
    numbers = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    out = []
    for word in text.lower().split():
        if word == "none":
            word = "0"
        elif word == "ten":
            word = "10"
        elif word in numbers:
            word = str(numbers.index(word))
        if word != "a" and word != "an" and word != "the":
            out.append(vqa_accuracy._CONTRACTIONS.get(word, word))
    return " ".join(out)


def naive_accuracy(prediction: str, answers: list[str], pre_2021: bool) -> float:
    def clean(text: str) -> str:
        return text.replace("\n", " ").replace("\t", " ").strip()

    prediction = clean(prediction)
    if not pre_2021:
        answers = [clean(answer) for answer in answers]
    differ = any(answer != answers[0] for answer in answers)
    if differ and not pre_2021:
        answers = [naive_words(naive_punctuation(answer)) for answer in answers]
    if differ and pre_2021:
        answers = [naive_punctuation(answer) for answer in answers]
    if differ or pre_2021:
        prediction = naive_words(naive_punctuation(prediction))
    total = 0.0
    for left_out in range(len(answers)):
        others = answers[:left_out] + answers[left_out + 1 :]
        agreeing = len([answer for answer in others if answer == prediction])
        total += 1.0 if agreeing >= 3 else agreeing / 3
    return total / len(answers)


PIECES = [*";/[]\"{}()=+\\_-><@`,?!.:' \t\n0127aé", "the", "a", "an", "none", "ten", "dont", "1,0"]
texts = st.lists(st.sampled_from([*PIECES, "yes", "red", " "]), max_size=8).map("".join)


@settings(max_examples=400, deadline=None)
@given(st.one_of(texts, st.text(max_size=20)))
def test_process_like_the_naive_one(text: str) -> None:
    assert process(text) == naive_words(naive_punctuation(text))


@settings(max_examples=300, deadline=None)
@given(st.lists(texts, min_size=1, max_size=3), st.randoms(use_true_random=False), st.booleans())
def test_accuracy_like_the_naive_one(
    pool: list[str], choose: random.Random, pre_2021: bool
) -> None:
    answers = [choose.choice(pool) for _ in range(10)]
    prediction = choose.choice(pool)
    expected = naive_accuracy(prediction, answers, pre_2021)
    assert accuracy(prediction, answers, pre_2021=pre_2021) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("agreeing", range(11))
def test_closed_form(agreeing: int) -> None:
    answers = ["yes"] * agreeing + ["no"] * (10 - agreeing)
    assert accuracy("yes", answers) == pytest.approx(min(0.3 * agreeing, 1.0), abs=1e-12)


def test_answers_are_processed_only_where_people_differ() -> None:
    assert accuracy("Yes.", ["yes"] * 10) == 0.0
    assert accuracy("Yes.", ["yes"] * 9 + ["no"]) == 1.0
    assert accuracy(" yes\n", ["yes\t"] * 10) == 1.0
    assert accuracy("Yes.", ["yes"] * 10, pre_2021=True) == 1.0


def test_before_2021_some_answers_could_not_be_given() -> None:
    answers = ["the dog"] * 9 + ["cat"]
    assert accuracy("the dog", answers) == 1.0
    assert accuracy("the dog", answers, pre_2021=True) == 0.0
    assert accuracy("The-Dog", ["The Dog"] * 9 + ["x"], pre_2021=True) == 0.0


def test_other_numbers_of_answers() -> None:
    assert accuracy("Table ", ["table"]) == 1.0
    assert accuracy("the table", ["table"]) == 0.0
    assert accuracy("red", ["red", "red"]) == 1.0
    assert accuracy("red", ["red", "red", "red"]) == 1.0
    assert accuracy("red", ["red", "blue"]) == pytest.approx(0.5)


def example(question_id: int, answers: list[str], kind: str = "", asked: str = "") -> Example:
    return Example(question_id, "x", "what", tuple(answers), answers[0], kind, asked)


def test_score_per_type() -> None:
    examples = [
        example(1, ["yes"] * 10, "yes/no", "is the"),
        example(2, ["no"] * 2 + ["yes"] * 8, "yes/no", "is the"),
        example(3, ["2"] * 10, "number", "how many"),
        example(4, ["desk"]),
    ]
    scores = score({1: "yes", 2: "no", 3: "3", 4: "DESK"}, examples)
    assert scores == {
        "overall": 65.0,
        "per_answer_type": {"yes/no": 80.0, "number": 0.0},
        "per_question_type": {"is the": 80.0, "how many": 0.0},
    }


def test_a_half_is_rounded_up() -> None:
    # As Python 2 does: 1 of 800 is 0.125 percent, which Python 3 would round to 0.12.
    examples = [example(number, ["x"]) for number in range(800)]
    results = {number: "x" if number == 0 else "y" for number in range(800)}
    assert score(results, examples)["overall"] == 0.13


def test_hidden_answers_are_not_scored() -> None:
    with pytest.raises(UserError, match="question 7: its answers are hidden"):
        score({7: "yes"}, [Example(7, "x", "what", (), None)])


def test_results_survive_the_file(tmp_path: Path) -> None:
    results = {3: "yes", 1: 'a "quoted" é', 262144000: ""}
    write_results(tmp_path / "results.json", results)
    assert read_results(tmp_path / "results.json") == results
    assert json.loads((tmp_path / "results.json").read_text())[0] == {
        "question_id": 3,
        "answer": "yes",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_results_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no/results\.json: cannot be written: No such file"):
        write_results(tmp_path / "no" / "results.json", {1: "yes"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1}', "not a results file.* an object with the fields a"),
        ('{"question_id": 1, "answer": "a"}\n{"question_id": 2, "answer": "b"}\n', "JSON lines"),
        ("[1]", "record 1: not an object: 1"),
        ('[{"answer": "yes"}]', 'record 1: no "question_id"'),
        ('[{"question_id": true, "answer": "yes"}]', "record 1: question_id True"),
        ('[{"question_id": "1", "answer": "yes"}]', "record 1: question_id '1' is text"),
        ('[{"question_id": 1.0, "answer": "yes"}]', "record 1: question_id 1.0"),
        ('[{"question_id": 1, "answer": 2}]', 'record 1: question 1: "answer" is 2, not text'),
        ('[{"question_id": 1, "pred": "a"}]', 'record 1: question 1: no "answer"'),
        (
            '[{"question_id": 1, "answer": "a"}, {"question_id": 1, "answer": "b"}]',
            "record 2: question 1 again",
        ),
        ('[{"question_id": 1, "answ', "cut off JSON: .* line 1 column 21"),
    ],
)
def test_bad_results(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        read_results(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_results_must_answer_exactly_the_questions() -> None:
    check_results({1: "a", 2: "b"}, [2, 1])
    with pytest.raises(UserError, match=r"no answer to 4 of 5 questions: 2, 3, 4, \.\.\."):
        check_results({1: "a"}, [1, 2, 3, 4, 5])
    with pytest.raises(UserError, match="answers to 1 other questions: 9"):
        check_results({1: "a", 9: "b"}, [1])
    with pytest.raises(UserError, match="no questions"):
        check_results({}, [])


@pytest.mark.skipif(not SHARED.is_dir(), reason="the VQA v2 subset is not there")
def test_real_answers() -> None:
    examples = vqa.load(SHARED, "v2", "val").examples
    for asked in examples[::7]:
        for prediction in set(asked.answers):
            expected = naive_accuracy(prediction, list(asked.answers), False)
            assert accuracy(prediction, asked.answers) == pytest.approx(expected, abs=1e-12)
    # Measured with the official code of 2021 and of 2016, run by Python 2.7 on these answers.
    labels = {asked.question_id: asked.answer or "" for asked in examples}
    now, before = score(labels, examples), score(labels, examples, pre_2021=True)
    assert now["overall"] == 96.61
    assert now["per_answer_type"] == {"other": 93.43, "number": 96.54, "yes/no": 100.0}
    assert before["overall"] == 96.37
    assert before["per_answer_type"] == {"other": 92.89, "number": 96.39, "yes/no": 100.0}
    yes = score(dict.fromkeys(labels, "yes"), examples)
    assert yes["overall"] == 20.85
    assert yes["per_answer_type"] == {"other": 1.06, "number": 0.2, "yes/no": 62.19}
