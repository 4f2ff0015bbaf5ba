"""A folder with your own data set: question files in one of several formats, and images."""

import os
import re
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from vqa_repro.data.formats import (
    GQA_SUFFIX,
    data_file,
    missing_split,
    read_examples,
    split_words,
)
from vqa_repro.data.sources import Source
from vqa_repro.data.types import Example, Split
from vqa_repro.data.vqa import read_pair
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.paths import dangling_link

_IMAGE_SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
}

# Images that people have but that are not decoded: read_image says what to convert them to.
_OTHER_SUFFIXES = {".avif", ".dcm", ".heic", ".heif", ".jp2", ".svg"}

# VizWiz and GQA come with their questions in a subfolder.
_QUESTIONS_FOLDER = re.compile(r"(annotations?|questions?|qas?|vqa|json)[\d._-]*$", re.IGNORECASE)


def load_folder(folder: Path, split: str) -> Split:
    """Read ``split`` from a folder with question files and images.

    VQA-format JSON files contain the split and "questions" or "annotations" in their names, such as
    ``train_questions.json`` and ``train_annotations.json``. A single pair that names no split is
    the split "train". Annotations may be absent for a split whose name begins with "test". Every
    question has one or more answers, as a list of strings or of VQA's ``{"answer": ...}``; the
    label is ``multiple_choice_answer`` or, without it, the most frequent answer. Other formats: see
    formats.py.

    The files may be in a subfolder called "annotations", "questions" or the like. The images are in
    ``folder/images`` at any depth (or in ``folder``, without one). The image of a question is the
    file named by its field "image" or, without that, the one named after its image id: ``9.png``,
    ``000000000009.jpg``, ``COCO_val2014_000000000009.jpg``.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    name = folder.resolve().name
    inner = folder / name  # archives are often unpacked into a folder of their own name
    if inner.is_dir() and not any(any(folder.glob(f"*{s}")) for s in (".json", ".jsonl", ".csv")):
        folder = inner
    image_folder = _images_folder(folder)
    questions, annotations, other = _files_of(folder, split)
    if questions is None and other is None:
        raise missing_split(folder, split)
    if questions and annotations is None and not split.startswith("test"):
        raise UserError(
            f"{folder}: {questions.name} has no {split}_annotations.json next to it; if it holds "
            f"the answers too, call it {split}.json"
        )
    images = _Images(image_folder, split)
    if questions:
        source = Source(annotations) if annotations else None
        examples = read_pair(Source(questions), source, images.of_question)
    else:
        assert other is not None
        examples = read_examples(other, split, images.of_name)
    return Split(name, split, [_normalized(example) for example in examples], images.files)


def _images_folder(folder: Path) -> Path:
    for name in ("images", "imgs", "img"):
        if (folder / name).is_dir():
            return folder / name
        if (folder / name).is_symlink():
            raise UserError(f"{folder / name}: {dangling_link(folder / name)}")
    return folder


def _files_of(folder: Path, split: str) -> tuple[Path | None, Path | None, Path | None]:
    """Return the questions and annotations of ``split``, or the one file of another format."""
    words = split_words(split)
    subfolders = [
        sub
        for sub in sorted(folder.iterdir())
        if _QUESTIONS_FOLDER.match(sub.name) or sub.name.lower() in words
    ]
    places = [folder, *filter(Path.is_dir, subfolders)]

    def first(find: Callable[[Path], Path | None]) -> Path | None:
        return next(filter(None, map(find, places)), None)

    annotations = first(lambda place: _own_file(place, "annotations", split))
    other = None if annotations else first(lambda place: data_file(place, split))
    if other and other.name.endswith(GQA_SUFFIX):
        return None, None, other  # its name looks like one of VQA's
    questions = first(lambda place: _own_file(place, "questions", split))
    return questions, annotations, None if questions else other


class _Images:
    """The images of a split: ``files`` maps the key of each that was looked up to its file."""

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split = folder, split
        self.files: dict[str, Path] = {}
        self._by_id = _images_by_id(folder)

    def of_question(self, question: dict[str, Any]) -> str:
        """Return the key of the image of a VQA-format question."""
        name, image_id = question.get("image"), question["image_id"]
        if isinstance(name, str) and self._is_known(_composed(name)):
            return self._of_id(_composed(name))
        if name is not None:
            return self._of_path(name)
        return self.of_name(image_id) if isinstance(image_id, str) else self._of_id(str(image_id))

    def of_name(self, name: str) -> str:
        """Return the key of the image that another format names by its path, name or id."""
        name = _composed(name)
        if name not in self._by_id:
            name = name.replace("\\", "/").removeprefix("./")  # as Windows writes paths
        short = name.removeprefix(f"{self.folder}/").removeprefix(f"{self.folder.name}/")
        path = PurePosixPath(short)
        suffixes = _IMAGE_SUFFIXES | _OTHER_SUFFIXES
        is_id = path.suffix.lower() not in suffixes and path.name == short
        return self._of_id(short) if is_id or self._is_known(short) else self._of_path(short)

    def _is_known(self, name: str) -> bool:
        return name in self._by_id or name.lower() in self._by_id

    def _of_path(self, name: object) -> str:
        path = PurePosixPath(name) if isinstance(name, str) else None
        if path is None or path.is_absolute() or ".." in path.parts or not path.name:
            raise ValueError(f'"image" is {name!r}, not a file name below {self.folder}')
        return self._add(str(path), self.folder / path)

    def _of_id(self, image_id: str) -> str:
        files = self._by_id.get(image_id) or self._by_id.get(image_id.lower())
        files = files or [self.folder / f"{image_id}.jpg"]
        own = [p for p in files if _has_word(str(p.relative_to(self.folder)), self.split)]
        if len(files) > 1 and len(own) == 1:  # every split numbers its images from 1
            image_id, files = own[0].relative_to(self.folder).as_posix(), own
        if len(files) > 1:
            names = ", ".join(str(path.relative_to(self.folder)) for path in files[:5])
            more = ", ..." if len(files) > 5 else ""
            raise ValueError(
                f"image {image_id} exists {len(files)} times: {names}{more}; keep one, or name "
                'it in a field "image"'
            )
        return self._add(image_id, files[0])

    def _add(self, key: str, path: Path) -> str:
        if len(path.name) > 255:  # images as base64, as some other programs take them
            raise ValueError(f"the image name has {len(path.name):,} characters: {key[:30]}...")
        self.files[key] = path
        return key


def _normalized(example: Example) -> Example:
    """Make "Yes", "yes " and "YES" one answer, as the metric does."""

    def normal(answer: str) -> str:
        return " ".join(answer.lower().split()) or answer

    answers = tuple(map(normal, example.answers))
    label = None if example.answer is None else normal(example.answer)
    return replace(example, answers=answers, answer=label)


def _own_file(folder: Path, what: str, split: str) -> Path | None:
    """Return the JSON file of ``folder`` whose name contains ``what`` and the word ``split``.

    "train2014" contains the word "train", "trainval" does not.
    """
    files = sorted(
        path
        for path in folder.glob("*.[jJ][sS][oO][nN]")
        if what in path.name.lower() and path.name[0] != "."
    )
    words = split_words(split)
    named = next(filter(None, ([p for p in files if _has_word(p.name, w)] for w in words)), [])
    # VQA v1 has every question twice, once as multiple choice.
    open_ended = [path for path in named if "multiplechoice" not in path.name.lower()]
    named = open_ended or named
    is_own = folder.name.lower() in words  # train/questions.json
    if not named and (is_own or split == "train") and len(files) == 1:
        named = [path for path in files if path.name.lower() == f"{what}.json"]
    if len(named) > 1:
        raise UserError(
            f"{folder}: {len(named)} files for the {what} of {split}: {_list(named)}; keep one"
        )
    return named[0] if named else None


def _has_word(text: str, word: str) -> bool:
    return bool(re.search(rf"(?<![a-z]){re.escape(word.lower())}(?![a-z])", text.lower()))


def _images_by_id(folder: Path) -> dict[str, list[Path]]:
    """Return image id -> the files below ``folder`` that it may name.

    An id names a file by its path, its name, its name without the suffix, or by the number at the
    end of its name ("abstract_v002_val2015_000000028940.png" is 28940). The first of these that
    any file matches counts. Hidden files (a Mac's "._7.png") are ignored, links are followed.
    """
    files = _image_files(folder)
    merged: dict[str, list[Path]] = {}
    for suffixes in (_IMAGE_SUFFIXES, _OTHER_SUFFIXES):
        of_kind = [path for path in files if path.suffix.lower() in suffixes]
        for level in _names(of_kind, folder):
            for name, paths in level.items():
                merged.setdefault(name, paths)
    for name, paths in list(merged.items()):
        merged.setdefault(name.lower(), paths)  # "A.JPG" may be called a.jpg
    return merged


def _names(files: list[Path], folder: Path) -> list[dict[str, list[Path]]]:
    """Return the names of the files by which an id may call them; see ``_images_by_id``."""
    levels: list[dict[str, list[Path]]] = [{}, {}, {}, {}]
    for path in files:
        number = re.search(r"\d+$", path.stem)
        names = [path.relative_to(folder).as_posix(), path.name, path.stem]
        for level, name in zip(levels, [*names, number and number[0]], strict=True):
            if name is None:
                continue
            level.setdefault(_composed(name), []).append(path)
            if level is levels[3] and (plain := name.lstrip("0") or "0") != name:
                level.setdefault(plain, []).append(path)
    return levels


def _composed(name: str) -> str:
    """Return ``name`` with one character for a letter and its accent: a Mac's files have two."""
    return unicodedata.normalize("NFC", name)


def _image_files(folder: Path) -> list[Path]:
    """Return all image files below ``folder``; visit each folder once, even with link cycles."""
    suffixes = _IMAGE_SUFFIXES | _OTHER_SUFFIXES
    files: list[Path] = []
    visited: set[str] = set()
    for name, subfolders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        real = os.path.realpath(name)
        if real in visited:
            subfolders.clear()
            continue
        visited.add(real)
        subfolders[:] = [sub for sub in subfolders if sub[0] != "." and sub != "lost+found"]
        files += [
            Path(name, file)
            for file in names
            if file[0] != "." and os.path.splitext(file)[1].lower() in suffixes
        ]
    return sorted(files)


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be read: {error.strerror}")


def _list(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths)
