"""Rounds of a ticker beside a real Redis: without news they ask the store nothing, and news is met at once."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.redis_server import RedisServer, running_redis
from toque.functions import Context, OnEvent, function, use_context
from toque.functions.runtime import changes as feed
from toque.functions.runtime.changes import announcer_of
from toque.functions.runtime.durable.invocation import executor_of, run_pending
from toque.functions.runtime.triggers import events, schedule
from toque.functions.runtime.triggers.events import publish
from toque.registry import open_store
from toque.registry.store.requests import REQUESTS


@function
def double(a: int) -> int:
    """Double a number."""
    return 2 * a


@function(on=OnEvent("idle-round"))
def hear(number: int) -> int:
    """Return what an event brought."""
    return number


@pytest.fixture
def redis_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RedisServer]:
    monkeypatch.setattr(feed, "_TURN_S", 0.02)
    monkeypatch.setattr(feed, "_RETRY_S", 0.02)
    monkeypatch.setattr(feed, "SLOW_S", 3600.0)
    monkeypatch.setattr(feed.ChangeFeed.watch, "__kwdefaults__", {"slow_s": 3600.0})
    with running_redis(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def platform(redis_server: RedisServer, tmp_path: Path) -> Iterator[Context]:
    url = f"file://{tmp_path}/store"
    store = open_store(url, announce=announcer_of(redis_server.url))
    with use_context(Context(store, url, redis_url=redis_server.url, actor="ada")) as used:
        yield used
        executor_of(used).close()


def turn(used: Context) -> None:
    schedule.run_due(used)
    events.run_events(used)
    run_pending(used)


def requests_of(work: Callable[[], object]) -> int:
    before = sum(REQUESTS.by_part().values())
    work()
    return sum(REQUESTS.by_part().values()) - before


def until_quiet(used: Context) -> None:
    deadline = time.monotonic() + 60
    quiet = 0
    while quiet < 20:
        assert time.monotonic() < deadline, "the rounds never stop asking"
        quiet = quiet + 1 if requests_of(lambda: turn(used)) == 0 else 0
        time.sleep(0.02)


def test_rounds_ask_the_store_nothing_until_there_is_news(
    platform: Context, redis_server: RedisServer, eventually: Callable[..., None]
) -> None:
    until_quiet(platform)
    submitted = double.submit(4)
    eventually(lambda: turn(platform) or submitted.status() == "succeeded", within_s=120)
    publish("idle-round", {"number": 3})
    key = "event hear idle-round 0"
    found = hear.submit(3, key=key)  # the event's own invocation, whose key this is
    eventually(lambda: turn(platform) or found.status() == "succeeded", within_s=120)
    until_quiet(platform)
    redis_server.kill()
    eventually(lambda: requests_of(lambda: turn(platform)) > 0)
    lost = double.submit(5)  # nobody hears of it
    eventually(lambda: turn(platform) or lost.status() == "succeeded", within_s=120)
    redis_server.start()
    until_quiet(platform)
