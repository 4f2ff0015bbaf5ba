"""Check plain values from JSON files against types."""

from typing import Any, TypeVar

import msgspec

from vqa_repro.utils.errors import UserError

T = TypeVar("T")


def convert(value: Any, kind: type[T], where: str) -> T:
    """Return ``value`` as ``kind``, a type that msgspec knows.

    Raise UserError that names ``where`` and the field that does not fit.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `$")
        field = path.strip("`.")
        raise UserError(f"{where}: {field}: {what}" if field else f"{where}: {what}") from None
