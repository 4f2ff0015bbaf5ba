"""What the report and its pictures say, in English and Simplified Chinese: messages.json."""

import json
from functools import cache
from pathlib import Path

LANGUAGES = ("en", "zh")


@cache
def words() -> dict[str, dict[str, str]]:
    """Key -> language -> text, with {names} to be filled in."""
    path = Path(__file__).parent / "messages.json"
    found: dict[str, dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def say(key: str, language: str, **values: object) -> str:
    return words()[key][language].format(**values)


def level(name: str, language: str) -> str:
    """The name of a model's attention map: "hop 2", "phrase"; others as they are."""
    kind, _, n = name.partition(" ")
    return say(f"level_{kind}", language, n=n) if f"level_{kind}" in words() else name
