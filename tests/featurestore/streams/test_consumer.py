"""Consumers of a stream against brute force: killed anywhere, with partitions that move, online and offline are the same bits."""

from __future__ import annotations

import gc
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.conditions.logs import AMOUNTS, LARGE_AMOUNTS
from tests.featurestore.conftest import SettableClock
from tests.featurestore.streams.checks import check_offline, check_online, check_stored_once, views
from tests.featurestore.streams.consumers import Consumers
from tests.featurestore.streams.events import clicks
from tests.featurestore.streams.history import BEGIN, MemoryConnection, MemoryLog, send_some
from tests.featurestore.streams.kafka import Broker, KafkaLog
from tests.seeds import seeds
from toque.featurestore import FeatureStore, FeatureView, InRange, UnreadableSource
from toque.featurestore.definitions.stream_source import Messages
from toque.featurestore.errors import MessagesLost, StreamRewritten
from toque.featurestore.stream_views import fill_views
from toque.featurestore.streams import consumer, held_events
from toque.featurestore.streams.consumer import StreamConsumer
from toque.featurestore.streams.replay import read_again
from toque.featurestore.streams.table import StreamTable
from toque.registry import open_store


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


@dataclass(frozen=True)
class Conditions:
    """What a history varies. most: greatest amounts that its definitions accept, one after the other."""

    every: timedelta | None
    lateness: timedelta | None
    most: tuple[float, ...]
    amounts: Sequence[float | None]
    trims: bool
    loses: bool

    @classmethod
    def drawn(cls, chance: random.Random, *, changes: bool) -> Conditions:
        """Draw conditions. changes: whether the log may be trimmed and the definition redefined."""
        return cls(
            every=chance.choice([None, None, timedelta(minutes=7)]),
            lateness=chance.choice([None, timedelta(minutes=20)]),
            most=chance.choice([(1e18,), (1e18, 500.0), (2.0, 1e18)]) if changes else (1_000,),
            amounts=chance.choice([AMOUNTS, LARGE_AMOUNTS]),
            trims=changes and chance.random() < 0.5,
            loses=changes and chance.random() < 0.5,
        )

    def views(self, most: float) -> list[FeatureView]:
        """Views over a source that accepts amounts up to some."""
        return views(self.every, self.lateness, expectations=[InRange("amount", least=0, most=most)])


def redefine(features: FeatureStore, log: MemoryLog, declared: list[FeatureView], most: float) -> None:
    """Apply another definition, and have it count from the beginning of what the log has."""
    log.accept(most)
    features.apply(declared)
    table = features.stream_table("clicks")
    if table.known_partitions():
        read_again(table, log.connect(), start=None)
    fill_views(features, table)


def run_history(
    seed: int,
    make: Callable[[SettableClock], FeatureStore],
    log: MemoryLog | None = None,
    *,
    steps: int = 18,
) -> tuple[Any, ...]:
    """Run a history and check it; returns what it was: what the log had, and what chance would bring next."""
    chance = random.Random(seed)
    drawn = Conditions.drawn(chance, changes=log is None)
    log = MemoryLog(chance.choice([1, 2, 3, 5])) if log is None else log
    log.most = drawn.most[0]
    clock = SettableClock(BEGIN)
    features = make(clock)
    features.apply(drawn.views(log.most))
    sent = list[dict[str, Any]]()
    consumers = Consumers(features, log, chance)
    asked, every, lateness = [], drawn.every, drawn.lateness
    for number in range(1, steps + 1):
        clock.now += timedelta(seconds=chance.choice([0.001, 1, 30, 500, 1500]))
        send_some(chance, log, sent, clock.now, amounts=drawn.amounts)
        log.disturb(chance)
        consumers.step()
        if drawn.trims and chance.random() < 0.3:
            consumers.trim()
        if number == 15 and drawn.loses:
            consumers.settle()
            send_some(chance, log, sent, clock.now, amounts=drawn.amounts)
        if number == 15 and drawn.loses and consumers.lose(0):
            with pytest.raises(MessagesLost):
                consumers.settle()
            later = clock.now + timedelta(microseconds=1)
            read_again(features.stream_table("clicks"), log.connect(), start=later)
        if number % 6 == 0:
            consumers.settle()
            check_online(features, log, clock, every, lateness)
            asked.append(clock.now)
            if chance.random() < 0.5:
                features.refresh_view("spent")
        if number == 6 and len(drawn.most) > 1:
            clock.now += timedelta(seconds=5)  # what is of clocks that are ahead has come
            redefine(features, log, drawn.views(drawn.most[1]), drawn.most[1])
            asked = []
            consumers.begin_anew()
            check_online(features, log, clock, every, lateness)
    consumers.close()
    check_stored_once(features, log)
    check_offline(features, log, clock, every, lateness, asked)
    return log.messages, log.first, log.lost, chance.random()


@pytest.mark.parametrize("seed", seeds(3, of=6))
def test_online_is_offline_is_brute_force_whatever_happens(
    seed: int, made: Callable[[SettableClock], FeatureStore]
) -> None:
    run_history(seed, made)


def test_a_history_is_the_same_each_time_it_is_run(made: Callable[[SettableClock], FeatureStore]) -> None:
    assert run_history(1026, made, steps=6) == run_history(1026, made, steps=6)


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
    follower = StreamConsumer(
        table, [], Log(MemoryLog(1)), online=None, owned=lambda: [0], clock=lambda: BEGIN
    )
    with pytest.raises(UnreadableSource):
        follower.step(timeout_s=0)
    assert (seen, gc.isenabled()) == ([False], True)
    follower.close()


def test_a_consumer_whose_clock_is_behind_stores_what_is_online_and_the_rest_later(
    made: Callable[[SettableClock], FeatureStore],
) -> None:
    """By half an hour: more than what the windows of a consumer that begins anew are filled again."""
    clock, log, chance = SettableClock(BEGIN), MemoryLog(2), random.Random(0)
    features = made(clock)
    features.apply(views(None, None))
    behind = Consumers(features, log, chance)
    table, sent = features.stream_table("clicks"), list[dict[str, Any]]()
    slow = behind._start(0, mortal=False)
    slow._clock = lambda: clock.now - timedelta(minutes=30)
    for _ in range(6):
        send_some(chance, log, sent, clock.now)
        slow.step(timeout_s=0)
    assert (table.positions(), slow.counts.rows > 0, slow.counts.failures) == ({}, True, 1)
    clock.now += timedelta(minutes=26)
    while slow.step(timeout_s=0):
        pass
    slow.flush()
    assert table.positions() == {each: len(given) for each, given in enumerate(log.messages) if given}
    behind.settle()
    check_online(features, log, clock, None, None)
    behind.close()
    check_stored_once(features, log)


@pytest.mark.parametrize(
    "late", [timedelta(0), timedelta(minutes=59), timedelta(minutes=67), timedelta(days=2)]
)
@pytest.mark.parametrize("later_s", [0, 4, 6, 300, 419])
def test_a_row_whose_moment_comes_after_another_consumer_took_over_is_written(
    late: timedelta, later_s: int, made: Callable[[SettableClock], FeatureStore]
) -> None:
    """Also of an event that was too old for its row's windows, and that others followed before the first consumer ended."""
    clock, log, every = SettableClock(BEGIN), MemoryLog(1), timedelta(minutes=7)
    features = made(clock)
    features.apply(views(every, None))
    consumers = Consumers(features, log, random.Random(0))
    for user, at, known in (("u2", BEGIN - late, 1), ("u3", BEGIN, 1 + later_s)):
        clock.now = BEGIN + timedelta(seconds=known)
        event = {"user": user, "amount": 2.0, "at": at.isoformat(), "id": user}
        log.send(0, json.dumps(event).encode(), at=clock.now)
        first = consumers._start(0, mortal=False)
        while first.step(timeout_s=0):
            pass
        first.close()
    clock.now = BEGIN + timedelta(minutes=8)
    consumers.settle()
    check_online(features, log, clock, every, None)
    check_offline(features, log, clock, every, None, [])
    consumers.close()


@pytest.mark.parametrize("dealt", [[{0, 1}], [{0}, {1}], [{1}, {0}]], ids=str)
@pytest.mark.parametrize("every", [None, timedelta(minutes=7)])
def test_a_correction_that_moves_to_another_partition_is_the_same_whoever_has_the_partitions(
    dealt: list[set[int]], every: timedelta | None, made: Callable[[SettableClock], FeatureStore]
) -> None:
    clock, log = SettableClock(BEGIN), MemoryLog(2)
    features = made(clock)
    features.apply(views(every, None))
    for number, name in enumerate(["u1", "u2", "u1"]):  # it was of u2, and then not
        event = {"user": name, "amount": 100.0, "at": BEGIN.isoformat(), "id": "order-1"}
        log.send(number % 2, json.dumps(event).encode(), at=BEGIN + number * timedelta(minutes=5))
    clock.now += timedelta(minutes=30)
    consumers = [
        StreamConsumer(
            features.stream_table("clicks"),
            features.list_feature_views(),
            log.connect(),
            online=features.online,
            owned=lambda own=own: own,  # type: ignore[misc]  # the loop's value at this turn
            clock=features.now,
        )
        for own in dealt
    ]
    for follower in consumers:
        while follower.step(timeout_s=0):
            pass
        follower.close()
    check_online(features, log, clock, every, None)
    check_offline(features, log, clock, every, None, [BEGIN + timedelta(minutes=7)])


def test_partitions_that_a_log_gets_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer, "MEASURE_EVERY_S", 0.0)
    monkeypatch.setattr(consumer, "LIST_EVERY_S", 0.0)
    log = MemoryLog(2)
    table = StreamTable(clicks(), open_store(f"file://{tmp_path}"), "default")
    follower = StreamConsumer(
        table, [], log.connect(), online=None, owned=lambda: [0, 1], clock=lambda: BEGIN, partitions=[0, 1]
    )
    follower.step(timeout_s=0)
    log.partitions, log.messages = 3, [*log.messages, []]
    with pytest.raises(StreamRewritten, match="its log has 3 partitions and had 2; consumers begin anew"):
        follower.step(timeout_s=0)
    follower.close()


@pytest.mark.proof
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("first", range(100, 600, 20))
def test_online_is_offline_is_brute_force_in_500_histories(
    first: int, made: Callable[[SettableClock], FeatureStore]
) -> None:
    for seed in range(first, first + 20):
        run_history(seed, made)
