"""Distinct counts, latest values and late data in trailing windows, against their definitions."""

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toque.featurestore import (
    DistinctSketch,
    Entity,
    FeatureStore,
    FeatureView,
    InvalidDefinition,
    InvalidRows,
)
from toque.featurestore.definitions.dtypes import TIMESTAMP
from toque.featurestore.windows.aggregations import (
    Aggregation,
    Windows,
    aggregate_windows,
    aggregations,
    last_k,
)
from toque.featurestore.windows.distinct import STANDARD_ERROR

START = datetime(2013, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("event_timestamp", TIMESTAMP),
        ("known_at", TIMESTAMP),
        ("x", pa.float64()),
        ("word", pa.string()),
    ]
)
Row = dict[str, Any]


def event(key: str, at: int, delay: int | None, x: float | None, word: str | None) -> Row:
    known_at = None if delay is None else START + (at + delay) * MINUTE
    return {
        "key": key,
        "event_timestamp": START + at * MINUTE,
        "known_at": known_at,
        "x": x,
        "word": word,
    }


EVENT = st.builds(
    event,
    st.sampled_from("abc"),
    st.integers(0, 300),
    st.one_of(st.none(), st.integers(-30, 200)),
    st.one_of(st.none(), st.integers(-5, 5).map(float)),
    st.one_of(st.none(), st.sampled_from(["", "u", "v", "w"])),
)


def in_window(events: list[Row], row: Row, window: timedelta) -> list[Row]:
    at = row["event_timestamp"]
    return [
        e
        for e in events
        if e["key"] == row["key"]
        and e["known_at"] is not None
        and e["known_at"] <= at
        and at - window < e["event_timestamp"] <= at
    ]


@settings(max_examples=150)
@given(st.lists(EVENT, max_size=25), st.sampled_from([None, 20 * MINUTE, HOUR]))
def test_latest_values_and_distinct_counts_match_the_definition(
    events: list[Row], every: timedelta | None
) -> None:
    windows = [40 * MINUTE, 150 * MINUTE]
    wanted = [
        *last_k("x", 3, windows=windows),
        *(Aggregation("approx_distinct", window, c) for window in windows for c in ("x", "word")),
    ]
    table = pa.Table.from_pylist(events, schema=SCHEMA)
    for row in aggregate_windows(table, keys=["key"], aggregations=wanted, every=every).to_pylist():
        for window, name in zip(windows, ("40min", "150min"), strict=True):
            seen = [e for e in in_window(events, row, window) if e["x"] is not None]
            by_time = sorted(
                seen,
                key=lambda e: (e["event_timestamp"], max(e["known_at"], e["event_timestamp"]), e["x"]),
                reverse=True,
            )
            latest = [e["x"] for e in by_time[:3]] + [None] * 3
            assert [row[f"x_last{k}_{name}"] for k in ("", 2, 3)] == latest[:3]
            words = {e["word"] for e in in_window(events, row, window)} - {None}
            assert row[f"word_approx_distinct_{name}"] == len(words)
            assert row[f"x_approx_distinct_{name}"] == len({e["x"] for e in seen})


def test_a_window_counts_as_a_sketch_of_its_events_would() -> None:
    rng = np.random.default_rng(0)
    minutes = np.sort(rng.integers(0, 3_000, 60_000))
    table = pa.table(
        {
            "key": ["a"] * len(minutes),
            "event_timestamp": pa.array([START + int(m) * MINUTE for m in minutes], TIMESTAMP),
            "n": rng.integers(0, 20_000, len(minutes)),
        }
    ).append_column("known_at", pa.array([START + int(m) * MINUTE for m in minutes], TIMESTAMP))
    wanted = [Aggregation("approx_distinct", 1_000 * MINUTE, "n")]
    rows = aggregate_windows(table, keys=["key"], aggregations=wanted, every=500 * MINUTE)
    for row in rows.to_pylist():
        since, until = row["event_timestamp"] - 1_000 * MINUTE, row["event_timestamp"]
        time = pc.field("event_timestamp")
        part = table.filter((time > pa.scalar(since, TIMESTAMP)) & (time <= pa.scalar(until, TIMESTAMP)))
        assert row["n_approx_distinct_1000min"] == round(DistinctSketch.of(part["n"]).estimate())


@pytest.mark.parametrize("count", [1, 100, 3_000, 10_000, 20_000, 300_000])
def test_the_estimate_is_as_near_as_its_standard_error_says(count: int) -> None:
    # 20 independent sketches: the mean of their errors is within 5 standard errors of the mean.
    errors = [
        DistinctSketch.of(pa.array(np.arange(count) + i * 10**9)).estimate() / count - 1 for i in range(20)
    ]
    assert abs(np.mean(errors)) < 5 * STANDARD_ERROR / 20**0.5
    assert np.sqrt(np.mean(np.square(errors))) < 2 * STANDARD_ERROR


def test_sketches_merge_to_the_sketch_of_everything() -> None:
    words = pa.array([f"N{random.Random(i).randrange(5_000)}" for i in range(9_000)])
    parts = [DistinctSketch.of(words.slice(at, 3_000)) for at in (6_000, 0, 3_000)]
    merged = parts[0] + parts[1] + parts[2]
    assert (merged.registers == DistinctSketch.of(words).registers).all()
    assert DistinctSketch.of(pa.array([], pa.string())).estimate() == 0.0


def test_many_keys_and_windows_are_those_of_polars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "toque.featurestore.windows.windowing.PIECE_EVENTS", 3_000
    )  # so that there are several pieces
    rng = np.random.default_rng(5)
    minutes = np.sort(rng.integers(0, 30_000, 40_000))
    times = pa.array([START + int(m) * MINUTE for m in minutes], TIMESTAMP)
    events = pa.table(
        {
            "key": [f"k{i}" for i in rng.integers(0, 30, len(minutes))],
            "event_timestamp": times,
            "known_at": times,
            "x": rng.normal(size=len(minutes)),
        }
    )
    wanted = aggregations({"x": ["count", "mean", "std", "min", "max"]}, windows=[3 * HOUR, 24 * HOUR])
    rows = pl.DataFrame(aggregate_windows(events, keys=["key"], aggregations=wanted))
    frame = pl.DataFrame(events).sort("key", "event_timestamp")
    for window, name in (("3h", "3h"), ("24h", "1d")):
        x = pl.col("x")
        rolled = (
            frame.rolling("event_timestamp", period=window, group_by="key")
            .agg(
                x.count().alias("count"),
                x.mean().alias("mean"),
                x.std().alias("std"),
                x.min(),
                x.max().alias("max"),
            )
            .unique(["key", "event_timestamp"])
            .sort("key", "event_timestamp")
        )
        assert rows.select("key", "event_timestamp").equals(rolled.select("key", "event_timestamp"))
        for function, column in (
            ("count", "count"),
            ("mean", "mean"),
            ("std", "std"),
            ("min", "x"),
            ("max", "max"),
        ):
            ours, theirs = rows[f"x_{function}_{name}"], rolled[column]
            assert ours.null_count() == theirs.null_count()
            np.testing.assert_allclose(ours.to_numpy(), theirs.to_numpy(), rtol=1e-9, atol=1e-9)


def test_an_event_later_than_the_watermark_never_counts() -> None:
    events = [event("a", 0, 10, 1.0, None), event("a", 1, 11, 1.0, None), event("a", 2, 8, 1.0, None)]
    table = pa.Table.from_pylist(events, schema=SCHEMA)
    windows = Windows([Aggregation("count", HOUR)], watermark=10 * MINUTE)
    rows = windows.compute(table, keys=["key"]).to_pylist()
    assert [(r["event_timestamp"], r["count_1h"]) for r in rows] == [(START + 10 * MINUTE, 2)]


def test_incremental_runs_end_as_one_run_over_all_events(offline_fs: FeatureStore, clock: Any) -> None:
    """Events come up to an hour late, without a known time in their table: rows are corrected until settled."""
    wanted = [Aggregation("sum", 3 * HOUR, "x"), Aggregation("last", 3 * HOUR, "x")]
    source = Windows(wanted, every=HOUR, known_at="event_timestamp", watermark=HOUR)
    views = [FeatureView(name, [Entity("key")], source=source) for name in ("stepwise", "at_once")]
    offline_fs.apply(views)
    rng = random.Random(1)
    events = [event(rng.choice("ab"), rng.randrange(1_440), 0, float(i), None) for i in range(400)]
    arrival = {i: e["event_timestamp"] + rng.randrange(60) * MINUTE for i, e in enumerate(events)}
    since: datetime | None = None
    for run in range(1, 14):
        clock.now = now = START + run * 2 * HOUR
        reach = START - HOUR if since is None else since - source.reach
        there = [e for i, e in enumerate(events) if arrival[i] <= now and e["event_timestamp"] > reach]
        offline_fs.compute_offline("stepwise", pa.Table.from_pylist(there, schema=SCHEMA), since=since)
        since = now
    offline_fs.compute_offline("at_once", pa.Table.from_pylist(events, schema=SCHEMA))
    asked = [{"key": key, "event_timestamp": START + h * HOUR} for key in "ab" for h in range(27)]
    stepwise, at_once = (
        offline_fs.get_historical_features(asked, features=view).to_arrow() for view in views
    )
    assert stepwise.equals(at_once)
    assert stepwise["x_sum_3h"].null_count < 4


def test_definitions_with_these_functions_are_deserialized_unchanged(offline_fs: FeatureStore) -> None:
    source = Windows(
        [*last_k("x", 2, windows=[HOUR]), Aggregation("approx_distinct", HOUR, "word")], watermark=HOUR
    )
    view = FeatureView("recent", [Entity("key")], source=source)
    offline_fs.apply([view])
    assert offline_fs.get_feature_view("recent") == view
    assert [f.name for f in view.schema] == ["x_last_1h", "x_last2_1h", "word_approx_distinct_1h"]
    assert [f.dtype.value for f in view.schema] == ["Float64", "Float64", "Int64"]


def test_bad_input_is_named() -> None:
    with pytest.raises(InvalidDefinition, match="k=2; k counts back from 1, for last only"):
        Aggregation("mean", HOUR, "x", k=2)
    with pytest.raises(InvalidDefinition, match="k must be at least 1, got 0"):
        last_k("x", 0, windows=[HOUR])
    with pytest.raises(InvalidDefinition, match="watermark must not be negative"):
        Windows([Aggregation("count", HOUR)], watermark=-HOUR)
    table = pa.Table.from_pylist([event("a", 0, 0, 1.0, "u")], schema=SCHEMA)
    with pytest.raises(InvalidRows, match="column 'word' must be a number, got string"):
        aggregate_windows(table, keys=["key"], aggregations=[Aggregation("sum", HOUR, "word")])
    with pytest.raises(InvalidRows, match="column 'y' is missing"):
        aggregate_windows(table, keys=["key"], aggregations=[Aggregation("approx_distinct", HOUR, "y")])
