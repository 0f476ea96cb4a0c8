"""The store as a user sees it: define, write, read as of then, read as of now."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from featurestore import (
    DType,
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    Float64,
    IncompatibleChange,
    Int64,
    InvalidDefinition,
    InvalidRows,
    OnDemandFeatureView,
    OnlineStoreUnavailable,
    RequestSource,
    String,
    UnixTimestamp,
    UnknownDefinition,
    on_demand_feature_view,
)
from featurestore.dtypes import TIMESTAMP

START = datetime(2013, 6, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
airport = Entity("airport", join_keys=["origin"])
weather = FeatureView(
    "weather",
    [airport],
    [Field("temp", Float64), Field("gusts", Int64), Field("sky", String)],
    ttl=timedelta(hours=6),
)
traffic = FeatureView("traffic", [airport, Entity("hour", dtype=Int64)], [Field("flights", Int64)])
ask = RequestSource("ask", [Field("limit", Float64)])


@on_demand_feature_view(
    sources=[weather[["temp"]], ask], schema=[Field("above", Float64), Field("is_hot", Int64)]
)
def heat(inputs: Any) -> Any:
    """How far above the asker's limit it is."""
    above = inputs["temp"] - inputs["limit"]
    return {"above": above, "is_hot": np.where(np.isnan(above), np.nan, above > 0)}


service = FeatureService("late", [weather[["temp", "sky"]], traffic, heat])


def row(
    origin: str, hours: float, temp: float | None, sky: str | None = "clear", **more: Any
) -> dict[str, Any]:
    at = START + timedelta(hours=hours)
    return {"origin": origin, "temp": temp, "gusts": 3, "sky": sky, "event_timestamp": at} | more


def test_training_rows_come_back_in_order_with_duplicates_and_other_columns(offline_fs: FeatureStore) -> None:
    offline_fs.apply([weather])
    offline_fs.write_offline(weather, [row("JFK", 0, 10.0), row("JFK", 2, 12.0), row("EWR", 0, 5.0)])
    asked = [("JFK", 1.0), ("EWR", 7.0), ("JFK", 2.0), ("JFK", 1.0), (None, 1.0), ("LGA", 1.0), ("JFK", -1.0)]
    frame = pd.DataFrame(
        {
            "origin": [a for a, _ in asked],
            "event_timestamp": [START + h * HOUR for _, h in asked],
            "label": range(len(asked)),
        }
    )
    out = offline_fs.get_historical_features(frame, features=["weather:temp"]).to_arrow()
    assert out.column_names == ["origin", "event_timestamp", "label", "temp"]
    assert out.column("label").to_pylist() == list(range(len(asked)))
    assert out.column("temp").to_pylist() == [10.0, None, 12.0, 10.0, None, None, None]


def test_a_service_joins_views_and_computes_the_same_offline_and_online(fs: FeatureStore, clock: Any) -> None:
    fs.apply([service])
    clock.now = START + 3 * HOUR
    fs.push(weather, [row("JFK", 1, 30.0, "haze"), row("EWR", 1, None, None)])
    fs.push(traffic, [{"origin": "JFK", "hour": 3, "flights": 41, "event_timestamp": START}])
    asked = [
        {"origin": "JFK", "hour": 3, "limit": 25.0},
        {"origin": "EWR", "hour": 3, "limit": 25.0},
        {"origin": "LGA", "hour": 3, "limit": None},
    ]
    at = pa.array([clock.now] * 3, TIMESTAMP)
    entities = pa.Table.from_pylist(asked).append_column("event_timestamp", at)
    offline = (
        fs.get_historical_features(entities, features="late").to_arrow().select(service.columns).to_pydict()
    )
    online = fs.get_online_features(service, asked)
    assert online.columns() == offline
    assert offline == {
        "temp": [30.0, None, None],
        "sky": ["haze", None, None],
        "flights": [41, None, None],
        "above": [5.0, None, None],
        "is_hot": [1, None, None],
    }
    assert online.statuses["temp"] == ["PRESENT", "NULL_VALUE", "NOT_FOUND"]
    assert online.statuses["flights"] == ["PRESENT", "NOT_FOUND", "NOT_FOUND"]
    assert online.event_timestamps["temp"] == [START + HOUR, START + HOUR, None]
    assert online.to_dict()["origin"] == ["JFK", "EWR", "LGA"]


async def test_the_async_read_gives_the_same(fs: FeatureStore, clock: Any) -> None:
    fs.apply([weather])
    clock.now = START + HOUR
    fs.push("weather", [row("JFK", 1, 30.0)])
    got = await fs.get_online_features_async(weather, [{"origin": "JFK"}])
    assert got.to_dict() == {"origin": ["JFK"], "temp": [30.0], "gusts": [3], "sky": ["clear"]}
    await fs.online.aclose()


def test_ttl_bounds_are_inclusive_to_the_microsecond_offline_and_online(fs: FeatureStore, clock: Any) -> None:
    fs.apply([weather])
    clock.now = START
    fs.push(weather, [row("JFK", 0, 1.0)])
    micro = timedelta(microseconds=1)
    for at, value, status in [
        (START - micro, None, "NOT_FOUND"),
        (START, 1.0, "PRESENT"),
        (START + 6 * HOUR, 1.0, "PRESENT"),
        (START + 6 * HOUR + micro, None, "OUTSIDE_MAX_AGE"),
    ]:
        entities = [{"origin": "JFK", "event_timestamp": at}]
        assert fs.get_historical_features(entities, features=weather).to_arrow()["temp"].to_pylist() == [
            value
        ]
        online = fs.get_online_features(weather, [{"origin": "JFK"}], now=at)
        assert (online.columns()["temp"], online.statuses["temp"]) == ([value], [status])


def test_corrections_with_the_same_event_time_win_everywhere(fs: FeatureStore, clock: Any) -> None:
    fs.apply([weather])
    clock.now = START + HOUR
    early = row("JFK", 0, 1.0, created_timestamp=START)
    late = row("JFK", 0, 2.0, created_timestamp=START + timedelta(minutes=1))
    fs.push(weather, [late])
    fs.push(weather, [early])
    entities = [{"origin": "JFK", "event_timestamp": START + HOUR}]
    assert fs.get_historical_features(entities, features=weather).to_arrow()["temp"].to_pylist() == [2.0]
    assert fs.get_online_features(weather, [{"origin": "JFK"}]).columns(["temp"]) == {"temp": [2.0]}
    as_known = [{"origin": "JFK", "event_timestamp": START}]
    known = fs.get_historical_features(as_known, features=weather, as_known=True).to_arrow()
    assert known["temp"].to_pylist() == [1.0]


def test_exact_ties_fall_the_same_way_whatever_is_asked_for(fs: FeatureStore, clock: Any) -> None:
    fs.apply([weather])
    clock.now = START + HOUR
    rows = [row("JFK", 0, 1.0, "b"), row("JFK", 0, 2.0, "a"), row("JFK", 0, -3.0, None)]
    answers = set()
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        for i in order:
            fs.push(weather, [rows[i]])
        online = fs.get_online_features(weather, [{"origin": "JFK"}]).columns()
        entities = [{"origin": "JFK", "event_timestamp": clock.now}]
        whole = fs.get_historical_features(entities, features=weather).to_arrow()
        temp = fs.get_historical_features(entities, features=["weather:temp"]).to_arrow()
        sky = fs.get_historical_features(entities, features=["weather:sky"]).to_arrow()
        offline = {name: whole[name].to_pylist() for name in weather.features}
        assert (temp["temp"].to_pylist(), sky["sky"].to_pylist()) == (offline["temp"], offline["sky"])
        assert online == offline
        answers.add(str(online))
    assert len(answers) == 1


def test_views_can_be_renamed_and_found_by_other_columns(offline_fs: FeatureStore) -> None:
    there = weather[["temp"]].with_name("dest").with_join_key_map({"origin": "dest"})
    both = FeatureService("both", [weather[["temp"]], there])
    offline_fs.apply([both])
    offline_fs.write_offline(weather, [row("JFK", 0, 10.0), row("LAX", 0, 25.0)])
    entities = [{"origin": "JFK", "dest": "LAX", "event_timestamp": START + HOUR}]
    out = offline_fs.get_historical_features(entities, features="both").to_arrow()
    assert out.select(["temp", "dest__temp"]).to_pylist() == [{"temp": 10.0, "dest__temp": 25.0}]


def test_apply_shows_a_plan_and_records_every_version(offline_fs: FeatureStore) -> None:
    plan = offline_fs.apply([service])
    assert plan.of("added") == ["airport", "weather", "hour", "traffic", "heat", "late"]
    assert offline_fs.apply([service]).is_empty
    more = FeatureView("weather", [airport], [*weather.schema, Field("rain", Float64)], ttl=weather.ttl)
    changed = offline_fs.plan([more])
    assert "~ feature view weather (version 2): schema: temp:Float64,gusts:Int64,sky:String -> " in str(
        changed
    )
    digests = offline_fs.definitions_digest("late")
    assert sorted(digests) == ["heat", "traffic", "weather"]
    offline_fs.apply([more])
    assert [r.version for r in offline_fs.history("feature_view", "weather")] == [1, 2]
    assert offline_fs.history("feature_view", "weather")[0].digest == digests["weather"]
    assert offline_fs.definitions_digest("late")["weather"] != digests["weather"]
    assert offline_fs.history("feature_view", "weather")[1].actor == "ada"


@pytest.mark.parametrize(
    ("schema", "entities", "message"),
    [
        ([Field("temp", Int64)], [airport], "'temp' is stored as Float64, not Int64; define weather_v2"),
        (
            [Field("temp", Float64)],
            [Entity("airport", join_keys=["place"])],
            "keyed by origin:String, not place:String",
        ),
    ],
)
def test_changes_that_would_corrupt_stored_rows_are_refused(
    offline_fs: FeatureStore, schema: list[Field], entities: list[Entity], message: str
) -> None:
    offline_fs.apply([weather])
    with pytest.raises(IncompatibleChange, match=message):
        offline_fs.apply([FeatureView("weather", entities, schema)])
    removed = offline_fs.apply([], remove=["feature_view/weather"])
    assert removed.of("removed") == ["weather"]
    with pytest.raises(IncompatibleChange, match=message):
        offline_fs.apply([FeatureView("weather", entities, schema)])


def test_what_is_used_cannot_be_removed(offline_fs: FeatureStore) -> None:
    offline_fs.apply([service])
    with pytest.raises(IncompatibleChange, match="used by on demand feature view 'heat'"):
        offline_fs.apply([], remove=["feature_view/weather"])


def test_a_feature_that_a_service_uses_cannot_go(offline_fs: FeatureStore) -> None:
    offline_fs.apply([service])
    without = FeatureView("weather", [airport], [Field("temp", Float64)], ttl=weather.ttl)
    with pytest.raises(IncompatibleChange, match="feature service 'late' uses weather:sky, which would go"):
        offline_fs.apply([without])
    assert "weather" in offline_fs.apply([without], remove=["feature_service/late"]).of("changed")


def test_a_reader_learns_of_a_layout_that_another_process_applied(
    make_store: Callable[..., FeatureStore], redis_url: str, clock: Any
) -> None:
    clock.now = START + HOUR
    old, new = make_store(redis_url), make_store(redis_url)
    old.apply([FeatureService("plain", [weather[["temp"]]])])
    old.push(weather, [row("JFK", 0, 1.0)])
    asked = [{"origin": "JFK"}]
    assert old.get_online_features("plain", asked).columns() == {"temp": [1.0]}
    more = FeatureView("weather", [airport], [Field("rain", Float64), *weather.schema], ttl=weather.ttl)
    new.apply([more])
    new.push(more, [row("JFK", 1, 2.0, rain=0.5)])
    assert old.get_online_features("plain", asked).columns() == {"temp": [2.0]}


def test_a_changed_service_is_served_once_it_has_been_read_again(
    make_store: Callable[..., FeatureStore], redis_url: str, clock: Any
) -> None:
    clock.now = START + HOUR
    server, other = make_store(redis_url), make_store()
    other.apply([FeatureService("plain", [weather[["temp"]]])])
    assert list(server.get_online_features("plain", [{"origin": "JFK"}]).columns()) == ["temp"]
    other.apply([FeatureService("plain", [weather[["temp", "sky"]]])])
    server.get_feature_service("plain")
    assert list(server.get_online_features("plain", [{"origin": "JFK"}]).columns()) == ["temp", "sky"]


def test_another_process_finds_definitions_and_code(
    make_store: Callable[..., FeatureStore], redis_url: str
) -> None:
    make_store().apply([service])
    other = make_store(redis_url)
    assert other.get_feature_view("weather") == weather
    assert other.list_feature_services() == ["late"]
    described = other.history("on_demand_feature_view", "heat")[0].definition
    assert described["reference"].endswith(":heat")
    with pytest.raises(
        UnknownDefinition, match="no feature service 'early' is applied; applied are \\['late'\\]"
    ):
        other.get_feature_service("early")


def test_rows_written_before_a_feature_was_added_read_as_null(fs: FeatureStore, clock: Any) -> None:
    fs.apply([weather])
    clock.now = START + 2 * HOUR
    fs.push(weather, [row("JFK", 0, 1.0)])
    more = FeatureView("weather", [airport], [Field("rain", Float64), *weather.schema], ttl=weather.ttl)
    fs.apply([more])
    fs.push(more, [row("EWR", 0, 2.0, rain=0.5)])
    asked = [{"origin": "JFK"}, {"origin": "EWR"}]
    assert fs.get_online_features(more, asked).columns(["temp", "rain"]) == {
        "temp": [1.0, 2.0],
        "rain": [None, 0.5],
    }
    entities = [{**a, "event_timestamp": clock.now} for a in asked]
    out = fs.get_historical_features(entities, features=more).to_arrow()
    assert out.select(["temp", "rain"]).to_pydict() == {"temp": [1.0, 2.0], "rain": [None, 0.5]}
    with pytest.raises(UnknownDefinition, match="apply it first"):
        fs.push(weather, [row("JFK", 1, 1.0)])


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


def test_contradictory_definitions_are_refused() -> None:
    with pytest.raises(InvalidDefinition, match="'temp' appears twice"):
        FeatureService("twice", [weather, weather[["temp"]]])
    with pytest.raises(InvalidDefinition, match="one of the store's own columns"):
        Field("event_timestamp", Float64)
    with pytest.raises(UnknownDefinition, match="no feature \\['rain'\\]"):
        weather[["rain"]]
    with pytest.raises(InvalidDefinition, match="use String, Int64, Int32 or Bool"):
        Entity("degree", dtype=Float64)


def test_a_training_set_stays_the_same_while_rows_arrive(offline_fs: FeatureStore) -> None:
    offline_fs.apply([weather])
    offline_fs.write_offline(weather, [row("JFK", 0, 1.0)])
    job = offline_fs.get_historical_features(
        [{"origin": "JFK", "event_timestamp": START + 2 * HOUR}], features=weather
    )
    offline_fs.write_offline(weather, [row("JFK", 1, 2.0)])
    assert job.to_arrow()["temp"].to_pylist() == [1.0]
    assert job.versions["weather"] is not None
