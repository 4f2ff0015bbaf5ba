"""The fonts of PNG files: matplotlib's own, and one that has Chinese where this machine has one."""

import sys
from functools import cache

from matplotlib import font_manager

CHINESE = (
    *("Noto Sans CJK SC", "Source Han Sans SC", "Noto Sans SC", "Noto Sans CJK JP"),
    *("WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback"),
    *("PingFang SC", "Hiragino Sans GB", "Microsoft YaHei", "SimHei"),
)


@cache
def families() -> list[str]:
    """matplotlib takes each character from the first of them that has it."""
    there = {font.name for font in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *[name for name in CHINESE if name in there][:1]]


@cache
def _characters() -> frozenset[int]:
    paths = [font_manager.findfont(name) for name in families()]
    return frozenset().union(*(font_manager.get_font(path).get_charmap() for path in paths))


def can_show(text: str) -> bool:
    return all(ord(character) in _characters() or character.isspace() for character in text)


def drawable(text: str) -> str:
    """``text`` as matplotlib draws it unchanged: between dollar signs it would read a formula.

    A character that no font here has becomes a question mark rather than a box, which is said.
    """
    if not can_show(text):
        _say_so()
        text = "".join(character if can_show(character) else "?" for character in text)
    return text.replace("$", r"\$")


@cache
def _say_so() -> None:
    print(
        "note: no font here has all characters of a text in a PNG file: the others are question "
        "marks in it; a font like Noto Sans CJK shows Chinese",
        file=sys.stderr,
    )
