"""Consumers of a stream against brute force: killed anywhere, with partitions that move, online and offline are the same bits."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from featurestore import FeatureStore, UnreadableSource
from featurestore.definitions.stream_source import Messages
from featurestore.streams import held_events
from featurestore.streams.consumer import StreamConsumer
from featurestore.streams.table import StreamTable
from registry import open_store
from tests.featurestore.conftest import SettableClock
from tests.featurestore.streams.checks import check_offline, check_online, check_stored_once, views
from tests.featurestore.streams.consumers import Consumers
from tests.featurestore.streams.events import clicks
from tests.featurestore.streams.history import BEGIN, MemoryConnection, MemoryLog, send_some
from tests.featurestore.streams.kafka import Broker, KafkaLog
from tests.seeds import seeds


@pytest.fixture
def made(tmp_path: Path, redis_url: str) -> Iterator[Callable[[SettableClock], FeatureStore]]:
    stores: list[FeatureStore] = []

    def make(clock: SettableClock) -> FeatureStore:
        number = len(stores)
        url = f"file://{tmp_path}/{number}"
        stores.append(FeatureStore(open_store(url), redis_url, project=f"p{number}", clock=clock))
        return stores[-1]

    yield make
    for each in stores:
        each.online.close()


def run_history(
    seed: int, make: Callable[[SettableClock], FeatureStore], log: MemoryLog | None = None
) -> None:
    log = MemoryLog(3) if log is None else log
    chance = random.Random(seed)
    every = chance.choice([None, None, timedelta(minutes=7)])
    lateness = chance.choice([None, timedelta(minutes=20)])
    clock = SettableClock(BEGIN)
    features = make(clock)
    features.apply(views(every, lateness))
    sent = list[dict[str, Any]]()
    consumers = Consumers(features, log, chance)
    asked = []
    for number in range(1, 19):
        clock.now += timedelta(seconds=chance.choice([0.001, 1, 30, 500, 1500]))
        send_some(chance, log, sent, clock.now)
        log.disturb(chance)
        consumers.step()
        if number % 6 == 0:
            consumers.settle()
            check_online(features, log, clock, every, lateness)
            asked.append(clock.now)
            if chance.random() < 0.5:
                features.refresh_view("spent")
    consumers.close()
    check_stored_once(features, log)
    check_offline(features, log, clock, every, lateness, asked)


@pytest.mark.parametrize("seed", seeds(3, of=6))
def test_online_is_offline_is_brute_force_whatever_happens(
    seed: int, made: Callable[[SettableClock], FeatureStore]
) -> None:
    run_history(seed, made)


@pytest.mark.parametrize("seed", seeds(2, of=3))
def test_it_is_so_where_more_events_come_at_once_than_a_segment_has_rows(
    seed: int, made: Callable[[SettableClock], FeatureStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a consumer begins that needs more than 65,536 stored events."""
    monkeypatch.setattr(held_events, "SEGMENT_BITS", 2)
    monkeypatch.setattr(held_events, "_SEGMENT_ROWS", 4)
    run_history(seed, made)


@pytest.mark.parametrize("seed", range(2))
def test_online_is_offline_is_brute_force_of_a_kafka_topic(
    seed: int, made: Callable[[SettableClock], FeatureStore]
) -> None:
    run_history(seed, made, KafkaLog(Broker(), "clicks"))


def test_no_cycles_are_collected_during_a_step_and_they_are_after_it_whatever_happens() -> None:
    seen = []

    class Log(MemoryConnection):
        def poll(self, *, timeout_s: float, limit: int) -> Messages:
            seen.append(gc.isenabled())
            raise UnreadableSource(f"no {limit} messages within {timeout_s} s")

    table = StreamTable(clicks(), open_store("file:///nowhere"), "default")
    consumer = StreamConsumer(
        table, [], Log(MemoryLog(1)), online=None, owned=lambda: [0], clock=lambda: BEGIN
    )
    with pytest.raises(UnreadableSource):
        consumer.step(timeout_s=0)
    assert (seen, gc.isenabled()) == ([False], True)
    consumer.close()


@pytest.mark.proof
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("first", range(100, 600, 20))
def test_online_is_offline_is_brute_force_in_500_histories(
    first: int, made: Callable[[SettableClock], FeatureStore]
) -> None:
    for seed in range(first, first + 20):
        run_history(seed, made)
