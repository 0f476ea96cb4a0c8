"""Replays: a corrected definition is filled from the log or from what is stored, while consumers go on; each event stays stored once."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable, Collection
from datetime import timedelta
from typing import Any

import pytest

from tests.featurestore.conftest import SettableClock
from tests.featurestore.streams.checks import check_offline, check_online, check_stored_once, views
from tests.featurestore.streams.consumers import Killed, killed_after
from tests.featurestore.streams.events import event
from tests.featurestore.streams.history import BEGIN, MemoryConnection, MemoryLog, send_some
from toque.featurestore import FeatureStore, InRange, UnreadableSource
from toque.featurestore.definitions.stream_source import Messages
from toque.featurestore.errors import ConsumerFenced, MessagesLost, StreamRewritten
from toque.featurestore.stream_views import fill_views
from toque.featurestore.streams import replay
from toque.featurestore.streams.consumer import StreamConsumer
from toque.featurestore.streams.replay import read_again
from toque.featurestore.streams.table import rewrites_of

PARTITIONS = 3
WRONG = [InRange("amount", least=2, most=10)]
"""Keeps most events aside."""


@pytest.fixture
def store(make_store: Callable[..., FeatureStore], redis_url: str, clock: SettableClock) -> FeatureStore:
    clock.now = BEGIN
    return make_store(redis_url)


def consumer(
    store: FeatureStore, log: MemoryLog, partitions: Collection[int] = range(PARTITIONS)
) -> StreamConsumer:
    return StreamConsumer(
        store.stream_table("clicks"),
        store.list_feature_views(),
        log.connect(),
        online=store.online,
        owned=lambda: partitions,
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


@pytest.mark.parametrize(("at_once", "seed"), [(20, 0), (replay.EVENTS_AT_ONCE, 1), (20, 2)])
def test_a_corrected_definition_is_filled_from_the_beginning(
    at_once: int, seed: int, store: FeatureStore, clock: SettableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "EVENTS_AT_ONCE", at_once)
    monkeypatch.setattr(replay, "PIECE_ROWS", at_once)
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


def test_a_replay_from_a_time_goes_on_after_what_the_log_lost(
    store: FeatureStore, clock: SettableClock
) -> None:
    chance, log, sent = random.Random(11), MemoryLog(PARTITIONS), list[Any]()
    store.apply(views(None, None))
    send(chance, log, clock, sent)
    consume(store, log)
    table, read = store.stream_table("clicks"), [len(each) for each in log.messages]
    send(chance, log, clock, sent)
    unread = [len(each) for each in log.messages]
    later = clock.now
    send(chance, log, clock, sent)
    log.cut_off(0, unread[0], unread=read[0])
    with pytest.raises(MessagesLost):
        consume(store, log)
    read_again(table, log.connect(), start=later)
    assert table.positions() == dict(enumerate([unread[0], *read[1:]]))  # the others have lost nothing
    consume(store, log)
    check(store, log, clock)


@pytest.mark.parametrize(("before", "after"), [(100, 1_000), (1_000, 100)])
def test_a_batch_that_waits_while_the_definition_is_changed_is_stored_once(
    before: float, after: float, store: FeatureStore, clock: SettableClock
) -> None:
    """Of the message of 500 the two definitions come to different ends, of the others to the same."""
    log, expectations = MemoryLog(1), {each: [InRange("amount", 0, each)] for each in (before, after)}
    store.apply(views(None, None, expectations=expectations[before]))
    old = consumer(store, log, [0])
    old.step(timeout_s=0)  # it takes up the partition, which is empty yet
    for value in (event(amount=1), b"{broken", event(amount=500)):
        log.send(0, value if isinstance(value, bytes) else json.dumps(value).encode(), at=clock.now)
    old._bring_online(old._decode(old._connection.poll(timeout_s=0, limit=10)))  # its commit has not begun
    store.apply(views(None, None, expectations=expectations[after]))
    store.stream_table("clicks").fence()
    with pytest.raises(ConsumerFenced):
        old.flush()
    new = consumer(store, log, [0])
    while new.step(timeout_s=0):
        pass
    new.close()
    table = store.stream_table("clicks")
    fits = [0, 2] if after > 500 else [0]
    assert table.events()["stream_position"].to_pylist() == fits
    assert table.rejected.read()["stream_position"].to_pylist() == sorted({0, 1, 2} - set(fits))
