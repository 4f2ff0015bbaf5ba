"""Ways to damage a valid file so that a reader fails somewhere after its first line.

All choices come from one ``random.Random``, which hypothesis can replace.
"""

import copy
import json
import struct
from random import Random
from typing import Any

DEEP: Any = []
for _ in range(300):
    DEEP = [DEEP]

WEIRD: list[Any] = [
    *(None, True, False, 0, -1, 1, 7, 2**31, 2**63, -(2**63) - 1, 10**40),
    *(0.5, -0.0, 1e308, float("nan"), float("inf"), float("-inf")),
    *(
        "",
        " ",
        "x",
        "\0",
        "\n",
        "\ud83d",
        "\u202e\u0000",
        "é" * 300,
        "../../outside",
        "/etc/passwd",
    ),
    *("C:\\x", "nan", "0", "none", "cnn", "{}", "%s", "__class__", "[[1]]"),
    *([], [None], [[]], ["x"] * 50, [-1, 2**63], DEEP),
    *({}, {"": None}, {"name": 1}, {"__metadata__": {}}, {"x": DEEP}),
]
NUMBERS = [0, 1, 7, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]


def damaged_bytes(data: bytes, rng: Random) -> bytes:
    """Make one to four changes: bits, runs of bytes, small and large numbers, cuts, repetitions."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(out) + 1)
        size = rng.choice((1, 1, 2, 4, 8, 40, 400))
        kind = rng.randrange(7)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[at:]
        elif kind == 2:
            del out[at : at + size]
        elif kind == 3:
            out[at:at] = rng.choice((b"\0", b"\xff", b"9", b"[", b'"', b"\n", b"A")) * size
        elif kind == 4:
            out[at:at] = out[at : at + size] * rng.choice((1, 3))
        elif kind == 5:
            number = rng.choice(NUMBERS)
            width, order = rng.choice((1, 2, 4, 8)), rng.choice("<>")
            code = {1: "B", 2: "H", 4: "I", 8: "Q"}[width]
            out[at : at + width] = struct.pack(order + code, number % 2 ** (8 * width))
        else:
            other = rng.randrange(len(out) + 1)
            out[at : at + size] = out[other : other + size]
    return bytes(out)


def damaged_value(value: Any, rng: Random) -> Any:
    """Return a copy of JSON values with one to three places changed, dropped or doubled."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 2, 3))):
        parent, key = _place(value, rng)
        if parent is None:
            value = copy.deepcopy(rng.choice(WEIRD))
            continue
        kind = rng.randrange(6)
        if kind == 0:
            del parent[key]
        elif kind == 1 and isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        elif kind == 1:
            parent[rng.choice(("", "x", f"{key} ", "name", "question_id"))] = copy.deepcopy(
                parent[key]
            )
        elif kind == 2:  # two places swap their values
            _, other = parent, rng.choice(list(_keys(parent)))
            parent[key], parent[other] = parent[other], parent[key]
        else:
            parent[key] = copy.deepcopy(rng.choice(WEIRD))
    return value


def _keys(value: Any) -> Any:
    return range(len(value)) if isinstance(value, list) else list(value)


def _place(value: Any, rng: Random) -> tuple[Any, Any]:
    """Choose a container and one of its keys at any depth; (None, None) means the whole value."""
    parent, key = None, None
    while isinstance(value, dict | list) and value:
        if parent is not None and rng.random() < 0.3:
            break
        if parent is None and rng.random() < 0.02:
            break
        parent, key = value, rng.choice(list(_keys(value)))
        value = parent[key]
    return parent, key


def damaged_json(data: bytes, rng: Random) -> bytes:
    """Damage a JSON document: mostly its values, sometimes its bytes."""
    if rng.random() < 0.25:
        return damaged_bytes(data, rng)
    value = damaged_value(json.loads(data), rng)
    return json.dumps(value, ensure_ascii=rng.random() < 0.9).encode("utf-8", "surrogatepass")


def damaged_lines(data: bytes, rng: Random) -> bytes:
    """Damage a text file: drop, double, swap or empty lines, sometimes change bytes."""
    if rng.random() < 0.4:
        return damaged_bytes(data, rng)
    lines = data.split(b"\n")
    for _ in range(rng.choice((1, 2, 3))):
        at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
        kind = rng.randrange(5)
        if kind == 0 and len(lines) > 1:
            del lines[at]
        elif kind == 1:
            lines.insert(at, lines[other % len(lines)])
        elif kind == 2:
            lines[at], lines[other] = lines[other], lines[at]
        elif kind == 3:
            lines[at] = rng.choice((b"", b" ", b"\0", b"-1", b"9" * 5000, b"\xff", b"x" * 300))
        else:
            lines[at] = damaged_bytes(lines[at], rng)
    return b"\n".join(lines)
