"""Replays: a corrected definition is filled from the log or from what is stored, while consumers go on; each event stays stored once."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from featurestore import FeatureStore, InRange, UnreadableSource
from featurestore.definitions.stream_source import Messages
from featurestore.errors import StreamRewritten
from featurestore.streams import filling
from featurestore.streams.consumer import StreamConsumer
from featurestore.streams.replay import fill_views, read_again
from featurestore.streams.rewrites import rewrites_of
from tests.featurestore.conftest import SettableClock
from tests.featurestore.streams.checks import check_offline, check_online, check_stored_once, views
from tests.featurestore.streams.consumers import Killed, killed_after
from tests.featurestore.streams.history import BEGIN, MemoryConnection, MemoryLog, send_some

PARTITIONS = 3
WRONG = [InRange("amount", least=2, most=10)]
"""Keeps most events aside."""


@pytest.fixture
def store(make_store: Callable[..., FeatureStore], redis_url: str, clock: SettableClock) -> FeatureStore:
    clock.now = BEGIN
    return make_store(redis_url)


def consumer(store: FeatureStore, log: MemoryLog) -> StreamConsumer:
    return StreamConsumer(
        store.stream_table("clicks"),
        store.list_feature_views(),
        log.connect(),
        online=store.online,
        owned=lambda: range(PARTITIONS),
        clock=store.now,
        rewrites=rewrites_of(store.online, "clicks"),
    )


def consume(store: FeatureStore, log: MemoryLog) -> None:
    follower = consumer(store, log)
    while follower.step(timeout_s=0):
        pass
    follower.close()


def send(chance: random.Random, log: MemoryLog, clock: SettableClock, sent: list[Any]) -> None:
    for _ in range(6):
        clock.now += timedelta(seconds=chance.choice([0.001, 1, 30, 500]))
        send_some(chance, log, sent, clock.now)
    clock.now += timedelta(seconds=5)  # what is of clocks that are ahead has come


def filled_wrongly(
    chance: random.Random, store: FeatureStore, clock: SettableClock
) -> tuple[MemoryLog, list[Any]]:
    log, sent = MemoryLog(PARTITIONS), list[Any]()
    store.apply(views(None, None, expectations=WRONG))
    for _ in range(2):
        send(chance, log, clock, sent)
        consume(store, log)
        store.refresh_view("spent")
    store.apply(views(None, None))
    return log, sent


def check(store: FeatureStore, log: MemoryLog, clock: SettableClock) -> None:
    check_stored_once(store, log)
    check_online(store, log, clock, None, None)
    check_offline(
        store, log, clock, None, None, [clock.now - timedelta(seconds=each) for each in (5, 900, 4000)]
    )


@pytest.mark.parametrize(("at_once", "seed"), [(20, 0), (filling.EVENTS_AT_ONCE, 1), (20, 2)])
def test_a_corrected_definition_is_filled_from_the_beginning(
    at_once: int, seed: int, store: FeatureStore, clock: SettableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling, "EVENTS_AT_ONCE", at_once)
    monkeypatch.setattr(filling, "PIECE_ROWS", at_once)
    chance = random.Random(seed)
    log, sent = filled_wrongly(chance, store, clock)
    with pytest.raises(AssertionError):
        check_online(store, log, clock, None, None)
    table = store.stream_table("clicks")
    with contextlib.suppress(Killed), killed_after(chance.randrange(1, 600)):
        read_again(table, log.connect(), start=None, chunk_rows=15)
        fill_views(store, table)
    again = read_again(table, log.connect(), start=None, chunk_rows=15)
    assert [(each.first, each.end) for each in again] == [(0, len(each)) for each in log.messages]
    fill_views(store, table)
    check(store, log, clock)
    send(chance, log, clock, sent)
    consume(store, log)
    check(store, log, clock)


def test_consumers_go_on_during_a_replay_and_begin_anew_after_it(
    store: FeatureStore, clock: SettableClock
) -> None:
    chance = random.Random(7)
    log, sent = filled_wrongly(chance, store, clock)
    old = consumer(store, log)
    old.step(timeout_s=0)

    class Busy(MemoryConnection):
        polls = 0

        def poll(self, *, timeout_s: float, limit: int) -> Messages:
            self.polls += 1
            if self.polls < 4:
                send_some(chance, log, sent, clock.now)
                consume(store, log)
            return super().poll(timeout_s=timeout_s, limit=limit)

    table = store.stream_table("clicks")
    read_again(table, Busy(log), start=None, chunk_rows=10)
    clock.now += timedelta(seconds=5)
    fill_views(store, table)
    check_stored_once(store, log)
    send(chance, log, clock, sent)
    with pytest.raises(StreamRewritten, match="its consumers begin anew"):
        old.step(timeout_s=0)
    consume(store, log)
    check(store, log, clock)


def test_a_changed_view_is_filled_from_what_is_stored(store: FeatureStore, clock: SettableClock) -> None:
    chance, log, sent = random.Random(3), MemoryLog(PARTITIONS), list[Any]()
    store.apply(views(timedelta(minutes=7), None))
    send(chance, log, clock, sent)
    consume(store, log)
    store.refresh_view("spent")
    store.apply(views(None, None))
    fill_views(store, store.stream_table("clicks"))
    check(store, log, clock)


def test_only_what_is_after_a_time_is_read_again(store: FeatureStore, clock: SettableClock) -> None:
    log, _ = filled_wrongly(random.Random(5), store, clock)
    table = store.stream_table("clicks")
    before = table.events().num_rows
    (first, *_) = read_again(table, log.connect(), start=clock.now)
    assert (first.first, first.end, table.events().num_rows) == (
        len(log.messages[0]),
        len(log.messages[0]),
        before,
    )
    middle = clock.now - timedelta(minutes=20)
    again = read_again(table, log.connect(), start=middle)
    assert [each.first for each in again] == [
        log.connect().position_at(partition, middle) for partition in range(PARTITIONS)
    ]
    assert table.events().num_rows > before
    check_stored_once(store, log)


def test_a_log_that_lost_what_was_read_is_named(store: FeatureStore, clock: SettableClock) -> None:
    log, _ = filled_wrongly(random.Random(5), store, clock)
    table = store.stream_table("clicks")
    lost = MemoryLog(PARTITIONS)
    with pytest.raises(UnreadableSource, match=r"partition 0 has no message from position 0.*--stored"):
        read_again(table, lost.connect(), start=None)
    check_stored_once(store, log)
