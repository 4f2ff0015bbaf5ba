"""Pictures from files: decoded, checked, and squashed to a square as in the papers."""

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from vqa_repro.errors import UserError


def read_picture(source: Path | bytes, size: int) -> npt.NDArray[np.uint8]:
    """Decode a picture to (size, size, 3) uint8 RGB, squashed: the aspect ratio is not kept.

    Squashing (rather than cropping) is what SAN section 4.2 and HieCoAtt section 4.2 do: every
    part of the picture stays visible. The filter is Pillow's bilinear with anti-aliasing.

    Raises UserError, naming the file, if it cannot be read, is not a picture or is truncated.
    """
    name = "the picture" if isinstance(source, bytes) else str(source)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            rgb = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(f"{name}: too many pixels to be a photo; scale it down first") from None
    except FileNotFoundError:
        raise UserError(f"{name}: no such picture") from None
    except IsADirectoryError:
        raise UserError(f"{name}: is a folder, not a picture") from None
    except PermissionError:
        raise UserError(f"{name}: no permission to read this picture") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{name}: not a readable picture ({error}); replace the file") from None
    return np.array(rgb)
