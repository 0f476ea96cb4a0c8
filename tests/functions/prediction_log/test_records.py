from __future__ import annotations

from typing import Any

import msgpack
import pytest

from toque.functions.prediction_log.records import (
    _KEPT_BYTES,
    _packers,
    decode_prediction,
    encode_prediction,
)

FIELDS: dict[str, Any] = {
    "model": "late", "version": 1, "arm": "champion", "shadow": False, "unit": None, "at_us": 1,
    "latency_ms": 0.5, "rows": 1, "numeric": None, "categorical": None, "outputs": None,
}  # fmt: skip


def test_a_record_that_cannot_be_written_leaves_nothing_in_the_next():
    whole = encode_prediction(id="one", **FIELDS)
    with pytest.raises(UnicodeEncodeError):
        encode_prediction(id="half \ud800", **FIELDS)
    assert encode_prediction(id="one", **FIELDS) == whole
    assert whole == msgpack.packb(tuple(decode_prediction(whole).values()))


def test_memory_of_a_large_record_is_not_kept():
    encode_prediction(id="one", **FIELDS)
    kept = _packers.packer
    encode_prediction(id="two", **FIELDS)
    assert _packers.packer is kept
    encode_prediction(id="large", **{**FIELDS, "categorical": [["x" * _KEPT_BYTES]]})
    assert _packers.packer is None
