"""Values at the edges of their types are judged alike on every way into a feature store."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal as DecimalNumber
from fractions import Fraction
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from featurestore import (
    BatchSource,
    CsvFiles,
    Decimal,
    Entity,
    FeatureView,
    Field,
    Float32,
    Float64,
    InRange,
    Int32,
    Int64,
    InvalidRows,
    StreamSource,
)
from featurestore.definitions.dtypes import FeatureType
from featurestore.definitions.expectations import Expectation
from featurestore.rows import check_rows, conform
from featurestore.sources.rows import check
from featurestore.streams.decode import decode
from tests.conditions.values import LARGEST_WHOLE, numbers, whole_numbers
from tests.featurestore.streams.events import clicks, messages

AT = datetime(2024, 5, 1, tzinfo=UTC)
Accepts = Callable[[FeatureType, Any, Sequence[Expectation]], bool]


def _view(dtype: FeatureType, expectations: Sequence[Expectation]) -> FeatureView:
    return FeatureView("v", [Entity("k")], [Field("x", dtype)], expectations=expectations)


def _conforms(dtype: FeatureType, rows: Any, expectations: Sequence[Expectation]) -> bool:
    view = _view(dtype, expectations)
    try:
        check_rows(view, conform(view, rows, clock=lambda: AT))
    except InvalidRows as error:
        return "'x'" not in str(error)  # a refusal names the column
    return True


def as_python(dtype: FeatureType, value: Any, expectations: Sequence[Expectation]) -> bool:
    return _conforms(dtype, [{"k": "a", "x": value, "event_timestamp": AT}], expectations)


def as_arrow(dtype: FeatureType, value: Any, expectations: Sequence[Expectation]) -> bool:
    return _conforms(dtype, pa.table({"k": ["a"], "x": [value], "event_timestamp": [AT]}), expectations)


def as_polars(dtype: FeatureType, value: Any, expectations: Sequence[Expectation]) -> bool:
    return _conforms(dtype, pl.DataFrame({"k": ["a"], "x": [value], "event_timestamp": [AT]}), expectations)


def _loads(dtype: FeatureType, column: pa.Array, expectations: Sequence[Expectation]) -> bool:
    source = BatchSource(
        "s", CsvFiles("/x/*.csv"), [Field("x", dtype)], "at", timezone="UTC", expectations=expectations
    )
    checked = check(source, pa.table({"at": ["2024-05-01T00:00:00Z"], "x": column}), loaded_at=AT)
    assert all("'x'" in reason for reason in checked.rejected["reason"].to_pylist())
    return checked.rows.num_rows == 1


def as_text_of_a_file(dtype: FeatureType, value: Any, expectations: Sequence[Expectation]) -> bool:
    return _loads(dtype, pa.array([str(value)]), expectations)


def as_typed_file(dtype: FeatureType, value: Any, expectations: Sequence[Expectation]) -> bool:
    return _loads(dtype, pa.array([value]), expectations)


def as_message(dtype: FeatureType, value: Any, expectations: Sequence[Expectation]) -> bool:
    source: StreamSource = clicks(schema=[Field("x", dtype)], partitioned_by=[], expectations=expectations)
    text = json.dumps({"x": value, "at": AT.isoformat()}).encode()
    found = decode(source, messages(0, 0, [text]), {})
    return found.events.num_rows == 1


ANY_WAY = pytest.mark.parametrize(
    "accepts", [as_python, as_arrow, as_polars, as_text_of_a_file, as_typed_file, as_message]
)


@ANY_WAY
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("bound", [LARGEST_WHOLE, LARGEST_WHOLE + 1, 2**62, 2**63 - 2])
def test_the_bound_of_a_whole_number_is_exact_on_every_way_in(
    accepts: Accepts, bound: int, sign: int
) -> None:
    limit = InRange("x", most=bound) if sign > 0 else InRange("x", least=-bound)
    assert [accepts(Int64, sign * value, [limit]) for value in (bound - 1, bound, bound + 1)] == [
        True,
        True,
        False,
    ]


_decimals = st.integers(-(10**18) + 1, 10**18 - 1).map(lambda digits: DecimalNumber(digits).scaleb(-2))
_columns = st.one_of(
    st.tuples(st.just(Int64), whole_numbers),
    st.tuples(st.just(Int32), st.integers(-(2**31), 2**31 - 1)),
    st.tuples(st.just(Float64), numbers),
    st.tuples(st.just(Float32), st.floats(width=32)),
    st.tuples(st.just(Decimal(18, 2)), _decimals),
)
_bounds = st.one_of(
    st.none(), whole_numbers, numbers, st.integers(-(10**400), 10**400), st.sampled_from([0.1, -0.1, 0.29])
)


@given(column=_columns, least=_bounds, most=_bounds)
def test_a_range_is_what_it_says_for_any_value_and_any_bound(column: Any, least: Any, most: Any) -> None:
    dtype, value = column
    bounds = [bound for bound in (least, most) if bound is not None]
    assume(bounds and not any(map(math.isnan, filter(lambda each: isinstance(each, float), bounds))))
    assume(least is None or most is None or least <= most)
    outside = InRange("x", least=least, most=most).outside(pa.array([value], dtype.arrow)).to_pylist()
    assert outside == [value is not None and not _lies_within(dtype, value, least, most)]


def _lies_within(dtype: FeatureType, value: Any, least: Any, most: Any) -> bool:
    """Compare by Python, whose comparisons of numbers are exact; of decimals 0.1 means a tenth."""
    if isinstance(dtype, Decimal):
        value = Fraction(value)
        least, most = (
            Fraction(str(each)) if isinstance(each, float) and math.isfinite(each) else each
            for each in (least, most)
        )
    return (least is None or value >= least) and (most is None or value <= most)
