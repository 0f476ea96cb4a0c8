from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from functions.prediction_log.records import (
    _KEPT_BYTES,
    NumericRecordEncoder,
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


float32s = st.lists(st.floats(width=32, allow_nan=False), max_size=300).map(
    lambda numbers: np.array([numbers], np.float32)
)


@given(
    model=st.text(), version=st.integers(0, 2**31), arm=st.text(), shadow=st.booleans(), id=st.text(max_size=300),
    unit=st.none() | st.text(max_size=300), at_us=st.integers(-(2**62), 2**62), latency_ms=st.floats(allow_nan=False),
    rows=st.integers(1, 2**31 - 1), numeric=float32s, outputs=float32s,
)  # fmt: skip
def test_a_brief_record_reads_as_a_whole_one(model, version, arm, shadow, numeric, outputs, **more: Any):
    assume(not any("\ud800" <= letter <= "\udfff" for letter in f"{model}{arm}{more['id']}{more['unit']}"))
    brief = NumericRecordEncoder(model=model, version=version, arm=arm, shadow=shadow)
    record = brief.encode(**more, numeric=numeric.tobytes(), outputs=outputs.tobytes())
    whole = encode_prediction(
        model=model,
        version=version,
        arm=arm,
        shadow=shadow,
        **more,
        numeric=numeric,
        categorical=None,
        outputs=outputs,
    )
    assert decode_prediction(record) == decode_prediction(whole)
