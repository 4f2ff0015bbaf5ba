"""The feature store: round trips, and damaged files that are refused."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import LIMIT, environ
from PIL import Image
from safetensors.numpy import load_file

from vqa_repro.data.images import read_image
from vqa_repro.features.extraction import store_pixels
from vqa_repro.features.store import StoreWriter, open_store
from vqa_repro.utils.errors import UserError

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


def test_an_interrupted_store_resumes_and_appears_only_when_complete(tmp_path: Path) -> None:
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


def test_a_partial_store_of_another_network_is_discarded(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    write(path, [1])
    other = write(path, [], {**MADE_BY, "size": 8})
    assert other.missing().tolist() == [0, 1, 2]


def test_the_fingerprint_depends_on_the_origin_of_the_rows(store: Path, tmp_path: Path) -> None:
    same, other = tmp_path / "same", tmp_path / "other"
    write(same, [0, 1, 2]).finish()
    write(other, [0, 1, 2], {"backbone": "other"}).finish()
    prints = [open_store(path).fingerprint() for path in (store, same, other)]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize("length", [0, 7, 8, 100, -1])
def test_a_truncated_store_is_refused(store: Path, length: int) -> None:
    data = store.read_bytes()
    store.write_bytes(data[:length])
    with pytest.raises(UserError, match="not a complete feature store"):
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
        ("left_out", '{"a": "missing"}'),
        ("left_out", "[1]"),
    ],
)
def test_a_wrong_header_is_refused(store: Path, change: str, to: object) -> None:
    header_says(store, change, to)
    with pytest.raises(UserError, match="not a complete feature store"):
        open_store(store)


def test_an_impossible_header_length_is_refused_before_reading(store: Path) -> None:
    data = store.read_bytes()
    store.write_bytes((2**62).to_bytes(8, "little") + data[8:])
    with pytest.raises(UserError, match="length is impossible"):
        open_store(store)


def picture(path: Path, mode: str = "RGB", size: tuple[int, int] = (30, 20)) -> Path:
    Image.linear_gradient("L").resize(size).convert(mode).save(path)
    return path


def test_pixels_are_decoded_once(tmp_path: Path) -> None:
    images = {"x": picture(tmp_path / "x.png"), "y": picture(tmp_path / "y.png", "L")}
    path = tmp_path / "new folder" / "p.safetensors"
    made = store_pixels(images, path, 8)
    assert made.rows.shape == (2, 8, 8, 3)
    np.testing.assert_array_equal(made.rows[1], read_image(images["y"], 8))
    images["x"].unlink()  # no longer needed
    again = store_pixels(images, path, 8)
    np.testing.assert_array_equal(again.rows, made.rows)


def test_the_header_of_a_complete_store_is_unchanged(store: Path) -> None:
    # Complete and partial stores of the first version remain readable.
    data = store.read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert json.loads(data[8 : 8 + length]) == {
        "__metadata__": {
            "format": "vqa_repro-store-1",
            "keys": json.dumps(KEYS),
            "made_by": '{"backbone": "test", "size": 4}',
        },
        "rows": {"dtype": "F16", "shape": [3, 2, 3], "data_offsets": [0, 36]},
    }
    assert open_store(store).left_out == {}


def damaged(folder: Path) -> dict[str, Path]:
    """Five images: one missing, one truncated, one grey."""
    images = {name: picture(folder / f"{name}.png", size=(90, 80)) for name in "abcde"}
    images["b"].unlink()
    images["d"].write_bytes(images["d"].read_bytes()[:200])
    picture(images["e"], "L")
    return images


def test_damaged_images_are_counted_named_and_replaced_one_by_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, path = damaged(tmp_path), tmp_path / "p.safetensors"
    with pytest.raises(UserError) as error:
        store_pixels(images, path, 8)
    output = str(error.value)
    assert output.startswith("2 of 5 images are missing or damaged: ") and "\n" not in output
    assert f"{images['b']} (missing), {images['d']} (not a readable image" in output
    assert f"1 of 5 images read were not RGB and were converted: {images['e']} (grey)" in (
        capsys.readouterr().err
    )
    assert not path.exists()
    for name in "ace":
        images[name].unlink()  # read already
    picture(images["b"])
    with pytest.raises(UserError, match=r"^1 of 5 images is missing or damaged: .*d\.png"):
        store_pixels(images, path, 8)
    picture(images["d"], size=(9, 9))
    store = store_pixels(images, path, 8)
    assert list(store.row_of) == list("abcde") and store.left_out == {}
    np.testing.assert_array_equal(store.rows[3], read_image(images["d"], 8))
    assert sorted(tmp_path.glob("p.*")) == [path]


def test_damaged_images_are_skipped_on_request(tmp_path: Path) -> None:
    images, path = damaged(tmp_path), tmp_path / "p.safetensors"
    store = store_pixels(images, path, 8, skip_damaged=True)
    assert store.row_of == {"a": 0, "c": 1, "e": 2} and store.left_out.keys() == {"b", "d"}
    assert store.left_out["b"] == "missing" and "not a readable" in store.left_out["d"]
    for key, row in store.row_of.items():
        np.testing.assert_array_equal(store.rows[row], read_image(images[key], 8))
    np.testing.assert_array_equal(load_file(path)["rows"], store.rows)
    assert sorted(tmp_path.glob("p.*")) == [path]
    for name in "ace":
        images[name].unlink()
    picture(images["b"])
    again = store_pixels(images, path, 8, skip_damaged=True)
    assert again.left_out == store.left_out, "a finished store is not extracted again"
    with pytest.raises(UserError, match=r"^1 of 5 .*d\.png"):
        store_pixels(images, path, 8)
    grown = store_pixels({"b": images["b"]}, path, 8)
    assert list(grown.row_of) == ["a", "c", "e", "b"]
    assert grown.left_out == {"d": store.left_out["d"]}


def test_missing_images_allocate_no_disk_space(tmp_path: Path) -> None:
    images = {name: tmp_path / f"{name}.png" for name in map(str, range(9))}
    with pytest.raises(UserError, match=r"^all 9 images are missing, e\.g\. .*0\.png"):
        store_pixels(images, tmp_path / "p.safetensors", 8)
    assert list(tmp_path.iterdir()) == []


def test_damaged_images_alone_make_no_store(tmp_path: Path) -> None:
    images = {name: tmp_path / f"{name}.png" for name in map(str, range(9))}
    for path in images.values():
        path.write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"^9 of 9 .*4\.png \(not .*\), \.\.\.; fix") as error:
        store_pixels(images, tmp_path / "p.safetensors", 8, skip_damaged=True)
    assert "5.png" not in str(error.value)


def test_only_additional_images_are_extracted(tmp_path: Path) -> None:
    first = {name: picture(tmp_path / f"{name}.png") for name in "ab"}
    path = tmp_path / "p.safetensors"
    rows = np.array(store_pixels(first, path, 8).rows)
    for file in first.values():
        file.unlink()
    second = {"a": first["a"], "c": picture(tmp_path / "c.png", "L")}
    grown = store_pixels(second, path, 8)
    assert list(grown.row_of) == ["a", "b", "c"]
    np.testing.assert_array_equal(grown.rows[:2], rows)
    other = store_pixels({"c": second["c"]}, path, 4)
    assert list(other.row_of) == ["c"], "rows of another size are no use"


def test_two_processes_make_one_store(tmp_path: Path) -> None:
    for number in range(60):
        picture(tmp_path / f"{number}.png", size=(700, 600))
    code = (
        "import sys; from pathlib import Path\n"
        "from vqa_repro.features.extraction import store_pixels\n"
        "folder = Path(sys.argv[1]); images = {p.stem: p for p in sorted(folder.glob('*.png'))}\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "print(len(store_pixels(images, folder / 'p.safetensors', 16).row_of))"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            env=environ(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    output = [process.communicate(timeout=LIMIT) for process in processes]
    assert [out for out, _ in output] == ["60\n"] * 3, output
    assert any("waiting for process" in err for _, err in output)
    store = open_store(tmp_path / "p.safetensors")
    for key, row in store.row_of.items():
        np.testing.assert_array_equal(store.rows[row], read_image(tmp_path / f"{key}.png", 16))
    assert sorted(tmp_path.glob("p.*")) == [store.path]
