"""Expectations of views refuse whole batches with name, value and remedy; health of views is measured."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake.transaction import AddAction

from toque.featurestore import (
    Entity,
    FeatureStore,
    FeatureView,
    Field,
    Float64,
    Freshness,
    InRange,
    Int64,
    InvalidDefinition,
    NullShare,
    String,
    UnexpectedRows,
    newest_event,
    view_health,
)
from toque.featurestore.definitions.dtypes import TIMESTAMP
from toque.featurestore.offline.tables import storable
from toque.featurestore.rows import conform

NOW = datetime(2013, 7, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
SCHEMA = [Field("temp", Float64), Field("sky", String), Field("gusts", Int64)]
expectations = [
    InRange("temp", least=-60, most=60),
    InRange("gusts", least=0),
    NullShare("sky", most=0.25, min_rows=4),
    Freshness(2 * HOUR),
]
weather = FeatureView(
    "weather", [Entity("origin")], SCHEMA, ttl=6 * HOUR, owner="met", expectations=expectations
)
plain = FeatureView("weather", [Entity("origin")], SCHEMA, ttl=6 * HOUR, owner="met")


def row(hours_ago: float, temp: float | None = 20.0, **more: Any) -> dict[str, Any]:
    at = NOW - hours_ago * HOUR
    return {"origin": "JFK", "temp": temp, "sky": "clear", "gusts": 3, "event_timestamp": at} | more


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [row(1), row(0, 60.5), row(0, -99.0)],
            r"column 'temp' is 60.5 in row 1, outside \[-60, 60\], as are 2 of 3 rows; correct or leave out",
        ),
        ([row(0, float("nan"))], "column 'temp' is nan in row 0, outside"),
        ([row(0, gusts=-1)], r"column 'gusts' is -1 in row 0, outside \[0, None\]"),
        (
            [row(0, sky=None), row(0, sky=None), row(0), row(0)],
            "column 'sky' is null in 50.0% of 4 rows, more than 25.0%; find out what stopped filling it",
        ),
        ([row(3), row(2.5)], "column 'event_timestamp' ends at 2013-07-01T09:30:00.* 2:30:00 ago, more than"),
    ],
)
@pytest.mark.parametrize("how", ["write", "push", "online"])
def test_unexpected_rows_are_refused_whole(
    fs: FeatureStore, rows: list[dict[str, Any]], message: str, how: str
) -> None:
    fs.apply([weather])
    ways: dict[str, Callable[[], Any]] = {
        "write": lambda: fs.write_offline(weather, rows),
        "push": lambda: fs.push(weather, rows),
        "online": lambda: fs.push(weather, rows, to="online"),
    }
    with pytest.raises(UnexpectedRows, match=f"feature view 'weather': {message}"):
        ways[how]()
    assert not fs.offline_table(weather).exists()
    assert fs.get_online_features(weather, [{"origin": "JFK"}]).statuses["temp"] == ["NOT_FOUND"]


def test_rows_at_the_bounds_nulls_and_small_batches_are_as_expected(offline_fs: FeatureStore) -> None:
    offline_fs.apply([weather])
    offline_fs.write_offline(weather, [row(2, 60.0), row(2, -60.0), row(2, None, sky=None, gusts=None)])
    offline_fs.write_offline(weather, [row(50)])  # history: what was there before is fresh enough
    assert offline_fs.offline.read(weather).num_rows == 4


def test_expectations_are_part_of_the_definition_and_change_no_number(offline_fs: FeatureStore) -> None:
    offline_fs.apply([plain])
    digest = offline_fs.history("feature_view", "weather")[0].digest
    assert offline_fs.apply([weather]).of("changed") == ["weather"]
    assert offline_fs.get_feature_view("weather") == weather
    assert offline_fs.history("feature_view", "weather")[1].digest == digest
    with pytest.raises(UnexpectedRows):
        offline_fs.write_offline(plain, [row(0, 99.0)])  # it is the view in force that is asked


@pytest.mark.parametrize(
    ("expectation", "message"),
    [
        (lambda: InRange("temp"), "'temp'.* has no bound"),
        (lambda: InRange("temp", least=2, most=1), "least 2 is above most 1"),
        (lambda: NullShare("temp", most=1.5), "most is a share of 0 to 1, got 1.5"),
        (lambda: Freshness(timedelta(0)), "most must be positive"),
        (lambda: FeatureView("v", [], SCHEMA, expectations=[InRange("rain", least=0)]), "'rain'; it has"),
        (lambda: FeatureView("v", [], SCHEMA, expectations=[InRange("sky", least=0)]), "'sky' is String"),
    ],
)
def test_expectations_are_checked_when_declared(expectation: Any, message: str) -> None:
    with pytest.raises(InvalidDefinition, match=message):
        expectation()


def test_health_tells_freshness_fill_keys_coverage_and_samples(fs: FeatureStore) -> None:
    fs.apply([plain])
    old = [row(200, 1.0, origin=f"old{i}") for i in range(5)]
    recent = [
        row(hours, None if hours % 2 else 5.0, origin=f"A{hours}", sky=None if hours == 3 else "haze")
        for hours in range(1, 11)
    ]
    fs.write_offline(plain, old + recent)
    fs.materialize(end=NOW - 4 * HOUR)
    fs.write_offline(plain, [row(-5, 7.0)])  # its time is still to come
    health = view_health(fs, "weather")
    assert (health.rows, health.recent_rows, health.keys, health.files) == (16, 10, 10, 3)
    assert (health.newest_event, health.freshness_s, health.ttl_s) == (NOW - HOUR, 3600.0, 6 * 3600.0)
    assert health.fill == pytest.approx({"temp": 0.5, "sky": 0.9, "gusts": 1.0})
    assert health.coverage == pytest.approx(
        0.3
    )  # 4, 5 and 6 hours old: the younger are not online, the older too old
    assert health.online_until == NOW - 4 * HOUR
    assert [s["origin"] for s in health.samples] == ["A1", "A2", "A3"]
    assert view_health(fs, "weather", span=2 * HOUR).recent_rows == 3


def test_the_newest_event_is_found_in_files_whose_bounds_the_log_does_not_have(fs: FeatureStore) -> None:
    fs.apply([plain])
    table = fs.offline.create(plain)
    rows = storable(conform(plain, [row(1, 5.0), row(3, 6.0)], clock=fs.now))
    day = f"{NOW:%Y-%m-%d}"
    path = Path(urlsplit(table.uri).path or table.uri) / f"event_day={day}" / "part-0.parquet"
    path.parent.mkdir()
    pq.write_table(rows.drop_columns(["event_day"]), path)  # as Ray Data does
    part = f"event_day={day}/part-0.parquet"
    stats = json.dumps({"numRecords": 2})
    action = AddAction(part, path.stat().st_size, {"event_day": day}, 0, data_change=True, stats=stats)
    opened = table.open()
    opened.create_write_transaction([action], "append", opened.schema(), partition_by=["event_day"])
    assert newest_event(fs, plain) == NOW - HOUR


def test_health_of_an_empty_or_keyless_view_and_without_redis(
    fs: FeatureStore, offline_fs: FeatureStore
) -> None:
    whole = FeatureView("whole", [], [Field("x", Float64)])
    fs.apply([whole])
    assert (view_health(fs, whole).rows, view_health(fs, whole).freshness_s) == (0, None)
    fs.push(whole, pa.table({"x": [1.0], "event_timestamp": pa.array([NOW], TIMESTAMP)}))
    assert (view_health(fs, whole).coverage, view_health(fs, whole).keys) == (1.0, 1)
    assert view_health(offline_fs, whole).coverage is None
