"""A view, or a value of one key, that cannot be computed: the others of the stream go on."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pytest

from tests.featurestore.conftest import SettableClock
from tests.featurestore.streams.events import clicks, event, user
from tests.featurestore.streams.history import BEGIN, MemoryLog
from tests.waiting import until
from toque.featurestore import Aggregation, FeatureStore, FeatureView, Field, Float64, Windows
from toque.featurestore.streams import held_events
from toque.featurestore.streams.consumer import StreamConsumer
from toque.featurestore.streams.held_events import HeldEvents, ViewFaults

HOUR = timedelta(hours=1)
SOURCE = clicks(reads=clicks().reads, commit_every=timedelta(microseconds=1))


def spent(name: str) -> FeatureView:
    windows = Windows([Aggregation("sum", HOUR, "amount", name="sum")])
    return FeatureView(name, [user], source=windows, events=SOURCE)


def newest(name: str) -> FeatureView:
    return FeatureView(name, [user], [Field("amount", Float64)], events=SOURCE)


@pytest.fixture
def store(make_store: Callable[..., FeatureStore], redis_url: str, clock: SettableClock) -> FeatureStore:
    clock.now = BEGIN
    return make_store(redis_url)


def send(log: MemoryLog, clock: SettableClock, amounts: dict[str, float]) -> None:
    for name, amount in amounts.items():
        log.send(0, json.dumps(event(name, amount, at=clock.now.isoformat())).encode(), at=clock.now)
    clock.now += timedelta(seconds=1)


def consumer(store: FeatureStore, log: MemoryLog) -> StreamConsumer:
    table, listed = store.stream_table("clicks"), store.list_feature_views()
    return StreamConsumer(
        table, listed, log.connect(), online=store.online, owned=lambda: [0], clock=store.now
    )


def online(store: FeatureStore, view: str, feature: str, *names: str) -> list[Any]:
    found = store.get_online_features(store.get_feature_view(view), [{"user": name} for name in names])
    return found.columns()[feature]


def broken_for(
    monkeypatch: pytest.MonkeyPatch, method: str, breaks: Callable[..., bool], error: Exception
) -> None:
    """Have a method of held events fail where `breaks` says so, as a wrong column or value makes it."""
    right = getattr(HeldEvents, method)

    def sometimes(self: HeldEvents, *given: Any, **more: Any) -> Any:
        if breaks(self, *given):
            raise error
        return right(self, *given, **more)

    monkeypatch.setattr(HeldEvents, method, sometimes)


@pytest.mark.parametrize("method", ["__init__", "add", "due", "newest"])
@pytest.mark.parametrize(
    "error", [KeyError("amuont"), pa.ArrowInvalid("2^53 + 1"), ValueError("a text")], ids=repr
)
def test_a_view_that_cannot_be_computed_stops_no_other(
    method: str,
    error: Exception,
    store: FeatureStore,
    clock: SettableClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(held_events, "MOST_TRIES", 2)

    def breaks(held: HeldEvents, *given: Any) -> bool:
        view = given[0] if method == "__init__" else held.view
        return bool(view.name == "bad")

    broken_for(monkeypatch, method, breaks, error)
    log = MemoryLog(1)
    store.apply([spent("bad"), spent("good"), newest("last")])
    follower = consumer(store, log)
    for number in range(1, 4):
        send(log, clock, {"u1": float(number), "u2": 1.0})
        while follower.step(timeout_s=0):
            pass
        assert online(store, "good", "sum", "u1", "u2") == [sum(range(number + 1)), number]
        assert online(store, "last", "amount", "u1") == [number]
    assert online(store, "bad", "sum", "u1") == [None]
    assert follower.counts.failures > 0
    follower.close()
    assert store.stream_table("clicks").positions() == {0: 6}


def test_a_value_of_one_key_stops_no_other_key(
    store: FeatureStore,
    clock: SettableClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken_for(monkeypatch, "newest", lambda _, keys: ("u7",) in keys, pa.ArrowInvalid("2^53 + 1"))
    log, names = MemoryLog(1), [f"u{number}" for number in range(40)]
    store.apply([spent("good")])
    follower = consumer(store, log)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            send(log, clock, dict.fromkeys(names, 2.0))
            while follower.step(timeout_s=0):
                pass
    expected = [None if name == "u7" else 6.0 for name in names]
    assert online(store, "good", "sum", *names) == expected
    assert "the row of key ('u7',) cannot be computed and stays as it was: ArrowInvalid" in caplog.text
    follower.close()


def test_a_view_is_computed_again_once_what_it_failed_by_is_gone(
    store: FeatureStore, clock: SettableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_events, "RETRY_S", 0.05)
    wrong = True
    broken_for(monkeypatch, "add", lambda held, _: wrong and held.view.name == "bad", ValueError("no"))
    log = MemoryLog(1)
    store.apply([spent("bad"), spent("good")])
    follower = consumer(store, log)
    send(log, clock, {"u1": 1.0})
    follower.step(timeout_s=0)
    wrong = False
    send(log, clock, {"u1": 2.0})

    def computed() -> bool:
        follower.step(timeout_s=0)
        return online(store, "bad", "sum", "u1") == [3.0]

    until(computed)
    assert online(store, "good", "sum", "u1") == [3.0]
    follower.close()


def test_a_store_that_is_away_is_no_fault_of_a_view() -> None:
    faults = ViewFaults("clicks")
    with pytest.raises(OSError, match="the disk"), faults.of(spent("good")):
        raise OSError("the disk")
    assert not faults.left_out(spent("good"))
