"""Questions, answers and image files of every data set, as one kind of record."""

from vqa_repro.data.registry import load_all, load_split

__all__ = ["load_all", "load_split"]
