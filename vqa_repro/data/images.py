"""Pictures from files: decoded, checked, and squashed to a square as in the papers."""

import io
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from vqa_repro.utils.errors import UserError, first_line

# A file, the bytes of one, or pixels: an array is (H, W, 3) uint8 RGB or (H, W) grey.
Picture = str | Path | bytes | Image.Image | npt.NDArray[np.uint8]

# Photos' formats. Pillow would take dozens more, EPS among them, which is a program to be run.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
FEW = 5  # pictures named in a message about many

_KINDS = {"1": "grey", "L": "grey", "LA": "grey", "P": "palette", "PA": "palette"}
# EXIF orientation -> what turns the stored picture upright.
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class DamagedPictureError(UserError):
    """A picture that cannot be read. ``reason`` is what is wrong, without the file's name."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def read_image(source: Picture, size: int) -> npt.NDArray[np.uint8]:
    """Decode a picture to (size, size, 3) uint8 RGB, squashed: the aspect ratio is not kept.

    Squashing (rather than cropping) is what SAN section 3.1 and HieCoAtt section 4.2 do: every
    part of the picture stays visible. The filter is Pillow's bilinear with anti-aliasing.

    Grey, palette and CMYK pictures become RGB, of 16 bits the upper 8 count, transparency is
    dropped, and a photo that its EXIF tag calls turned is turned upright.

    Raises DamagedPictureError, naming the file, if it cannot be read, is no picture or is cut off.
    """
    return _read(source, size)[0]


class ImageReader:
    """Reads many pictures and keeps an account of those that are damaged or not RGB."""

    def __init__(self, images: Mapping[str, Path], size: int) -> None:
        self._images = images
        self._size = size
        self.damaged: dict[str, str] = {}  # key -> what is wrong
        self.not_rgb: dict[str, str] = {}  # key -> what it is: "grey", "palette", "CMYK", ...

    def batches(
        self,
        batches: Sequence[Mapping[int, str]],
        free: "SimpleQueue[npt.NDArray[np.uint8]]",
        pool: ThreadPoolExecutor,
    ) -> Iterator[tuple[list[int], npt.NDArray[np.uint8]]]:
        """Each of ``batches`` (place -> key): the places read, and the room with the pictures.

        A room (B, size, size, 3) is taken from ``free``, to which the caller returns it; batches
        are decoded ahead into as many as there are. Where no picture is, there are zeros.
        """
        ahead: deque[tuple[dict[int, Future[str]], npt.NDArray[np.uint8]]] = deque()
        begun = 0
        for batch in batches:
            while begun < len(batches) and (not ahead or not free.empty()):
                room = free.get()
                coming = {}
                for place in range(len(room)):
                    if place in batches[begun]:
                        path = self._images[batches[begun][place]]
                        coming[place] = pool.submit(_read_into, room[place], path, self._size)
                    else:
                        room[place] = 0
                ahead.append((coming, room))
                begun += 1
            coming, room = ahead.popleft()
            places = []
            for place, future in coming.items():
                try:
                    kind = future.result()
                except DamagedPictureError as error:
                    self.damaged[batch[place]] = error.reason
                    room[place] = 0
                    continue
                places.append(place)
                if kind != "RGB":
                    self.not_rgb[batch[place]] = kind
            yield places, room


def few(remarks: Mapping[str, str], images: Mapping[str, Path]) -> str:
    """The first files of ``remarks`` (key -> remark), each with its remark."""
    named = [f"{images[key]} ({remark})" for key, remark in remarks.items()]
    return ", ".join(named[:FEW]) + (", ..." if len(named) > FEW else "")


def _read_into(room: npt.NDArray[np.uint8], source: Picture, size: int) -> str:
    room[...], kind = _read(source, size)
    return kind


def _read(source: Picture, size: int) -> tuple[npt.NDArray[np.uint8], str]:
    """The picture as ``read_picture`` gives it, and what the file holds: "RGB", "grey", ..."""
    name = str(source) if isinstance(source, str | Path) else "the picture"
    try:
        with _open(source) as image:
            kind = "grey" if image.mode.startswith("I;16") else _KINDS.get(image.mode, image.mode)
            upright = _UPRIGHT.get(_orientation(image))
            picture = _rgb(image).resize((size, size), Image.Resampling.BILINEAR)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        reason = "too many pixels to be a photo"
        raise DamagedPictureError(f"{name}: {reason}; scale it down first", reason) from None
    except FileNotFoundError:
        raise DamagedPictureError(f"{name}: no such picture", "missing") from None
    except IsADirectoryError:
        reason = "is a folder, not a picture"
        raise DamagedPictureError(f"{name}: {reason}", reason) from None
    except PermissionError:
        reason = "no permission to read this picture"
        raise DamagedPictureError(f"{name}: {reason}", reason) from None
    except UnidentifiedImageError:  # its own text is the file's name, or an object's address
        reason = f"not a readable picture: {_kind_of_file(source)}"
        raise DamagedPictureError(f"{name}: {reason}", reason) from None
    except Exception as error:  # Pillow's decoders raise many kinds for a damaged file
        reason = f"not a readable picture: {first_line(error)}"
        raise DamagedPictureError(f"{name}: {reason}; replace the file", reason) from None
    return np.array(picture.transpose(upright) if upright is not None else picture), kind


def _kind_of_file(source: Picture) -> str:
    """Return what a file that is no image of a known format is instead, by its first bytes."""
    head = source if isinstance(source, bytes) else b""
    if isinstance(source, str | Path):
        with suppress(OSError), open(source, "rb") as file:
            head = file.read(200)
            if not head:
                return "the file is empty: replace it"
    text = head.lstrip().lower()
    if head[4:8] == b"ftyp":
        kind = "AVIF" if head[8:11] == b"avi" else "HEIC or a video"
        return f"{kind}, which is not supported: convert it to JPEG or PNG"
    if head[128:132] == b"DICM":
        return "DICOM, which is not supported: convert it to PNG"
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page: download the image again"
    if text.startswith((b"<svg", b"<?xml", b"%pdf", b"%!")):
        return "a drawing (SVG, PDF or PostScript): convert it to PNG"
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the image itself: run `git lfs pull`"
    return "no format that is known: replace the file"


def _open(source: Picture) -> AbstractContextManager[Image.Image]:
    if isinstance(source, np.ndarray):
        return nullcontext(Image.fromarray(source))
    if isinstance(source, Image.Image):
        return nullcontext(source.copy())  # what is dropped from it stays in the caller's
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow would call all but the darkest 256 values white
        return Image.fromarray((np.array(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"its numbers (Pillow's mode {image.mode}) have no agreed brightness")
    image.info.pop("transparency", None)  # dropped as an alpha channel is; else Pillow warns
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # broken EXIF data, of many kinds, in a picture that can be seen all the same
        return 1
