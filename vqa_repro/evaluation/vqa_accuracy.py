"""Accuracy as the official VQA evaluation computes it, and results files as its server reads them.

The rules are those of vqaEval.py in GT-Vision-Lab/VQA, last changed on 2021-03-11, including its
quirks: reported results were measured with them.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from functools import lru_cache
from pathlib import Path
from typing import TypedDict

from vqa_repro.data.sources import Source
from vqa_repro.data.types import Example
from vqa_repro.data.vqa import describe_json, read_question_id
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.files import write_atomic


class Scores(TypedDict):
    """Percent, rounded to two places. Questions without a type count in ``overall`` only."""

    overall: float
    per_answer_type: dict[str, float]
    per_question_type: dict[str, float]


# ASCII, because the official code runs in Python 2.
_COMMA_IN_NUMBER = re.compile(r"\d,\d", re.ASCII)
# Keeps the period of "3.5". The official pattern was meant to look behind too, but is misspelt.
_PERIOD = re.compile(r"\.(?!\d)", re.ASCII)
_MOST_PERIODS = 32  # the official call passes re.UNICODE, which is 32, as the count
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NUMBERS = "zero one two three four five six seven eight nine ten"
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS.split())} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
# The official table without the entries that never match lower-case text: Id've, I'dve, Im, Ive.
_CONTRACTION_TABLE = """
aint>ain't arent>aren't cant>can't couldve>could've couldnt>couldn't couldn'tve>couldn't've
couldnt've>couldn't've didnt>didn't doesnt>doesn't dont>don't hadnt>hadn't hadnt've>hadn't've
hadn'tve>hadn't've hasnt>hasn't havent>haven't hed>he'd hed've>he'd've he'dve>he'd've hes>he's
howd>how'd howll>how'll hows>how's isnt>isn't itd>it'd itd've>it'd've it'dve>it'd've itll>it'll
maam>ma'am mightnt>mightn't mightnt've>mightn't've mightn'tve>mightn't've mightve>might've
mustnt>mustn't mustve>must've neednt>needn't notve>not've oclock>o'clock oughtnt>oughtn't
ow's'at>'ow's'at 'ows'at>'ow's'at 'ow'sat>'ow's'at shant>shan't shed've>she'd've she'dve>she'd've
shouldve>should've shouldnt>shouldn't shouldnt've>shouldn't've shouldn'tve>shouldn't've
somebody'd>somebodyd somebodyd've>somebody'd've somebody'dve>somebody'd've somebodyll>somebody'll
somebodys>somebody's someoned>someone'd someoned've>someone'd've someone'dve>someone'd've
someonell>someone'll someones>someone's somethingd>something'd somethingd've>something'd've
something'dve>something'd've somethingll>something'll thats>that's thered>there'd
thered've>there'd've there'dve>there'd've therere>there're theres>there's theyd>they'd
theyd've>they'd've they'dve>they'd've theyll>they'll theyre>they're theyve>they've twas>'twas
wasnt>wasn't wed've>we'd've we'dve>we'd've weve>we've werent>weren't whatll>what'll whatre>what're
whats>what's whatve>what've whens>when's whered>where'd wheres>where's whereve>where've whod>who'd
whod've>who'd've who'dve>who'd've wholl>who'll whos>who's whove>who've whyll>why'll whyre>why're
whys>why's wont>won't wouldve>would've wouldnt>wouldn't wouldnt've>wouldn't've
wouldn'tve>wouldn't've yall>y'all yall'll>y'all'll y'allll>y'all'll yall'd've>y'all'd've
y'alld've>y'all'd've y'all'dve>y'all'd've youd>you'd youd've>you'd've you'dve>you'd've
youll>you'll youre>you're youve>you've
"""
_CONTRACTIONS = dict(pair.split(">") for pair in _CONTRACTION_TABLE.split())


@lru_cache(maxsize=2**16)  # nearly all answers of a data set are a few thousand distinct ones
def process(text: str) -> str:
    """Normalise an answer for comparison: "The red-car." and "red car" become equal."""
    return _digits_and_articles(_punctuation(text))


def _punctuation(text: str) -> str:
    processed = text
    comma_in_number = _COMMA_IN_NUMBER.search(text)
    for mark in _PUNCTUATION:
        next_to_space = f"{mark} " in text or f" {mark}" in text
        processed = processed.replace(mark, "" if next_to_space or comma_in_number else " ")
    return _PERIOD.sub("", processed, count=_MOST_PERIODS)


def _digits_and_articles(text: str) -> str:
    words = (_DIGITS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def accuracy(prediction: str, answers: Sequence[str], *, pre_2021: bool = False) -> float:
    """Return the accuracy of ``prediction``, from 0 to 1, given one or more human ``answers``.

    It is min(number of equal answers / 3, 1), averaged over all subsets that omit one answer; with
    n equal answers of ten that is min(0.3 n, 1). Texts are normalised only if the answers differ.
    ``pre_2021`` always normalises the prediction, and only the punctuation of the human answers, as
    the evaluation did when SAN and HieCoAtt were published.

    A single answer (DAQUAR, COCO-QA, easy-VQA) is compared ignoring case and outer space; with two
    or three, all others have to agree for a full score.
    """
    if len(answers) == 1:
        return float(prediction.strip().lower() == answers[0].strip().lower())
    prediction = _one_line(prediction)
    if pre_2021:
        prediction = process(prediction)
        if len(set(answers)) > 1:
            answers = [_punctuation(answer) for answer in answers]
    else:
        answers = [_one_line(answer) for answer in answers]
        if len(set(answers)) > 1:
            prediction = process(prediction)
            answers = [process(answer) for answer in answers]
    agree = [answer == prediction for answer in answers]
    enough = min(3, len(answers) - 1)
    return sum(min(1.0, (sum(agree) - own) / enough) for own in agree) / len(answers)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def score(
    results: Mapping[int, str], examples: Sequence[Example], *, pre_2021: bool = False
) -> Scores:
    """Score ``results`` (question id -> answer), which must answer exactly ``examples``."""
    values = per_question(results, examples, pre_2021=pre_2021)
    answer_types: dict[str, list[float]] = defaultdict(list)
    question_types: dict[str, list[float]] = defaultdict(list)
    for example in examples:
        value = values[example.question_id]
        if example.answer_type:
            answer_types[example.answer_type].append(value)
        if example.question_type:
            question_types[example.question_type].append(value)
    return Scores(
        overall=_percent(list(values.values())),
        per_answer_type={kind: _percent(values) for kind, values in answer_types.items()},
        per_question_type={kind: _percent(values) for kind, values in question_types.items()},
    )


def per_question(
    results: Mapping[int, str], examples: Sequence[Example], *, pre_2021: bool = False
) -> dict[int, float]:
    """Return question id -> ``accuracy``, from 0 to 1."""
    check_results(results, [example.question_id for example in examples])
    values = {}
    for example in examples:
        if not example.answers:
            raise UserError(f"question {example.question_id}: its answers are hidden")
        answer = results[example.question_id]
        values[example.question_id] = accuracy(answer, example.answers, pre_2021=pre_2021)
    return values


def _percent(values: Sequence[float]) -> float:
    # Python 2 rounds a half up, Python 3's round() to the even digit.
    percent = Decimal(100 * sum(values) / len(values))
    return float(percent.quantize(Decimal("0.01"), ROUND_HALF_UP))


def check_results(
    results: Mapping[int, str], question_ids: Collection[int], where: str = "results"
) -> None:
    """Raise UserError for results that omit a question or answer another one.

    where: names their file in the message.

    The evaluation server rejects them too: for test-dev it requires all questions of test2015.
    """
    if not question_ids:
        raise UserError("no questions to score")
    expected = set(question_ids)
    missing = [question_id for question_id in question_ids if question_id not in results]
    if missing:
        raise UserError(
            f"{where}: no answer to {len(missing):,} of {len(expected):,} questions: "
            f"{_few(missing)}"
        )
    extra = [question_id for question_id in results if question_id not in expected]
    if extra:
        raise UserError(f"{where}: answers to {len(extra):,} other questions: {_few(extra)}")


def read_results(path: Path) -> dict[int, str]:
    """Read a results file, ``[{"question_id": 1, "answer": "yes"}, ...]``, as id -> answer."""
    content = Source(path).json()
    if not isinstance(content, list):
        raise UserError(
            f'{path}: not a results file, which is a list of {{"question_id": 1, "answer": "yes"}}'
            f", but {describe_json(content)}"
        )
    results: dict[int, str] = {}
    for number, record in enumerate(content, start=1):
        if not isinstance(record, dict):
            raise UserError(f"{path}: record {number}: not an object: {record!r:.60}")
        try:
            question_id = read_question_id(record)
        except ValueError as error:
            raise UserError(f"{path}: record {number}: {error}") from None
        answer = record.get("answer")
        if not isinstance(answer, str):
            found = f'"answer" is {answer!r:.60}, not text' if "answer" in record else 'no "answer"'
            raise UserError(f"{path}: record {number}: question {question_id}: {found}")
        if question_id in results:
            raise UserError(f"{path}: record {number}: question {question_id} again")
        results[question_id] = answer
    return results


def write_results(
    path: Path, results: Mapping[int, str], write: Callable[..., None] = write_atomic
) -> None:
    """Write id -> answer to ``path`` in the format of the evaluation server, with ``write``."""
    records = [{"question_id": key, "answer": answer} for key, answer in results.items()]
    write(path, lambda file: file.write(json.dumps(records).encode()))


def _few(question_ids: Iterable[int]) -> str:
    ids = list(question_ids)
    return ", ".join(map(str, ids[:3])) + (", ..." if len(ids) > 3 else "")
