"""Windows with values that no exact sum holds: each result follows from the values in its own window, whatever lies beside."""

import math
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.conditions.values import DBL_MAX, any_extreme, any_whole, numbers, whole_numbers
from toque.featurestore.windows.aggregations import Windows, aggregations

START = datetime(2024, 5, 1, tzinfo=UTC)
FLOAT64 = pa.float64()
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
FUNCTIONS = ("count", "sum", "mean", "min", "max", "std", "last", "approx_distinct")
WINDOWS = Windows(aggregations({"x": FUNCTIONS}, windows=[HOUR]))


def computed(events: Sequence[tuple[str, int, Any]], dtype: pa.DataType = FLOAT64) -> list[dict[str, Any]]:
    """Rows of events, each a key, minutes from the start, and a value; without the names of the windows."""
    at = pa.array([START + minute * MINUTE for _, minute, _ in events], pa.timestamp("us", "UTC"))
    values = pa.array([value for _, _, value in events], dtype)
    table = pa.table(
        {"key": [key for key, _, _ in events], "x": values, "event_timestamp": at, "known_at": at}
    )
    rows = WINDOWS.compute(table, keys=["key"]).to_pylist()
    return [
        {name.removeprefix("x_").removesuffix("_1h"): value for name, value in row.items()} for row in rows
    ]


@any_extreme
def test_an_extreme_value_of_one_key_changes_no_bit_of_another_key(extreme: float | None) -> None:
    ordinary = [("b", minute, 0.1 * minute) for minute in range(5)]
    alone = computed(ordinary)
    for neighbour in ("a", "c"):
        beside = computed([*ordinary, (neighbour, 1, extreme), (neighbour, 2, extreme)])
        assert [row for row in beside if row["key"] == "b"] == alone


@any_extreme
def test_an_extreme_value_leaves_nothing_behind_in_its_own_key(extreme: float | None) -> None:
    later = [("a", minute, 0.1 * minute) for minute in range(60, 65)]
    assert computed([("a", 0, extreme), *later])[1:] == computed(later)


@settings(max_examples=80, deadline=None)
@example([("a", 0, DBL_MAX), ("a", 1, DBL_MAX)])
@example([("a", 0, 1e200), ("a", 1, -1e200), ("a", 2, 1e-300)])
@example([("a", 0, math.inf), ("a", 1, -math.inf), ("a", 70, 3.0)])
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 150), numbers), max_size=12))
def test_every_window_of_any_floats_is_that_of_its_values(
    events: list[tuple[str, int, float | None]],
) -> None:
    for row in computed(events):
        minute = (row["event_timestamp"] - START) // MINUTE
        values = [
            value
            for key, at, value in events
            if key == row["key"]
            and minute - 60 < at <= minute
            and value is not None
            and not math.isnan(value)
        ]
        assert row["count"] == len(values)
        assert same(row["sum"], exact_sum(values))
        assert row["min"] == (min(values) if values else None)
        assert row["max"] == (max(values) if values else None)
        mean = exact_sum(values, len(values)) if values else None
        assert same(row["mean"], mean, rel=1e-15), (row, mean)
        if len(values) < 2:
            assert row["std"] is None
        elif all(map(math.isfinite, values)) and max(map(abs, values)) < 1e300:
            assert row["std"] == pytest.approx(statistics.stdev(values), rel=1e-9, abs=1e-150)


def exact_sum(values: Sequence[float], parts: int = 1) -> float:
    """Sum as IEEE 754 has it of infinite values, and else exact, divided and rounded once."""
    infinite = [value for value in values if math.isinf(value)]
    if infinite:
        return sum(infinite)
    whole = sum(map(Fraction, values), Fraction(0)) / parts
    try:
        return float(whole)
    except OverflowError:
        return math.inf if whole > 0 else -math.inf


def same(result: float | None, wanted: float | None, rel: float = 0.0) -> bool:
    if result is None or wanted is None:
        return result is wanted
    if math.isnan(wanted) or math.isinf(wanted):
        return result == wanted or (math.isnan(result) and math.isnan(wanted))
    return abs(result - wanted) <= rel * abs(wanted) + 5e-324 * bool(rel)


@any_whole
def test_integers_that_no_float_holds_are_windowed_as_others_are(whole: int | None) -> None:
    events = [("a", 0, 5), ("b", 0, whole), ("b", 1, whole)]
    rows = computed(events, pa.int64())
    assert rows[0] == computed(events[:1], pa.int64())[0]
    assert rows[-1]["count"] == (0 if whole is None else 2)
    assert rows[-1]["last"] == (None if whole is None else float(whole))


@settings(max_examples=50, deadline=None)
@example([2**53 + 1, 1])
@example([2**53 + 1, 2**53 + 3])
@given(st.lists(whole_numbers, min_size=1, max_size=8))
def test_sums_of_any_integers_are_exact_and_deviations_to_twice_the_bits_of_a_float(
    values: list[int],
) -> None:
    row = computed([("a", minute, value) for minute, value in enumerate(values)], pa.int64())[-1]
    assert row["sum"] == float(sum(values))
    assert row["mean"] == pytest.approx(float(Fraction(sum(values), len(values))), rel=1e-15, abs=1e-300)
    if len(values) > 1:
        least = max(map(abs, values)) * 2.0**-46  # below which a spread is that of equal values
        assert row["std"] == pytest.approx(statistics.stdev(map(Fraction, values)), rel=1e-9, abs=least)
