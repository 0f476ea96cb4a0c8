"""Windowed aggregates against their definition, written out naively."""

import math
import statistics
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toque.featurestore.definitions.dtypes import Float64, Int64
from toque.featurestore.errors import InvalidDefinition, InvalidRows
from toque.featurestore.windows.aggregations import Aggregation, Windows, aggregate_windows, aggregations

START = datetime(2013, 1, 1, tzinfo=UTC)
ALL = ("count", "sum", "mean", "min", "max", "std")
HOUR = timedelta(hours=1)


def minutes(n: float) -> datetime:
    return START + timedelta(minutes=n)


def table(events: list[dict[str, Any]]) -> pa.Table:
    time = pa.timestamp("us", tz="UTC")
    schema = pa.schema(
        [("key", pa.string()), ("event_timestamp", time), ("known_at", time), ("x", pa.float64())],
    )
    return pa.Table.from_pylist(events, schema=schema)


def naive(function: str, values: list[float]) -> float | int | None:
    if function == "count":
        return len(values)
    if function == "sum":
        return math.fsum(values)
    if function == "std":
        return statistics.stdev(values) if len(values) > 1 else None
    if not values:
        return None
    return {"mean": statistics.fmean, "min": min, "max": max}[function](values)


def expected(events: list[dict[str, Any]], key: str, at: datetime, window: timedelta, function: str) -> Any:
    seen = [
        e["x"]
        for e in events
        if e["key"] == key
        and e["known_at"] is not None
        and e["known_at"] <= at
        and at - window < e["event_timestamp"] <= at
        and e["x"] is not None
    ]
    return naive(function, seen)


EVENT = st.builds(
    lambda key, at, delay, x: {
        "key": key,
        "event_timestamp": minutes(at),
        "known_at": None if delay is None else minutes(at + delay),
        "x": x,
    },
    st.sampled_from("abc"),
    st.integers(0, 300),
    st.one_of(st.none(), st.integers(-30, 200)),
    st.one_of(st.none(), st.integers(-50, 50).map(float), st.floats(-1e3, 1e3)),
)


@settings(max_examples=150)
@given(st.lists(EVENT, max_size=25), st.sampled_from([None, timedelta(minutes=20), HOUR]))
def test_every_row_matches_the_definition(events: list[dict[str, Any]], every: timedelta | None) -> None:
    wanted = aggregations({"x": ALL}, windows=[timedelta(minutes=40), timedelta(minutes=150)])
    rows = aggregate_windows(table(events), keys=["key"], aggregations=wanted, every=every).to_pylist()
    for row in rows:
        for a in wanted:
            want = expected(events, row["key"], row["event_timestamp"], a.time_window, a.function.value)
            assert row[a.name] == (want if want is None else pytest.approx(want, rel=1e-9, abs=1e-6)), (
                row,
                a,
            )


@settings(max_examples=60)
@given(st.lists(EVENT, max_size=25))
def test_on_a_grid_nothing_changes_at_boundaries_without_a_row(events: list[dict[str, Any]]) -> None:
    windows = Windows([Aggregation("count", timedelta(minutes=45), "x")], every=timedelta(minutes=10))
    rows = windows.compute(table(events), keys=["key"]).to_pylist()
    for row, following in pairwise([*rows, {"key": None, "event_timestamp": None}]):
        at = row["event_timestamp"] + timedelta(minutes=10)
        until = following["event_timestamp"] if following["key"] == row["key"] else minutes(900)
        while at < until:
            assert row["x_count_45min"] == expected(events, row["key"], at, timedelta(minutes=45), "count")
            at += timedelta(minutes=10)


def test_an_event_counts_from_when_it_is_known_until_it_is_a_window_old() -> None:
    events = [{"key": "a", "event_timestamp": minutes(0), "known_at": minutes(30), "x": 1.0}]
    rows = aggregate_windows(
        table(events), keys=["key"], aggregations=[Aggregation("count", HOUR)], every=timedelta(minutes=15)
    )
    assert [(r["event_timestamp"], r["count_1h"]) for r in rows.to_pylist()] == [
        (minutes(30), 1),
        (minutes(60), 0),
    ]


def test_an_event_that_becomes_known_after_its_window_never_counts() -> None:
    events = [{"key": "a", "event_timestamp": minutes(0), "known_at": minutes(90), "x": 1.0}]
    rows = aggregate_windows(table(events), keys=["key"], aggregations=[Aggregation("count", HOUR)])
    assert rows.to_pylist() == [{"key": "a", "count_1h": 0, "event_timestamp": minutes(90)}]


def test_sums_leave_nothing_behind_when_large_values_leave_the_window() -> None:
    xs = [1e15, 0.1, 0.2, 0.3]
    events = [
        {"key": "a", "event_timestamp": minutes(50 * i), "known_at": minutes(50 * i), "x": x}
        for i, x in enumerate(xs)
    ]
    rows = aggregate_windows(table(events), keys=["key"], aggregations=[Aggregation("sum", HOUR, "x")])
    assert rows.column("x_sum_1h").to_pylist()[2:] == pytest.approx([0.3, 0.5], abs=1e-14)


def test_a_constant_window_has_no_spread() -> None:
    events = [
        {"key": "a", "event_timestamp": minutes(i), "known_at": minutes(i), "x": 5.1} for i in range(10)
    ]
    rows = aggregate_windows(table(events), keys=["key"], aggregations=[Aggregation("std", HOUR, "x")])
    assert rows.column("x_std_1h").to_pylist() == [None] + [0.0] * 9


def test_many_keys_over_a_long_time_do_not_overflow_the_sort_key() -> None:
    years = [
        {"key": str(i), "event_timestamp": START + timedelta(days=i), "known_at": START, "x": 1.0}
        for i in range(40_000)
    ]
    rows = aggregate_windows(table(years), keys=["key"], aggregations=[Aggregation("count", HOUR)])
    assert rows.num_rows == 40_000
    assert set(rows.column("count_1h").to_pylist()) == {1}


def test_no_events_give_no_rows_of_the_right_type() -> None:
    rows = aggregate_windows(
        table([]), keys=["key"], aggregations=aggregations({"x": ALL}, windows=[HOUR], count=True)
    )
    assert rows.num_rows == 0
    assert rows.column_names == ["key", "count_1h", *(f"x_{f}_1h" for f in ALL), "event_timestamp"]


def test_several_keys_or_no_key_group_rows() -> None:
    data = table([{"key": k, "event_timestamp": minutes(1), "known_at": minutes(1), "x": 1.0} for k in "aab"])
    data = data.append_column("n", pa.array([1, 1, 2]))
    wanted = [Aggregation("count", HOUR)]
    both = aggregate_windows(data, keys=["n", "key"], aggregations=wanted).to_pylist()
    assert [(r["n"], r["key"], r["count_1h"]) for r in both] == [(1, "a", 2), (2, "b", 1)]
    assert aggregate_windows(data, keys=[], aggregations=wanted).column("count_1h").to_pylist() == [3]


def test_windows_have_the_fields_of_their_aggregations() -> None:
    windows = Windows(aggregations({"x": ["mean"]}, windows=[timedelta(days=7)], count=True))
    assert [(f.name, f.dtype) for f in windows.fields] == [("count_7d", Int64), ("x_mean_7d", Float64)]


def test_bad_input_is_named() -> None:
    with pytest.raises(InvalidDefinition, match="needs a column"):
        Aggregation("mean", HOUR)
    with pytest.raises(InvalidDefinition, match="window must be positive"):
        Aggregation("count", timedelta(0))
    events = table([{"key": "a", "event_timestamp": minutes(0), "known_at": minutes(0), "x": 1.0}])
    with pytest.raises(InvalidRows, match="'y' is missing"):
        aggregate_windows(events, keys=["key"], aggregations=[Aggregation("sum", HOUR, "y")])
    naive_times = events.set_column(1, "event_timestamp", events.column(1).cast(pa.timestamp("us")))
    with pytest.raises(InvalidRows, match="time zone"):
        aggregate_windows(naive_times, keys=["key"], aggregations=[Aggregation("count", HOUR)])
