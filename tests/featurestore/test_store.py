"""The feature store as a user sees it: write, read as of then, read as of now."""

from datetime import timedelta
from typing import Any

import pandas as pd
import pyarrow as pa

from tests.featurestore.airports import HOUR, START, row, service, traffic, weather
from toque.featurestore import (
    FeatureService,
    FeatureStore,
)
from toque.featurestore.definitions.dtypes import TIMESTAMP


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


def test_a_training_set_stays_the_same_while_rows_arrive(offline_fs: FeatureStore) -> None:
    offline_fs.apply([weather])
    offline_fs.write_offline(weather, [row("JFK", 0, 1.0)])
    job = offline_fs.get_historical_features(
        [{"origin": "JFK", "event_timestamp": START + 2 * HOUR}], features=weather
    )
    offline_fs.write_offline(weather, [row("JFK", 1, 2.0)])
    assert job.to_arrow()["temp"].to_pylist() == [1.0]
    assert job.versions["weather"] is not None
