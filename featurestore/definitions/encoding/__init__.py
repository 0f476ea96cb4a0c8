"""Encoding of a view's row as bytes, its fixed slots and what follows them."""

from toque.featurestore.definitions.encoding.rows import (
    ENCODING_VERSION,
    HEADER_BYTES,
    Decoded,
    RowLayout,
    microseconds,
    precedence,
    vectors_of,
)

__all__ = [
    "ENCODING_VERSION",
    "HEADER_BYTES",
    "Decoded",
    "RowLayout",
    "microseconds",
    "precedence",
    "vectors_of",
]
