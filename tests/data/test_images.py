"""Images of every kind become RGB squares; unreadable ones are named."""

import io
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pytest
from PIL import Image, ImageOps

from vqa_repro.data.images import DamagedImageError, read_image
from vqa_repro.features.decoding import ImageReader, few
from vqa_repro.utils.errors import UserError


def picture(path: Path, mode: str = "RGB", size: tuple[int, int] = (30, 20)) -> Path:
    Image.linear_gradient("L").resize(size).convert(mode).save(path)
    return path


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "YCbCr"])
def test_images_of_every_mode_become_rgb(tmp_path: Path, mode: str) -> None:
    name = "p.tif" if mode in ("CMYK", "YCbCr") else "p.png"
    rgb = read_image(picture(tmp_path / name, mode), 16)
    assert rgb.shape == (16, 16, 3) and rgb.dtype == np.uint8
    grey = read_image(picture(tmp_path / "grey.png", "1" if mode == "1" else "L"), 16)
    np.testing.assert_allclose(rgb.astype(int), grey, atol=4)


def test_of_16_bits_the_upper_8_are_kept(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "p.png")
    shown = read_image(tmp_path / "p.png", 64)
    np.testing.assert_array_equal(shown[..., 1], values >> 8)
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(UserError, match=r"f\.tif.*undefined"):
        read_image(tmp_path / "f.tif", 8)


def test_transparency_is_dropped_without_a_warning(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 250, 0, 0])
    image.save(tmp_path / "p.png", transparency=bytes([255, 100]))
    assert (read_image(tmp_path / "p.png", 8) == (250, 0, 0)).all()


@pytest.mark.parametrize("orientation", range(10))  # 0 and 9 mean nothing
def test_a_rotated_photo_is_turned_upright(tmp_path: Path, orientation: int) -> None:
    corners = np.zeros((40, 60, 3), np.uint8)
    corners[:20, :30], corners[:20, 30:], corners[20:, :30] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(corners).save(tmp_path / "p.jpg", quality=95, exif=exif)
    with Image.open(tmp_path / "p.jpg") as image:
        upright = ImageOps.exif_transpose(image).resize((16, 16), Image.Resampling.BILINEAR)
    difference = read_image(tmp_path / "p.jpg", 16).astype(int) - np.array(upright)
    assert np.abs(difference).max() <= 2


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    "exif",
    [b"MM\0*\0\0\0\x08\0\x09", b"garbage", b"MM\0*", b"", b"II*\0\x08\0\0\0\x01\0\x12\x01\x02\0"],
)
def test_broken_exif_data_are_ignored(tmp_path: Path, exif: bytes) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "p.jpg", exif=b"Exif\0\0" + exif)
    assert read_image(tmp_path / "p.jpg", 4).shape == (4, 4, 3)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (3000, 7), (2500, 2500)])
def test_images_of_any_size(tmp_path: Path, size: tuple[int, int]) -> None:
    assert read_image(picture(tmp_path / "p.png", size=size), 16).shape == (16, 16, 3)


def test_a_bad_image_is_named(tmp_path: Path) -> None:
    whole = picture(tmp_path / "whole.png", size=(200, 200)).read_bytes()
    for name, data in [
        ("cut.png", whole[: len(whole) // 2]),
        ("text.png", b"hello"),
        ("e.png", b""),
    ]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=f"{name}.*not a readable image"):
            read_image(tmp_path / name, 8)
        with pytest.raises(UserError, match="the image: not a readable image"):
            read_image(data, 8)
    with pytest.raises(UserError, match="no such image"):
        read_image(tmp_path / "absent.png", 8)
    with pytest.raises(UserError, match="folder"):
        read_image(tmp_path, 8)


@pytest.mark.filterwarnings("ignore")  # Pillow's warnings about the damage
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP"])
def test_damaged_bytes_are_an_image_or_one_clear_line(kind: str) -> None:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((30, 20)).convert("RGB").save(buffer, kind)
    whole, choose = buffer.getvalue(), random.Random(0)
    for _ in range(200):
        data = bytearray(whole)
        data[choose.randrange(len(data))] = choose.randrange(256)
        try:
            assert read_image(bytes(data[: choose.randrange(len(data)) * 2]), 8).shape == (
                8,
                8,
                3,
            )
        except UserError as error:
            assert "\n" not in str(error)


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(bomb)
    assert bomb.stat().st_size < 100_000
    with pytest.raises(UserError, match=r"bomb\.png.*too many pixels"):
        read_image(bomb, 8)


def test_damaged_and_converted_images_are_listed(tmp_path: Path) -> None:
    images = {str(n): picture(tmp_path / f"{n}.png") for n in range(7)}
    images["1"].unlink()
    images["4"].write_text("<html>")
    picture(images["5"], "L")
    picture(images["6"], "RGBA")
    reader, seen = ImageReader(images, 8), []
    free: SimpleQueue[np.ndarray] = SimpleQueue()
    for _ in range(2):
        free.put(np.full((3, 8, 8, 3), 77, np.uint8))  # left there by the previous batch
    batches = [{0: "0", 2: "1"}, {1: "2", 2: "3"}, {0: "4"}, {0: "5", 1: "6"}]
    with ThreadPoolExecutor(2) as pool:
        for batch, (places, block) in zip(
            batches, reader.batches(batches, free, pool), strict=True
        ):
            for place in range(3):
                read = place in places
                expected = read_image(images[batch[place]], 8) if read else 0
                np.testing.assert_array_equal(block[place], expected)
            seen.append([batch[place] for place in places])
            free.put(block)
    assert seen == [["0"], ["2", "3"], [], ["5", "6"]]
    assert reader.not_rgb == {"5": "grey", "6": "RGBA"}
    assert list(reader.damaged) == ["1", "4"] and reader.damaged["1"] == "missing"
    assert few(reader.not_rgb, images) == f"{images['5']} (grey), {images['6']} (RGBA)"


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1", "AVIF"),
        (bytes(128) + b"DICM", "DICOM"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\n<!DOCTYPE HTML><html>not found</html>", "web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "error message"),
        (b'{"error": "not found"}', "error message"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (b"", "empty"),
    ],
)
def test_what_is_no_photo_is_named(tmp_path: Path, content: bytes, fact: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(DamagedImageError, match=fact) as caught:
        read_image(path, 8)
    assert fact in caught.value.reason
