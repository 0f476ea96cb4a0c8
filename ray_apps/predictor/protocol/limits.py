"""Bounds on what is decoded and encoded in one step, so that no request holds the interpreter for long.

Parsers hold the interpreter's lock from the first byte to the last, in whatever thread they run, and their time grows with
the number of values. So JSON and typed contents are bounded by that number; tensors as bytes are only copied, piece by
piece. Whatever is larger than `SMALL_BYTES` is decoded and encoded off the event loop.
"""

from __future__ import annotations

from typing import Final

from toque.ray_apps.predictor.protocol.errors import TooLarge

__all__ = [
    "MAX_FIELDS",
    "MAX_ITEMS",
    "MAX_JSON_BYTES",
    "MAX_JSON_VALUES",
    "MAX_TYPED_BYTES",
    "SLICE_VALUES",
    "SMALL_BYTES",
    "check_json",
    "has_listed_truths",
]

SMALL_BYTES: Final = 64 << 10
"""Size up to which decoding takes a few milliseconds at most, and is done on the event loop."""
MAX_JSON_BYTES: Final = 8 << 20
MAX_JSON_VALUES: Final = 262_144
"""Numbers, texts, names and brackets in the JSON of one request: some 25 ms of parsing, 50 at the very most."""
MAX_TYPED_BYTES: Final = 1 << 20
"""Size of a message without its raw contents."""
MAX_FIELDS: Final = 4_096
"""Fields on the first level of a message of more than `SMALL_BYTES`."""
MAX_ITEMS: Final = 262_144
"""Items of a BYTES tensor, each of which is an object of some 50 bytes in memory."""
SLICE_VALUES: Final = 65_536
"""Values that are written as JSON in one step."""
_LOOK_BEHIND: Final = 64
_SEPARATORS: Final = (b",", b"[", b"{", b":")


def check_json(text: bytes | bytearray) -> None:
    """Refuse JSON that takes long to parse. Raises: TooLarge, with the remedy."""
    if len(text) <= SMALL_BYTES:
        return
    if len(text) > MAX_JSON_BYTES:
        raise TooLarge(
            f"body: {len(text)} bytes of JSON; at most {MAX_JSON_BYTES} are accepted: send binary tensors"
        )
    values = sum(map(text.count, _SEPARATORS))
    if values > MAX_JSON_VALUES:
        raise TooLarge(
            f"body: about {values} values as JSON; at most {MAX_JSON_VALUES} are accepted: send binary tensors"
        )


def has_listed_truths(text: bytes | bytearray) -> bool:
    """Whether JSON may have true or false in an array, by the text before each; it costs a search for the two words."""
    for word in (b"true", b"false"):
        at = text.find(word)
        while at >= 0:
            before = text[max(0, at - _LOOK_BEHIND) : at].rstrip()
            if not before or before[-1:] in (b"[", b","):
                return True
            at = text.find(word, at + len(word))
    return False
