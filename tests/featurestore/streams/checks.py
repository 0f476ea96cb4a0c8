"""Views over a stream of clicks, and the check that both stores have what brute force makes of its log."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import Any

import pytest

from tests.featurestore.conftest import SettableClock
from tests.featurestore.streams.events import clicks, user
from tests.featurestore.streams.history import Known, MemoryLog, brute_known, brute_row, row_time
from toque.featurestore import Aggregation, FeatureStore, FeatureView, Field, Float64, Windows
from toque.registry.times import epoch_us

WINDOW = timedelta(hours=1)
USERS = [f"u{n}" for n in range(5)]
NAMES = ["count", "sum", "mean", "min", "max", "std", "last", "last2"]


def views(every: timedelta | None, lateness: timedelta | None, **given: Any) -> list[FeatureView]:
    """Views whose windows have an hour. given: of the source, such as what it reads."""
    declared: dict[str, Any] = {"allowed_lateness": lateness, "commit_every": timedelta(microseconds=1)}
    source = clicks(unique=["id"], **declared | given)
    functions = ("sum", "mean", "min", "max", "std")
    aggregated = [
        Aggregation("count", WINDOW, name="count"),
        *(Aggregation(each, WINDOW, "amount", name=each) for each in functions),
        Aggregation("last", WINDOW, "amount", name="last"),
        Aggregation("last", WINDOW, "amount", name="last2", k=2),
    ]
    return [
        FeatureView("spent", [user], source=Windows(aggregated, every=every), events=source),
        FeatureView("newest", [user], [Field("amount", Float64)], events=source),
    ]


def expected_rows(
    events: list[Known], now: int, every: timedelta | None
) -> dict[str, tuple[int | None, dict[str, Any]]]:
    found = {}
    for name in USERS:
        at = row_time(events, name, now, WINDOW, every)
        found[name] = at, dict.fromkeys(NAMES) if at is None else brute_row(events, name, at, WINDOW)
    return found


def about(deviation: float | None) -> Any:
    return None if deviation is None else pytest.approx(deviation, rel=1e-13, abs=1e-13)


def check_online(
    features: FeatureStore,
    log: MemoryLog,
    clock: SettableClock,
    every: timedelta | None,
    lateness: timedelta | None,
) -> None:
    """Every user's online row is that of brute force, bit by bit but for std, whose rounding is the library's own."""
    events, now = brute_known(log, lateness), epoch_us(clock.now)
    asked = [{"user": name} for name in USERS]
    found = features.get_online_features(features.get_feature_view("spent"), asked)
    values, times = found.columns(), found.event_timestamps["sum"]
    for place, (name, (at, row)) in enumerate(expected_rows(events, now, every).items()):
        assert (None if times[place] is None else epoch_us(times[place])) == at, name
        got = {each: values[each][place] for each in NAMES}
        assert got["std"] == about(row["std"]), name
        assert got | {"std": 0} == row | {"std": 0}, name
    newest = features.get_online_features(features.get_feature_view("newest"), asked)
    for place, name in enumerate(USERS):
        own = [each for each in events if each.user == name and each.at <= now]
        last = max(own, key=lambda each: (each.at, each.known), default=None)
        assert newest.columns()["amount"][place] == (None if last is None else last.amount), name


def check_stored_once(features: FeatureStore, log: MemoryLog) -> None:
    table = features.stream_table("clicks")
    parts = [table.events(), table.rejected.read()]
    places = [
        zip(each["stream_partition"].to_pylist(), each["stream_position"].to_pylist(), strict=True)
        for each in parts
    ]
    stored = Counter(place for each in places for place in each)
    sent = Counter((each, at) for each in range(log.partitions) for at in range(len(log.messages[each])))
    sent -= Counter(log.lost)
    assert (stored - sent, sent - stored) == (Counter(), Counter()), "more than once, and not at all"


def check_offline(
    features: FeatureStore,
    log: MemoryLog,
    clock: SettableClock,
    every: timedelta | None,
    lateness: timedelta | None,
    asked: list[Any],
) -> None:
    """The offline rows are, at all times asked, those of brute force, and now the bits that are online."""
    features.refresh_view("spent")
    view, events = features.get_feature_view("spent"), brute_known(log, lateness)
    rows = [{"user": name, "event_timestamp": at} for at in [*asked, clock.now] for name in USERS]
    found = features.get_historical_features(rows, view).to_arrow().to_pylist()
    for row in found:
        at = epoch_us(row["event_timestamp"])
        _, expected = expected_rows(events, at, every)[row["user"]]
        assert row["std"] == about(expected["std"])
        assert {each: row[each] for each in NAMES} | {"std": 0} == expected | {"std": 0}
    online = features.get_online_features(view, [{"user": name} for name in USERS]).columns()
    assert {each: [row[each] for row in found[-len(USERS) :]] for each in NAMES} == {
        each: online[each] for each in NAMES
    }
    before = stored_online(features)
    features.materialize([view])
    assert before == stored_online(features)


def stored_online(features: FeatureStore) -> dict[bytes, bytes]:
    """Rows as they are in Redis, without their created times: one that a refresh made may know more, with the same values."""
    client: Any = features.online.client
    rows = {key: client.get(key) for key in client.scan_iter(f"toque:{features.project}:spent:*")}
    return {key: row[:13] + row[21:] for key, row in rows.items()}
