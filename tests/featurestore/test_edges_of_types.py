"""Values at the edges of their types are judged alike on every way into a feature store."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal as DecimalNumber
from fractions import Fraction
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.conditions.values import LARGEST_WHOLE, any_edge, numbers, whole_numbers
from tests.featurestore.streams.events import clicks, messages
from toque.featurestore import (
    BatchSource,
    Bool,
    CsvFiles,
    Decimal,
    Entity,
    FeatureService,
    FeatureView,
    Field,
    Float32,
    Float64,
    InRange,
    Int32,
    Int64,
    InvalidRows,
    List,
    Map,
    RequestSource,
    StreamSource,
    Vector,
    on_demand_feature_view,
)
from toque.featurestore.definitions.dtypes import FeatureType, parse_type
from toque.featurestore.definitions.expectations import Expectation
from toque.featurestore.offline.retrieval import plan_retrieval
from toque.featurestore.online.serving import Request
from toque.featurestore.rows import check_rows, conform
from toque.featurestore.sources.rows import check
from toque.featurestore.streams.decode import decode

AT = datetime(2024, 5, 1, tzinfo=UTC)
Accepts = Callable[[FeatureType, Any, Sequence[Expectation]], bool]


def _view(dtype: FeatureType, expectations: Sequence[Expectation]) -> FeatureView:
    return FeatureView("v", [Entity("k")], [Field("x", dtype)], expectations=expectations)


def _conforms(dtype: FeatureType, rows: Any, expectations: Sequence[Expectation]) -> bool:
    view = _view(dtype, expectations)
    try:
        check_rows(view, conform(view, rows, clock=lambda: AT))
    except InvalidRows as error:
        return "column 'x'" not in str(error)  # a refusal names the column
    return True


def _table(value: Any) -> pa.Table:
    """Make a row of a column with the value's own type; an integer beyond 64 bits is a decimal."""
    is_wide = isinstance(value, int) and not -(2**63) <= value < 2**63
    column = pa.array([DecimalNumber(value)]) if is_wide else pa.array([value])
    return pa.table({"k": ["a"], "x": column, "event_timestamp": [AT]})


def as_python(dtype: FeatureType, value: Any, expectations: Sequence[Expectation]) -> bool:
    return _conforms(dtype, [{"k": "a", "x": value, "event_timestamp": AT}], expectations)


def as_arrow(dtype: FeatureType, value: Any, expectations: Sequence[Expectation]) -> bool:
    return _conforms(dtype, _table(value), expectations)


def as_polars(dtype: FeatureType, value: Any, expectations: Sequence[Expectation]) -> bool:
    return _conforms(dtype, pl.DataFrame(_table(value)), expectations)


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
    return _loads(dtype, _table(value)["x"], expectations)


def as_message(dtype: FeatureType, value: Any, expectations: Sequence[Expectation]) -> bool:
    source: StreamSource = clicks(schema=[Field("x", dtype)], partitioned_by=[], expectations=expectations)
    text = json.dumps({"x": value, "at": AT.isoformat()}).encode()
    found = decode(source, messages(0, 0, [text]), {})
    return found.events.num_rows == 1


def as_value_of_a_request(dtype: FeatureType, value: Any, _: Sequence[Expectation]) -> bool:
    """Whether an on-demand view gets a value that was sent with a request."""
    ask = RequestSource("ask", [Field("x", dtype)])

    @on_demand_feature_view(sources=[ask], schema=[Field("y", Bool)], form="polars")
    def made(given: pl.DataFrame) -> pl.DataFrame:
        return given.select(y=pl.col("x").is_not_null())

    try:
        Request(plan_retrieval(FeatureService("s", features=[made])), ()).answer([{"x": value}], [], now=AT)
    except InvalidRows as error:
        return "'x'" not in str(error)
    return True


ANY_WAY = pytest.mark.parametrize(
    "accepts", [as_python, as_arrow, as_polars, as_text_of_a_file, as_typed_file, as_message]
)
OR_ASKED = pytest.mark.parametrize("accepts", [*ANY_WAY.args[1], as_value_of_a_request])


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


@OR_ASKED
@any_edge
def test_the_last_value_that_a_type_holds_fits_and_the_next_does_not(
    accepts: Accepts, dtype: str, held_value: Any, beyond: Any
) -> None:
    assert accepts(parse_type(dtype), held_value, [])
    assert not accepts(parse_type(dtype), beyond, [])


@pytest.mark.parametrize(
    "accepts", [as_python, as_arrow, as_polars, as_text_of_a_file, as_typed_file, as_value_of_a_request]
)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("dtype", [Float32, Float64])
def test_an_infinity_that_is_meant_fits(accepts: Accepts, dtype: FeatureType, value: float) -> None:
    assert accepts(dtype, value, [])


@pytest.mark.parametrize("text", ["1e400", "-1e309", "1" + "0" * 400])
@pytest.mark.parametrize("dtype", [Float32, Float64])
def test_a_number_in_a_file_that_no_float_holds_is_no_infinity(dtype: FeatureType, text: str) -> None:
    assert as_text_of_a_file(dtype, "+Infinity", [])
    assert not as_text_of_a_file(dtype, text, [])


def test_a_message_with_a_number_that_no_float_holds_says_so() -> None:
    source = clicks(schema=[Field("x", Float64)], partitioned_by=[], expectations=[])
    texts: list[Any] = [b'{"x": 1e400, "at": "2024-05-01"}', b'{"x": 1, "at": "2024-05-01"}']
    found = decode(source, messages(0, 0, texts), {})
    assert found.events["x"].to_pylist() == [1.0]
    assert found.rejected["reason"].to_pylist() == ["the message has a number beyond Float64"]


@OR_ASKED
@pytest.mark.parametrize("truth", [True, False])
@pytest.mark.parametrize("dtype", [Float64, Float32, Int64, Int32, Decimal(9, 2)])
def test_true_and_false_are_no_numbers(accepts: Accepts, dtype: FeatureType, truth: bool) -> None:  # noqa: FBT001 - a value
    assert not accepts(dtype, truth, [])


@pytest.mark.parametrize("values", [[1.5, True], [True, 1.5], [1, False], [None, True, 0.5]])
@pytest.mark.parametrize("dtype", [Float64, Float32, Int64])
def test_true_and_false_are_no_numbers_among_numbers_either(dtype: FeatureType, values: list[Any]) -> None:
    rows = [{"k": "a", "x": value, "event_timestamp": AT} for value in values]
    frame = pd.DataFrame(rows).assign(x=pd.Series(values, dtype=object))
    for table in (rows, frame):
        with pytest.raises(InvalidRows):
            conform(_view(dtype, []), table, clock=lambda: AT)


ITEMS: list[tuple[FeatureType, Any, Any]] = [
    (List(Float32), [1.5, -2], [1.5, 1e39]),
    (List(Int32), [1, 2], [2**31]),
    (List(Float64), [1.5, 2], [1.5, True]),
    (Map(Float32), {"a": 1, "b": 0.5}, {"a": -1e39}),
    (Map(Float64), {"a": 0.5}, {"a": 0.5, "b": False}),
    (Vector(2, finite=False), [1, 0.5], [1, 1e39]),
    (Decimal(4, 2), "12.50", "123.00"),
]


@pytest.mark.parametrize("accepts", [as_python, as_message])
@pytest.mark.parametrize(("dtype", "fits", "beyond"), ITEMS, ids=[str(dtype) for dtype, _, _ in ITEMS])
def test_the_items_of_a_value_are_judged_as_numbers_are(
    accepts: Accepts, dtype: FeatureType, fits: Any, beyond: Any
) -> None:
    assert accepts(dtype, fits, [])
    assert not accepts(dtype, beyond, [])


@pytest.mark.parametrize(("dtype", "fits", "beyond"), ITEMS, ids=[str(dtype) for dtype, _, _ in ITEMS])
def test_a_message_beyond_its_type_leaves_those_around_it_as_they_are(
    dtype: FeatureType, fits: Any, beyond: Any
) -> None:
    source = clicks(schema=[Field("x", dtype)], partitioned_by=[], expectations=[])
    events = [{"x": value, "at": AT.isoformat()} for value in (fits, beyond, fits, None)]
    found, alone = decode(source, messages(0, 0, events), {}), decode(source, messages(0, 0, events[:1]), {})
    assert found.rejected["reason"].to_pylist() == [f"column 'x' is not {dtype}"]
    assert found.events["x"].to_pylist() == [*alone.events["x"].to_pylist() * 2, None]


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
