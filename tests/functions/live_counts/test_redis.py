"""Tallies through a real Redis: sent again, read together, and away for a while."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from redis import RedisError

from tests.conditions.clocks import FAR_SKEWS, MINUTES_OFF, SKEWS
from tests.redis_server import running_redis
from toque.clusters.redis_clients import open_redis
from toque.functions.live_counts import End, LivePublisher, LiveReader, SplitArm, Tally, window_at
from toque.functions.live_counts.counts import WINDOW_S, ClockCheck
from toque.functions.live_counts.publisher import live_publisher

CANARY = SplitArm(7, 2, "canary", 0.1)


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    opened = open_redis(redis_url)
    yield opened
    opened.close()


def count(tally: Tally, requests: int) -> None:
    for number in range(requests):
        tally.count(CANARY, f"u{number}", End.ANSWERED, 3.0)


def requests(client: Any, model: str) -> int:
    now = time.time()
    both = LiveReader(client, "default").windows(model, [window_at(now) - 1, window_at(now)], now)
    return sum(counts.of(version=2).requests for counts in both.values())


def test_processes_add_up_and_a_tally_sent_twice_counts_once(client: Any) -> None:
    one, two = LivePublisher(client), LivePublisher(client)
    held = [one.tally("default", "twice"), two.tally("default", "twice")]
    count(held[0], 5)
    count(held[1], 7)
    for publisher in (one, two, one, two):
        publisher.send()
    assert requests(client, "twice") == 12
    count(held[0], 1)
    one.send()
    assert requests(client, "twice") == 13
    assert "twice" in LiveReader(client, "default").models(time.time())
    assert LiveReader(client, "another").models(time.time()) == []


def test_a_model_that_was_evicted_and_came_back_adds_to_its_counts(client: Any) -> None:
    publisher = LivePublisher(client)
    for _ in range(2):
        tally = publisher.tally("default", "back")
        count(tally, 4)
        publisher.send()
        del tally
    assert requests(client, "back") == 8


def test_what_redis_did_not_take_is_sent_with_the_next_counts(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher = LivePublisher(client)
    tally = publisher.tally("default", "away")
    count(tally, 4)

    def refuse(**_: Any) -> Any:
        raise RedisError("away")

    with monkeypatch.context() as broken:
        broken.setattr(client, "pipeline", refuse)
        with pytest.raises(RedisError):
            publisher.send()
    publisher.send()
    assert requests(client, "away") == 4


def test_a_process_sends_by_itself_within_seconds(client: Any, redis_url: str) -> None:
    tally = live_publisher(redis_url).tally("default", "alone")
    count(tally, 3)
    until = time.monotonic() + 60
    while requests(client, "alone") != 3:
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize("skew", (SKEWS | MINUTES_OFF).values(), ids=(SKEWS | MINUTES_OFF).keys())
def test_a_reader_whose_clock_differs_misses_no_count(client: Any, skew: timedelta) -> None:
    model, now = f"skew {skew}", 1_800_000_000.0
    reader, publisher = LiveReader(client, "default"), LivePublisher(client)
    tally = publisher.tally("default", model)
    tally._clock = lambda: now  # the writers' clock
    newest = window_at(now)
    for step in range(60):  # ten minutes, and each window is read while it grows
        count(tally, 5 if step % 7 else 0)  # some seconds have no requests
        publisher.send()
        there = now + skew.total_seconds()
        reader.windows(model, range(window_at(there) - 9, window_at(there) + 1), there)
        newest, now = window_at(now), now + 10
    windows = range(newest - 10, newest + 1)
    seen = reader.windows(model, windows, now + skew.total_seconds())
    fresh = LiveReader(client, "default").windows(model, windows, now)
    assert [seen[w].of(version=2).requests for w in windows] == [
        fresh[w].of(version=2).requests for w in windows
    ]
    assert sum(one.of(version=2).requests for one in seen.values()) == 5 * 51


class ClockOf:
    """Redis as far as its clock goes."""

    def __init__(self, now: float) -> None:
        self.now = now

    def time(self) -> tuple[int, int]:
        return int(self.now), round(self.now % 1 * 1e6)


@pytest.mark.parametrize(
    ("skew", "heard"),
    [(skew, False) for skew in SKEWS.values()]
    + [(skew, True) for skew in (*MINUTES_OFF.values(), *FAR_SKEWS.values())],
)
def test_a_clock_that_is_wrong_is_said_once_a_minute(
    caplog: pytest.LogCaptureFixture, skew: timedelta, *, heard: bool
) -> None:
    redis = ClockOf(1_800_000_000.25)
    here = ClockCheck(redis)
    for _ in range(12):  # two minutes
        here.look(redis.now + skew.total_seconds())
        redis.now += 10
    assert ["clock" in record.getMessage() for record in caplog.records] == [True] * (2 * heard)


def test_windows_that_are_over_are_read_once(client: Any) -> None:
    reader, publisher = LiveReader(client, "default"), LivePublisher(client)
    tally = publisher.tally("default", "old")
    count(tally, 2)
    publisher.send()
    now = time.time()
    tally._clock = lambda: now + 2 * WINDOW_S  # until the writers are two windows further, none is over
    count(tally, 1)
    publisher.send()
    windows = [window_at(now)]
    assert reader.windows("old", windows, now)[windows[0]].of(version=2).requests == 2
    later = now + 1_000
    further = [*windows, windows[0] + 2]
    assert reader.windows("old", further, later)[further[-1]].of(version=2).requests == 1
    assert reader.windows("old", windows, later)[windows[0]].of(version=2).requests == 2
    client.delete(*client.keys("toque:live:{default/old}*"))
    assert reader.windows("old", windows, later)[windows[0]].of(version=2).requests == 2
    assert LiveReader(client, "default").windows("old", windows, later)[windows[0]].arms == {}
