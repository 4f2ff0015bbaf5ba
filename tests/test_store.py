"""The feature store: what is written is read, and nothing damaged is taken for features."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from vqa_repro.errors import UserError
from vqa_repro.pictures import read_picture
from vqa_repro.store import StoreWriter, open_store, store_pixels

MADE_BY = {"backbone": "test", "size": 4}
KEYS = ["a", "b", "ü c"]


def values(row: int) -> np.ndarray:
    return np.full((2, 3), row + 0.5, np.float16)


def write(path: Path, rows: list[int], made_by: dict[str, object] = MADE_BY) -> StoreWriter:
    writer = StoreWriter(path, KEYS, (2, 3), np.float16, made_by)
    for row in rows:
        writer.write(row, values(row))
    writer.flush()
    return writer


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "f.safetensors"
    write(path, [2, 0, 1]).finish()
    return path


def test_round_trip_and_the_standard_format(store: Path) -> None:
    opened = open_store(store)
    assert opened.made_by == MADE_BY and list(opened.row_of) == KEYS
    for key, row in opened.row_of.items():
        np.testing.assert_array_equal(opened.rows[row], values(KEYS.index(key)))
    np.testing.assert_array_equal(load_file(store)["rows"], opened.rows)
    assert list(store.parent.iterdir()) == [store]


def test_an_interrupted_store_goes_on_and_is_not_there_before_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    write(path, [1])
    with pytest.raises(UserError, match="no such feature store"):
        open_store(path)
    writer = StoreWriter(path, KEYS, (2, 3), np.float16, MADE_BY)
    assert writer.missing().tolist() == [0, 2]
    with pytest.raises(ValueError, match="2 rows"):
        writer.finish()
    for row in (0, 2):
        writer.write(row, values(row))
    writer.finish()
    np.testing.assert_array_equal(open_store(path).rows, [values(row) for row in range(3)])


def test_what_something_else_began_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    write(path, [1])
    other = write(path, [], {**MADE_BY, "size": 8})
    assert other.missing().tolist() == [0, 1, 2]


def test_fingerprint_tells_what_made_the_rows(store: Path, tmp_path: Path) -> None:
    same, other = tmp_path / "same", tmp_path / "other"
    write(same, [0, 1, 2]).finish()
    write(other, [0, 1, 2], {"backbone": "other"}).finish()
    prints = [open_store(path).fingerprint() for path in (store, same, other)]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize("length", [0, 7, 8, 100, -1])
def test_a_truncated_store_is_refused(store: Path, length: int) -> None:
    data = store.read_bytes()
    store.write_bytes(data[:length])
    with pytest.raises(UserError, match="not a whole feature store"):
        open_store(store)


def header_says(store: Path, change: str, to: object) -> None:
    data = store.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    part = header["rows"] if change in header["rows"] else header["__metadata__"]
    part[change] = to
    text = json.dumps(header).encode()
    store.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


@pytest.mark.parametrize(
    ("change", "to"),
    [
        ("shape", [3, 2, 4]),
        ("shape", [-3, 2, 3]),
        ("shape", [3, 2**40, 2**40]),
        ("shape", []),
        ("shape", "3"),
        ("dtype", "O"),
        ("keys", '["a", "a", "b"]'),
        ("keys", "[1"),
        ("made_by", "{"),
        ("format", "another"),
    ],
)
def test_a_lying_header_is_refused(store: Path, change: str, to: object) -> None:
    header_says(store, change, to)
    with pytest.raises(UserError, match="not a whole feature store"):
        open_store(store)


def test_a_header_too_long_to_be_true_is_refused_before_it_is_read(store: Path) -> None:
    data = store.read_bytes()
    store.write_bytes((2**62).to_bytes(8, "little") + data[8:])
    with pytest.raises(UserError, match="length is impossible"):
        open_store(store)


def picture(path: Path, mode: str = "RGB", size: tuple[int, int] = (30, 20)) -> Path:
    Image.linear_gradient("L").resize(size).convert(mode).save(path)
    return path


def test_pixels_are_the_pictures_and_are_made_once(tmp_path: Path) -> None:
    images = {"x": picture(tmp_path / "x.png"), "y": picture(tmp_path / "y.png", "L")}
    path = tmp_path / "new folder" / "p.safetensors"
    made = store_pixels(images, path, 8)
    assert made.rows.shape == (2, 8, 8, 3)
    np.testing.assert_array_equal(made.rows[1], read_picture(images["y"], 8))
    images["x"].unlink()  # no longer needed
    again = store_pixels(images, path, 8)
    np.testing.assert_array_equal(again.rows, made.rows)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16"])
def test_pictures_of_every_mode_become_rgb(tmp_path: Path, mode: str) -> None:
    name = "p.tif" if mode == "CMYK" else "p.png"
    assert read_picture(picture(tmp_path / name, mode), 16).shape == (16, 16, 3)


def test_a_bad_picture_is_named(tmp_path: Path) -> None:
    whole = picture(tmp_path / "whole.png", size=(200, 200)).read_bytes()
    for name, data in [
        ("cut.png", whole[: len(whole) // 2]),
        ("text.png", b"hello"),
        ("e.png", b""),
    ]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=f"{name}.*not a readable picture"):
            read_picture(tmp_path / name, 8)
    with pytest.raises(UserError, match="no such picture"):
        read_picture(tmp_path / "absent.png", 8)
    with pytest.raises(UserError, match="folder"):
        read_picture(tmp_path, 8)


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(bomb)
    assert bomb.stat().st_size < 100_000
    with pytest.raises(UserError, match=r"bomb\.png.*too many pixels"):
        read_picture(bomb, 8)
