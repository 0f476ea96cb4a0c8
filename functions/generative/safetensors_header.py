"""Header of a safetensors file: type, shape and place of each tensor, read without the numbers and without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, NonNegativeInt, TypeAdapter, ValidationError
from pydantic_core import from_json

from toque.functions.generative.errors import GenerativeError

__all__ = ["SafetensorsHeader", "TensorEntry", "read_header"]

_LENGTH_BYTES: Final = 8
"""Size of the header's length, little-endian, with which a file begins."""
_METADATA: Final = "__metadata__"


class TensorEntry(BaseModel):
    """One tensor of a file. dtype: as `F32`. data_offsets: bytes from the header's end to its begin and its end."""

    model_config = ConfigDict(frozen=True)

    dtype: str
    shape: list[NonNegativeInt]
    data_offsets: tuple[NonNegativeInt, NonNegativeInt]


_ENTRIES: Final = TypeAdapter(dict[str, TensorEntry])


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """What a file says of its tensors, by name. data_at: byte of the file at which their numbers begin."""

    tensors: dict[str, TensorEntry]
    data_at: int


def read_header(file: Path) -> SafetensorsHeader:
    """Read the header of a safetensors file. Raises: GenerativeError if the file ends within it, or it is damaged."""
    with file.open("rb") as opened:
        start = opened.read(_LENGTH_BYTES)
        if len(start) < _LENGTH_BYTES:
            raise _damaged(file, f"it ends after {len(start)} bytes, within the length of its header")
        length, size = int.from_bytes(start, "little"), file.stat().st_size
        if length > size - _LENGTH_BYTES:  # before it is read: a damaged length may be any number
            raise _damaged(file, f"its header of {length} bytes goes beyond its end at {size}")
        header = opened.read(length)
    try:
        found = from_json(header)
    except ValueError as error:
        raise _damaged(file, f"its header is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise _damaged(file, f"its header is a JSON {type(found).__name__} and no object")
    found.pop(_METADATA, None)
    try:
        return SafetensorsHeader(_ENTRIES.validate_python(found), _LENGTH_BYTES + length)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise _damaged(file, f"its header has at {where}: {first['msg']}") from error


def _damaged(file: Path, what: str) -> GenerativeError:
    return GenerativeError(
        f"{file.name}: no file of safetensors, {what}; copy it again, or save it anew by save_pretrained"
    )
