"""Question files other than VQA's: CSV, JSON Lines, and the published JSON of five data sets.

A record has an image name, a question and one or more answers; ``docs/data.md`` lists the files.
Formats are recognised by the name of the file, fields by their names.
"""

import ast
import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vqa_repro.data.sources import MissingFileError, Source
from vqa_repro.data.types import Example
from vqa_repro.data.vqa import check_text, describe_json, most_common, read_answers
from vqa_repro.utils.errors import UserError

Record = dict[str, Any]

GQA_SUFFIX = "_balanced_questions.json"
# The words for a split in file names; the first word that names a file wins.
_WORDS = {
    "train": ("train", "training"),
    "val": ("val", "validate", "validation", "valid"),
    "test": ("test", "testing", "testdev"),
}
_IMAGE = (
    *("image", "image_name", "img_name", "image_id", "imageid", "img", "img_id", "image_path"),
    *("image_filename", "file_name", "filename", "file", "path"),
)
_QUESTION = ("question", "query", "q")
_LABEL = ("answer", "label", "a", "multiple_choice_answer")
_ANSWER = (*_LABEL, "answers")
_QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""


def split_words(split: str) -> tuple[str, ...]:
    """Return the words that may stand for ``split`` in names, the usual one first."""
    return _WORDS.get(split, (split,))


def data_file(folder: Path, split: str) -> Path | None:
    """Return the file of ``folder`` with ``split`` in one of these formats, or None.

    Raise UserError if there are several, or if the folder is PathVQA's as published.
    """
    for word in (*split_words(split), *(("dev",) if split == "val" else ())):
        names = [f"{word}{suffix}" for suffix in (".csv", ".tsv", ".jsonl", ".json", GQA_SUFFIX)]
        pattern = re.compile(rf"textvqa_.*_{re.escape(word)}\.json", re.IGNORECASE)
        files = [p for p in _files(folder) if p.name.lower() in names or pattern.match(p.name)]
        if files:
            return _only(files, split)
    vqa_rad = re.compile(r"vqa[_-]?rad.*\.json", re.IGNORECASE)
    if files := [path for path in _files(folder) if vqa_rad.match(path.name)]:
        return _only(files, split)
    return None


def missing_split(folder: Path, split: str) -> UserError:
    """Return the error of a folder without ``split``."""
    suffixes = (".parquet", ".pkl", ".pickle", ".xlsx", ".xls")
    if other := [p for p in folder.rglob("*") if p.suffix.lower() in suffixes]:
        return UserError(
            f"{other[0]}: pickles, Parquet (PathVQA's formats) and Excel's are not read; "
            f"convert it to {split}.csv with the columns image, question, answer"
        )
    files = sorted(p.name for p in folder.iterdir() if p.name[0] != "." and p.is_file())
    names = ", ".join(files[:6]) + (", ..." if len(files) > 6 else "")
    return MissingFileError(
        f"{folder}: no {split}_questions.json, {split}.csv, {split}.jsonl or {split}.json; "
        f"files there: {names or 'none'}"
    )


def read_examples(path: Path, split: str, image_key: Callable[[str], str]) -> list[Example]:
    """Read ``split`` from the file at ``path``, in its order.

    ``image_key`` maps an image name to its key; its ValueError says what is wrong with the name.
    The question id is the record's number in the file, from 1. Only a split whose name begins
    with "test" may be without answers, then without any.
    """
    examples: list[Example] = []
    unanswered = ""
    for number, (where, record) in enumerate(_records(Source(path)), start=1):
        try:
            if not _belongs(record, split):
                continue
            example = _example(number, record, image_key)
        except ValueError as error:
            raise UserError(f"{path}: {where}: {error}") from None
        if not example.answers and not unanswered:
            unanswered = f"{where}: {_no_answer(record)}"
        examples.append(example)
    if not examples:
        raise UserError(f"{path}: contains no questions of {split}")
    answered = any(example.answers for example in examples)
    if unanswered and (answered or not split.startswith("test")):
        raise UserError(f"{path}: {unanswered}")
    return examples


def _no_answer(record: Record) -> str:
    if record.keys().isdisjoint(_ANSWER):
        return f"no answer ({', '.join(_ANSWER)}); its fields: {', '.join(record)}"
    return "no answer; fill it in or remove the record"


def _example(number: int, record: Record, image_key: Callable[[str], str]) -> Example:
    image = _field(record, _IMAGE)
    if type(image) is int:
        image = str(image)
    if image is None:
        known = ", ".join(_IMAGE[:4])
        raise ValueError(f"no image name ({known}, ...); its fields: {', '.join(record)}")
    if not isinstance(image, str) or not image.strip():
        raise ValueError(f"the image name is {image!r:.60}, not text")
    question = _field(record, _QUESTION)
    if question is None:
        raise ValueError(f"no question ({', '.join(_QUESTION)}); its fields: {', '.join(record)}")
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"the question is {question!r:.60}, not text")
    check_text(image)
    check_text(question)
    answers, label = _answers(record)
    kind = record.get("answer_type", "")
    kind = kind.strip() if isinstance(kind, str) else ""
    return Example(number, image_key(image.strip()), question, answers, label, kind)


def _answers(record: Record) -> tuple[tuple[str, ...], str | None]:
    """Return the answers and the label, which is the most frequent one unless it has a field."""
    labels = _texts(_field(record, _LABEL))
    answers = _texts(_field(record, ("answers",))) or labels
    if not answers:
        return (), None
    return answers, labels[0] if len(labels) == 1 else most_common(answers)


def _texts(value: Any) -> tuple[str, ...]:
    """Return the answers in a field: text, a number (as in VQA-RAD), or a list of answers."""
    if value is None or value == [] or (isinstance(value, str) and not value.strip()):
        return ()
    if isinstance(value, str):
        value = _printed_list(value.strip())
    listed = value if isinstance(value, list) else [value]
    return read_answers({"answers": [str(x) if type(x) in (int, float) else x for x in listed]})


def _printed_list(text: str) -> list[str]:
    """Return the answers in a field of a CSV file: one, or a list that Python or NumPy printed."""
    if text.startswith("[{"):
        raise ValueError(f'the answers are {text!r:.60}; write them as ["red", "pink"]')
    if not re.fullmatch(rf"\[\s*(?:{_QUOTED})(?:[\s,]+(?:{_QUOTED}))*\s*\]", text):
        return [text]
    # Not the whole as Python: NumPy prints no commas, and 'red' 'pink' would be "redpink".
    return [ast.literal_eval(quoted) for quoted in re.findall(_QUOTED, text)]


def _belongs(record: Record, split: str) -> bool:
    """Return whether a record belongs to ``split``, for files with several splits."""
    phrase_type = record.get("phrase_type")
    if isinstance(phrase_type, str):  # VQA-RAD: freeform, para, test_freeform, test_para
        return split == ("test" if phrase_type.startswith("test") else "train")
    return bool(record.get("q_lang", "en") == "en")  # SLAKE has English and Chinese questions


def _field(record: Record, names: tuple[str, ...]) -> Any:
    """Return the first value among ``names``; JSON's null and NaN (of pandas) are none."""
    values = (record.get(name) for name in names)
    return next((value for value in values if value is not None and value == value), None)


def _records(source: Source) -> Iterator[tuple[str, Record]]:
    """Yield each record with its position in the file; field names in lower case."""
    readers = {".csv": _csv_records, ".tsv": _csv_records, ".jsonl": _json_lines}
    for where, record in readers.get(source.path.suffix.lower(), _json_records)(source):
        if not isinstance(record, dict):
            raise UserError(f"{source}: {where}: not a record with named fields")
        yield where, {str(name).strip().lower(): value for name, value in record.items()}


def _csv_records(source: Source) -> Iterator[tuple[str, Any]]:
    text = source.text()
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names = [str(name).strip().lower() for name in _header(reader, source)]
    for what, accepted in (("image", _IMAGE), ("question", _QUESTION)):
        if not set(names) & set(accepted):
            columns = header.strip() or "none, the line is empty"
            raise UserError(f'{source}: line 1: no column "{what}"; the columns: {columns}')
    for name in names:
        if name and names.count(name) > 1:
            raise UserError(f'{source}: line 1: {names.count(name)} columns "{name}"; keep one')
    try:
        for record in reader:
            where = f"line {reader.line_num}"
            if None in record:
                raise UserError(f"{source}: {where}: more fields than columns; quote the text")
            yield where, record
    except csv.Error as error:
        line = reader.line_num + 1  # where the record begins
        raise UserError(f"{source}: line {line}: broken CSV: {error}") from None


def _header(reader: "csv.DictReader[str]", source: Source) -> list[str]:
    """Return the column names of a CSV file; raise UserError if it has no readable ones."""
    try:
        return list(reader.fieldnames or ())
    except csv.Error as error:
        raise UserError(f"{source}: line 1: broken CSV: {error}") from None


def _json_lines(source: Source) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(source.lines(), start=1):
        if not line.strip():
            continue
        try:
            yield f"line {number}", json.loads(line)
        except (ValueError, RecursionError) as error:
            hint = (
                "; JSON Lines have a record a line, a list is NAME.json" if line[0] == "[" else ""
            )
            raise UserError(f"{source}: line {number}: broken JSON: {error}{hint}") from None


def _json_records(source: Source) -> Iterator[tuple[str, Any]]:
    """Yield the records of a list, as published also below a name, or of a dict by id (GQA)."""
    content = source.json()
    if isinstance(content, dict):
        lists = (content.get(name) for name in ("data", "questions"))  # TextVQA, CLEVR
        content = next((value for value in lists if isinstance(value, list)), content)
    if isinstance(content, list):
        yield from ((f"record {number}", record) for number, record in enumerate(content, start=1))
    elif isinstance(content, dict) and source.path.name.endswith(GQA_SUFFIX):
        yield from ((f"question {name}", record) for name, record in content.items())
    else:
        raise UserError(
            f'{source}: neither a list of questions nor an object with a list "data" or '
            f'"questions", but {describe_json(content)}'
        )


def _files(folder: Path) -> list[Path]:
    suffixes = (".csv", ".tsv", ".jsonl", ".json")
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes and p.name[0] != ".")


def _only(files: list[Path], split: str) -> Path:
    if len(files) > 1:
        names = ", ".join(path.name for path in files)
        raise UserError(f"{files[0].parent}: {len(files)} files for {split}: {names}; keep one")
    return files[0]
