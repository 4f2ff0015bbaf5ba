"""Data sets: questions, answers and image files, read as their authors publish them."""

from vqa_repro.data.registry import load_all, load_split
from vqa_repro.data.types import Example, Split

__all__ = ["Example", "Split", "load_all", "load_split"]
