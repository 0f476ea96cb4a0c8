"""Refusals of bad rows, entity tables and requests name the view, column and value."""

from datetime import UTC, datetime
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from tests.featurestore.airports import START, row, weather
from toque.featurestore import (
    DType,
    FeatureStore,
    Field,
    Float64,
    Int64,
    InvalidDefinition,
    InvalidRows,
    OnDemandFeatureView,
    OnlineStoreUnavailable,
    RequestSource,
    String,
    UnixTimestamp,
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"event_timestamp": START.replace(tzinfo=None)},
            "'event_timestamp' must be a time with a time zone",
        ),
        ({"temp": "hot"}, "'temp' must be Float64 .double., got string such as 'hot'"),
        ({"gusts": 1.5}, "'gusts' does not fit Int64"),
        ({"origin": None}, "'origin' is null in 1 rows, first in row 0"),
        ({"event_timestamp": None}, "'event_timestamp' is null"),
        ({"wind": 1.0}, "'wind' is not in its schema"),
    ],
)
def test_bad_rows_are_named(offline_fs: FeatureStore, change: dict[str, Any], message: str) -> None:
    offline_fs.apply([weather])
    with pytest.raises(InvalidRows, match=f"feature view 'weather': column {message}"):
        offline_fs.write_offline(weather, [row("JFK", 0, 1.0) | change])
    assert not offline_fs.offline_table(weather).exists()


def test_a_missing_or_doubled_column_is_named(offline_fs: FeatureStore) -> None:
    offline_fs.apply([weather])
    table = pa.Table.from_pylist([row("JFK", 0, 1.0)])
    with pytest.raises(InvalidRows, match="'temp' is missing"):
        offline_fs.write_offline(weather, table.drop_columns(["temp"]))
    with pytest.raises(InvalidRows, match="'temp' appears 2 times"):
        offline_fs.write_offline(weather, table.append_column("temp", table["temp"]))


@pytest.mark.parametrize(
    ("entity", "message"),
    [
        ({"origin": "JFK"}, "'event_timestamp' is missing"),
        ({"origin": "JFK", "event_timestamp": START.replace(tzinfo=None)}, "time zone"),
        ({"event_timestamp": START}, "join key 'origin' of view 'weather' is missing"),
        ({"origin": 5, "event_timestamp": START}, "'origin' must be String"),
        ({"origin": "JFK", "event_timestamp": START, "temp": 1.0}, "'temp' has the name of a feature"),
    ],
)
def test_a_bad_entity_table_is_named(offline_fs: FeatureStore, entity: dict[str, Any], message: str) -> None:
    offline_fs.apply([weather])
    with pytest.raises(InvalidRows, match=message):
        offline_fs.get_historical_features([entity], features=weather)


def test_times_finer_than_a_microsecond_are_refused(offline_fs: FeatureStore) -> None:
    offline_fs.apply([weather])
    frame = pd.DataFrame(
        {"origin": ["JFK"], "event_timestamp": [pd.Timestamp(START) + pd.Timedelta(1, "ns")]}
    )
    with pytest.raises(InvalidRows, match="finer than a microsecond"):
        offline_fs.get_historical_features(frame, features=weather)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"place": "JFK"}, "entity row 1: join key 'origin' of view 'weather' is missing"),
        ({"origin": 7}, "entity row 1: join key 'origin' of view 'weather' must be String, got 7"),
    ],
)
def test_a_bad_online_request_is_named(fs: FeatureStore, asked: dict[str, Any], message: str) -> None:
    fs.apply([weather])
    with pytest.raises(InvalidRows, match=message):
        fs.get_online_features(weather, [{"origin": "JFK"}, asked])


@pytest.mark.parametrize(
    ("dtype", "good", "bad"),
    [
        (Float64, 2, "2"),
        (Int64, 2, 2.5),
        (String, "a", 1),
        (UnixTimestamp, "2013-06-01T00:00:00Z", "2013-06-01T00:00:00"),
        (UnixTimestamp, START, "yesterday"),
    ],
)
def test_values_sent_with_a_request_are_checked(fs: FeatureStore, dtype: DType, good: Any, bad: Any) -> None:
    sent = RequestSource("sent", [Field("v", dtype)])
    echo = OnDemandFeatureView("echo", [sent], [Field("w", dtype)], echoed)
    fs.apply([echo])
    got = fs.get_online_features(echo, [{"v": good}, {"v": None}]).columns()
    assert got == {"w": [START if dtype is UnixTimestamp else good, None]}
    with pytest.raises(InvalidRows, match=f"entity row 1: request value 'v' must be {dtype}, got '?{bad}"):
        fs.get_online_features(echo, [{"v": good}, {"v": bad}])
    with pytest.raises(InvalidRows, match="entity row 0: request value 'v' is missing"):
        fs.get_online_features(echo, [{}])


def echoed(inputs: Any) -> Any:
    return {"w": inputs["v"]}


def test_an_error_of_a_function_names_its_view(fs: FeatureStore) -> None:
    sent = RequestSource("sent", [Field("v", Float64)])
    hour = OnDemandFeatureView("hour", [sent], [Field("w", Float64)], hour_of)
    fs.apply([hour])
    with pytest.raises(
        InvalidRows, match="on-demand feature view 'hour' fails on its inputs: ValueError: year"
    ):
        fs.get_online_features(hour, [{"v": 1e12}])
    rows = pa.table({"v": [1e12], "event_timestamp": [START]})
    with pytest.raises(InvalidRows, match="'hour' fails on its inputs"):
        fs.get_historical_features(rows, hour).to_arrow()


def hour_of(inputs: Any) -> Any:
    return {"w": [float(datetime.fromtimestamp(at, UTC).hour) for at in inputs["v"].tolist()]}


def test_a_push_from_the_future_is_refused_online(fs: FeatureStore, clock: Any) -> None:
    fs.apply([weather])
    clock.now = START
    with pytest.raises(InvalidRows, match="is after now"):
        fs.push(weather, [row("JFK", 1, 1.0)])
    assert fs.push(weather, [row("JFK", 1, 1.0)], to="offline") is not None


def test_without_redis_online_calls_say_so(offline_fs: FeatureStore) -> None:
    offline_fs.apply([weather])
    with pytest.raises(OnlineStoreUnavailable, match="pass redis_url"):
        offline_fs.get_online_features(weather, [{"origin": "JFK"}])


def test_what_is_not_applied_by_itself_is_named(offline_fs: FeatureStore) -> None:
    source = RequestSource("request", [Field("distance", Float64)])
    with pytest.raises(
        InvalidDefinition, match="RequestSource 'request' is not applied by itself: leave it out"
    ):
        offline_fs.apply([source])
