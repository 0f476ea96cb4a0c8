import pickle
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.redis_server import RedisServer, running_redis
from tests.waiting import until
from toque.functions.runtime import changes as feeds
from toque.functions.runtime.changes import (
    Announcer,
    ChangeFeed,
    Watch,
    Watched,
    connection,
    journals_in,
)
from toque.registry import Registry, open_store
from toque.registry.journal.journal import Journal

FAR_S = 3600.0
DEADLINE_S = 60.0
X, Y = Watched("toque:changed:file:///x", "x"), Watched("toque:changed:file:///y", "y")


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    with running_redis(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def live(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> ChangeFeed:
    monkeypatch.setattr(feeds, "_RETRY_S", 0.02)
    monkeypatch.setattr(feeds, "_TURN_S", 0.02)
    return ChangeFeed(redis_server.url)


def covered(feed: ChangeFeed, *journals: Watched, every_s: float = FAR_S) -> Watch:
    watch = feed.watch(*journals, every_s=every_s, slow_s=FAR_S)
    until(lambda: feed.covers(watch))
    until(watch.due)
    return watch


def test_an_append_is_announced_to_who_watches_its_journal(
    live: ChangeFeed, redis_server: RedisServer, tmp_path: Path
) -> None:
    store = open_store(f"file://{tmp_path}/odd [name]?", announce=Announcer(redis_server.url))
    topics = covered(live, journals_in(store, "events/*"), journals_in(store, "event-waiters"))
    other = covered(live, journals_in(store, "queues/*"))
    inside = covered(live, journals_in(store.within("workspaces/team"), "events/*"))
    Journal(store, "events/late", actor="a").append({}, at=0)
    until(topics.due)
    Journal(store, "event-waiters", actor="a").append({}, at=0)
    until(topics.due)
    Journal(store.within("workspaces/team"), "events/late", actor="a").append({}, at=0)
    until(inside.due)
    assert not other.due()
    assert not topics.due()
    for each in (topics, other, inside):
        each.close()


def test_a_change_of_a_model_wakes_a_watch_at_once(
    live: ChangeFeed, redis_server: RedisServer, tmp_path: Path
) -> None:
    store = open_store(f"file://{tmp_path}/store", announce=Announcer(redis_server.url))
    sent = pickle.loads(pickle.dumps(store))  # noqa: S301  # as a task on another node gets it
    registry = Registry(sent, actor="ada")
    watch = covered(live, journals_in(store, "models/m/journal"))
    woken = threading.Event()

    def wait() -> None:
        watch.wait()
        woken.set()

    thread = threading.Thread(target=wait)
    thread.start()
    registry.create_model("m")
    assert woken.wait(DEADLINE_S)  # it would read by itself after FAR_S
    watch.close()
    thread.join()


def test_a_user_that_is_kept_to_the_platform_s_channels_may_announce_and_listen(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    rules = ("on", ">pw", "~toque*", "resetchannels", "&toque*", "+@all", "-@dangerous")
    connection(redis_server.url, timeout_s=2).execute_command("ACL", "SETUSER", "team", *rules)
    url = redis_server.url.replace(":secret@", "team:pw@")
    store = open_store(f"file://{tmp_path}/store", announce=Announcer(url))
    watch = covered(ChangeFeed(url), journals_in(store, "queues/*"))
    Journal(store, "queues/q", actor="a").append({}, at=0)
    until(watch.due)
    watch.close()


def test_a_redis_that_goes_wakes_the_readers_and_lets_them_poll(
    live: ChangeFeed, redis_server: RedisServer
) -> None:
    watch = covered(live, X, every_s=0.0)
    assert not watch.due()
    redis_server.kill()
    until(lambda: not live.covers(watch))
    assert watch.due()
    assert watch.due()  # at its own pace
    redis_server.start()
    until(lambda: live.covers(watch))
    assert watch.due()  # once, for what was announced while it was away
    assert not watch.due()
    watch.close()


def test_a_redis_that_hangs_is_noticed_by_its_silence(
    live: ChangeFeed, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "PING_S", 0.1)
    monkeypatch.setattr(feeds, "SILENT_S", 0.5)
    watch = covered(live, X)
    assert redis_server.process is not None
    redis_server.process.send_signal(signal.SIGSTOP)
    until(lambda: not live.covers(watch))
    redis_server.process.send_signal(signal.SIGCONT)
    until(lambda: live.covers(watch))
    watch.close()


def test_a_reading_that_failed_is_due_again_without_waiting_for_news(live: ChangeFeed) -> None:
    watch = covered(live, X, every_s=0.0)
    with pytest.raises(OSError, match="store"), watch.turn():
        raise OSError("store")
    assert watch.due()
    assert not watch.due()
    watch.close()


def test_the_thread_ends_with_the_last_watch_and_starts_with_the_next(live: ChangeFeed) -> None:
    covered(live, X).close()
    until(lambda: live._thread is None)
    covered(live, Y).close()


def test_without_redis_a_reader_polls() -> None:
    now = [0.0]
    watch = Watch(every_s=2.0, clock=lambda: now[0])
    assert watch.due()
    assert not watch.due()
    now[0] += 2.0
    assert watch.due()


def test_a_writer_does_not_wait_for_a_redis_that_is_away(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/store", announce=Announcer("redis://127.0.0.1:1/0"))
    journal = Journal(store, "events/late", actor="a")
    begun = time.monotonic()
    for number in range(20):
        journal.append({}, at=number)
    assert time.monotonic() - begun < 5
