"""Stable 64-bit hashes of category strings.

A model sees a category as the xxhash64 of its UTF-8 bytes, read as a signed 64-bit integer. Training,
serving and batch scoring call this one function, so a string is the same number everywhere, on every
machine and in every year. 0 is reserved for *missing*.
"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

MISSING = 0
"""The hash of None, null and NaN; no string has it."""


def hash_strings(values: Iterable[Any]) -> npt.NDArray[np.int64]:
    """Hash strings to int64, missing values to 0.

    values: an Arrow array or chunked array of strings (dictionary-encoded ones are fastest), a NumPy array
        of any shape, a pandas or polars series, or any iterable; items are str, UTF-8 bytes, or
        missing (None, NaN, null). An empty string is a value, not missing.
    Returns: int64 of the same length; a NumPy array keeps its shape.
    Raises: TypeError if an item is neither text nor missing.
    Source: Collet, xxHash fast digest algorithm, XXH64 with seed 0.
    """
    if isinstance(values, pa.ChunkedArray):
        return _hash_arrow(values.combine_chunks())
    if isinstance(values, pa.Array):
        return _hash_arrow(values)
    if isinstance(values, np.ndarray):
        return hash_strings(values.ravel().tolist()).reshape(values.shape)
    to_arrow = getattr(values, "to_arrow", None)  # polars
    if to_arrow is not None:
        return hash_strings(to_arrow())
    return _hash_items(values)


def _hash_items(items: Iterable[Any]) -> npt.NDArray[np.int64]:
    """Hash Python objects one by one: a string takes 80 ns, finding the distinct ones first takes longer."""
    xxh64 = xxhash.xxh64_intdigest
    hashes = [(xxh64(item.encode()) or 1) if item.__class__ is str else _hash_one(item) for item in items]
    return np.array(hashes, dtype=np.uint64).view(np.int64)


def _hash_one(item: object) -> int:
    """Hash one string to a non-zero number; 0 means missing, so the one string in 2^64 that hashes to 0 becomes 1."""
    if isinstance(item, str):
        item = item.encode()
    if isinstance(item, bytes):
        return xxhash.xxh64_intdigest(item) or 1
    if (
        item is None
        or (isinstance(item, float) and math.isnan(item))
        or type(item).__name__ in {"NAType", "NaTType"}
    ):
        return MISSING
    raise _not_text(item)


def _not_text(item: object) -> TypeError:
    return TypeError(
        f"hash_strings takes str, bytes or None, got {type(item).__name__} {item!r}; cast the column to strings first"
    )


def _hash_arrow(array: Any) -> npt.NDArray[np.int64]:
    """Hash the dictionary of an Arrow array, then look each row up in it."""
    if pa.types.is_null(array.type):
        return np.zeros(len(array), dtype=np.int64)
    if not pa.types.is_dictionary(array.type):
        array = array.dictionary_encode()
    words = array.dictionary.to_pylist()
    table = _hash_items([*words, None])
    codes = array.indices.fill_null(len(words)) if array.null_count else array.indices
    found: npt.NDArray[np.int64] = table[codes.to_numpy(zero_copy_only=False)]
    return found
