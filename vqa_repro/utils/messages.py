"""Texts of the report, its figures and the web page in English and Simplified Chinese.

They are in messages.json, which maps a key to {"en": ..., "zh": ...}; {names} are placeholders.
Keys of the web page begin with "page.".
"""

import json
from functools import cache
from pathlib import Path

LANGUAGES = ("en", "zh")


@cache
def messages() -> dict[str, dict[str, str]]:
    """Return key -> language -> text."""
    path = Path(__file__).with_suffix(".json")
    table: dict[str, dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))
    return table


def translations(prefix: str, language: str) -> dict[str, str]:
    """Return the texts whose keys begin with ``prefix``, by the rest of their keys."""
    return {
        key.removeprefix(prefix): texts[language]
        for key, texts in messages().items()
        if key.startswith(prefix)
    }


def translate(key: str, language: str, **values: object) -> str:
    return messages()[key][language].format(**values)


def level_name(name: str, language: str) -> str:
    """Return the title of an attention map: "hop 2" -> "Hop 2"; unknown names unchanged."""
    kind, _, n = name.partition(" ")
    key = f"level_{kind}"
    return translate(key, language, n=n) if key in messages() else name
