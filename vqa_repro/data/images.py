"""Image files: decode, check, and squash to a square as in the papers."""

import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from vqa_repro.utils.errors import UserError, first_line
from vqa_repro.utils.files import open_regular
from vqa_repro.utils.paths import dangling_link

# A file, its content, or pixels: an array is (H, W, 3) uint8 RGB or (H, W) grey.
ImageSource = str | Path | bytes | Image.Image | npt.NDArray[np.uint8]

# Formats of photos. Pillow accepts dozens more, among them EPS, which is executable code.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

_MODES = {"1": "grey", "L": "grey", "LA": "grey", "P": "palette", "PA": "palette"}
_ORIENTATION = 0x0112  # EXIF tag
# EXIF orientation -> the operation that turns the stored image upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class DamagedImageError(UserError):
    """An image that cannot be read. ``reason`` is what is wrong, without the file's name."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def read_image(source: ImageSource, size: int) -> npt.NDArray[np.uint8]:
    """Decode an image to (size, size, 3) uint8 RGB, squashed: the aspect ratio is not kept.

    Squashing (rather than cropping) is what SAN section 3.1 and HieCoAtt section 4.2 do: every
    part of the image stays visible. The filter is Pillow's bilinear with anti-aliasing.

    Grey, palette and CMYK images become RGB; of 16-bit values the upper 8 bits are kept,
    transparency is dropped, and EXIF orientation is applied.

    Raise DamagedImageError, naming the file, if it cannot be read, is no image or is truncated.
    """
    return read_image_and_mode(source, size)[0]


def read_image_and_mode(source: ImageSource, size: int) -> tuple[npt.NDArray[np.uint8], str]:
    """Return the image as ``read_image`` does, and the mode of the file: "RGB", "grey", ..."""
    name = str(source) if isinstance(source, str | Path) else "the image"
    try:
        with open_image(source) as image:
            mode = "grey" if image.mode.startswith("I;16") else _MODES.get(image.mode, image.mode)
            upright = _UPRIGHT.get(orientation(image))
            squashed = _rgb(image).resize((size, size), Image.Resampling.BILINEAR)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        reason = "too many pixels to be a photo"
        raise DamagedImageError(f"{name}: {reason}; scale it down first", reason) from None
    except FileNotFoundError:
        link = dangling_link(Path(name))
        raise DamagedImageError(f"{name}: {link or 'no such image'}", link or "missing") from None
    except IsADirectoryError:
        reason = "is a folder, not an image"
        raise DamagedImageError(f"{name}: {reason}", reason) from None
    except PermissionError:
        reason = "no permission to read this image"
        raise DamagedImageError(f"{name}: {reason}", reason) from None
    except UnidentifiedImageError:  # its own text is the file's name, or an object's address
        reason = f"not a readable image: {_kind_of_file(source)}"
        raise DamagedImageError(f"{name}: {reason}", reason) from None
    except Exception as error:  # Pillow's decoders raise many kinds for a damaged file
        reason = f"not a readable image: {getattr(error, 'strerror', None) or first_line(error)}"
        raise DamagedImageError(f"{name}: {reason}; replace the file", reason) from None
    return np.array(squashed.transpose(upright) if upright is not None else squashed), mode


def _kind_of_file(source: ImageSource) -> str:
    """Return what a file that is no image of a known format is instead, by its first bytes."""
    head = source if isinstance(source, bytes) else b""
    if isinstance(source, str | Path):
        with suppress(OSError), open_regular(Path(source)) as file:
            head = file.read(200)
            if not head:
                return "the file is empty: replace it"
    text = head.lstrip().lower()
    if head[4:8] == b"ftyp":
        kind = "AVIF" if head[8:11] == b"avi" else "HEIC or a video"
        return f"{kind}, which is not supported: convert it to JPEG or PNG"
    if head[128:132] == b"DICM":
        return "DICOM, which is not supported: convert it to PNG"
    if head[4:8] == b"jP  ":
        return "JPEG 2000, which is not supported: convert it to JPEG or PNG"
    if b"<svg" in text or text.startswith((b"%pdf", b"%!")):
        return "a drawing (SVG, PDF or PostScript): convert it to PNG"
    if text.startswith((b"<!doctype html", b"<html", b"<?xml", b"{")):  # XML and JSON: of a server
        return "a web page or an error message: download the image again"
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the image itself: run `git lfs pull`"
    return "no format that is known: replace the file"


@contextmanager
def open_image(source: ImageSource) -> Iterator[Image.Image]:
    """Open an image, of a file its header alone; raise what Pillow and ``open_regular`` do."""
    if isinstance(source, np.ndarray):
        yield Image.fromarray(source)
    elif isinstance(source, Image.Image):
        yield source.copy()  # _rgb modifies it
    else:
        file = io.BytesIO(source) if isinstance(source, bytes) else open_regular(Path(source))
        with file, Image.open(file, formats=FORMATS) as image:
            yield image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow would clip all but the darkest 256 values to white
        return Image.fromarray((np.array(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"the brightness of its values (Pillow's mode {image.mode}) is undefined")
    image.info.pop("transparency", None)  # dropped as an alpha channel is; else Pillow warns
    return image.convert("RGB")


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of ``image``: 1 is upright, 5 to 8 have exchanged sides."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # broken EXIF data raise many kinds; the image itself is readable
        return 1
