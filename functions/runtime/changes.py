"""Changes of journals: announced in Redis by their writers, followed by readers that pace themselves by a watch.

While the feed is live a reader reads when its journal was announced, and every `SLOW_S` seconds as a safety net. While it is
not (no Redis, or Redis away), a reader polls at its own pace.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, NamedTuple

from redis import RedisError

from toque.clusters.redis_clients import open_redis
from toque.registry.store import ObjectStore

SLOW_S = 10.0
PING_S = 2.0
SILENT_S = 5.0  # a connection that has not answered pings for so long is dead
_TURN_S = 1.0  # a new watch is covered so much later
_RETRY_S = 1.0
CHANNELS = "toque:changed:"
TIMEOUT_S = 0.25  # a writer must not wait for a Redis that hangs
AWAY_S = 5.0  # nothing is published for so long once Redis has failed
_logger = logging.getLogger(__name__)


class Watch:
    """Pace of one reader: tells it when what it reads may have changed.

    every_s: how often it reads while no feed is live. feed: None polls always.
    """

    def __init__(
        self,
        *,
        every_s: float,
        feed: ChangeFeed | None = None,
        journals: tuple[Watched, ...] = (),
        slow_s: float = SLOW_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.journals = journals
        self._every_s, self._slow_s, self._clock, self._feed = every_s, slow_s, clock, feed
        self._changed = threading.Event()
        self._changed.set()
        self._read_at = float("-inf")
        self._closed = self._failed = False

    def due(self) -> bool:
        """Whether the reader should read now; if so, it is expected to do it at once."""
        if not self._changed.is_set() and self._left_s() > 0:
            return False
        # Cleared before the read: what is announced during it makes the next one due.
        self._changed.clear()
        self._failed = False
        self._read_at = self._clock()
        return True

    def failed(self) -> None:
        """Make the last reading due again at the pace without a feed, as it did not get an answer."""
        self._failed = True

    @contextmanager
    def turn(self) -> Iterator[bool]:
        """Give whether to read now, as `due`; a block that raises is a reading that failed."""
        try:
            yield self.due()
        except BaseException:  # an interrupted reading has failed, too; it is raised again
            self.failed()
            raise

    def wait(self) -> bool:
        """Wait until the reader should read; False once the watch is closed."""
        while not self._closed and not self.due():
            self._changed.wait(max(self._left_s(), 0.0))  # a feed that is lost notifies its watches
        return not self._closed

    def notify(self) -> None:
        """Make the reader read at its next turn."""
        self._changed.set()

    def close(self) -> None:
        """End `wait`, and leave the feed."""
        self._closed = True
        self._changed.set()
        if self._feed is not None:
            self._feed.leave(self)

    def _left_s(self) -> float:
        live = self._feed is not None and self._feed.covers(self) and not self._failed
        return self._read_at + (self._slow_s if live else self._every_s) - self._clock()


class ChangeFeed:
    """Feed of announcements from one Redis, by a thread that starts with the first watch.

    A watch is notified when a connection is made, as announcements may have been missed before.
    """

    def __init__(self, redis_url: str) -> None:
        self._redis_url = redis_url
        self._watches: list[Watch] = []
        self._covered: frozenset[str] = frozenset()
        self._told = False
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def watch(self, *journals: Watched, every_s: float, slow_s: float = SLOW_S) -> Watch:
        """Watch journals, as `journals_in` names them.

        every_s: the reader's pace while Redis is away.
        """
        made = Watch(every_s=every_s, feed=self, journals=journals, slow_s=slow_s)
        with self._lock:
            self._watches.append(made)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="changes", daemon=True)
                self._thread.start()
        return made

    def covers(self, watch: Watch) -> bool:
        """Whether announcements for a watch arrive now."""
        return self._covered.issuperset(_channels(watch))

    def leave(self, watch: Watch) -> None:
        """Stop notifying a watch, which nobody waits on."""
        with self._lock:
            self._watches = [each for each in self._watches if each is not watch]

    def _run(self) -> None:
        while self._has_watches():
            try:
                self._listen()
            except (RedisError, OSError) as error:
                if not self._told:  # again only after it was live
                    _logger.warning("changes are polled for, as Redis does not announce them: %s", error)
                self._told = True
            except Exception:  # the thread must live: readers poll until it listens again
                _logger.exception("changes are polled for, as they cannot be followed")
            self._set_covered(frozenset())
            time.sleep(_RETRY_S)

    def _has_watches(self) -> bool:
        with self._lock:
            if not self._watches:
                self._thread = None
            return bool(self._watches)

    def _listen(self) -> None:
        """Subscribe, and pass announcements on while there are watches. Raises: RedisError; OSError."""
        with connection(self._redis_url, timeout_s=PING_S) as client, client.pubsub() as pubsub:
            # unanswered: when the oldest such ping was sent
            pinged, unanswered = time.monotonic(), float("inf")
            while wanted := self._wanted():
                if old := self._covered - wanted:
                    self._covered &= wanted
                    pubsub.unsubscribe(*old)
                if new := wanted - self._covered:
                    pubsub.subscribe(*new)
                    self._await_subscribed(pubsub, len(new))
                    self._set_covered(self._covered | new)
                message = pubsub.get_message(timeout=_TURN_S)
                now = time.monotonic()
                if message is not None:
                    unanswered = float("inf")
                    self._pass_on(message)
                elif now - unanswered > SILENT_S:
                    raise TimeoutError(f"no answer to pings in {SILENT_S} s")
                if now - pinged > PING_S:
                    pubsub.ping()
                    pinged, unanswered = now, min(unanswered, now)

    def _await_subscribed(self, pubsub: Any, count: int) -> None:
        until = time.monotonic() + SILENT_S
        while count:
            message = pubsub.get_message(timeout=_TURN_S)
            if message is not None and message["type"] == "subscribe":
                count -= 1
            elif message is not None:
                self._pass_on(message)
            if time.monotonic() > until:
                raise TimeoutError(f"no answer to a subscription in {SILENT_S} s")

    def _pass_on(self, message: dict[str, Any]) -> None:
        if message["type"] != "message":
            return
        channel, path = (message[part].decode(errors="replace") for part in ("channel", "data"))
        for watch in self._known():
            if any(each.channel == channel and fnmatchcase(path, each.path) for each in watch.journals):
                watch.notify()

    def _set_covered(self, covered: frozenset[str]) -> None:
        before, self._covered = self._covered, covered
        self._told = self._told and not covered
        for watch in self._known():
            if before.issuperset(_channels(watch)) != covered.issuperset(_channels(watch)):
                watch.notify()

    def _wanted(self) -> frozenset[str]:
        return frozenset(channel for watch in self._known() for channel in _channels(watch))

    def _known(self) -> list[Watch]:
        with self._lock:
            return list(self._watches)


_feeds: dict[tuple[int, str], ChangeFeed] = {}
_feeds_lock = threading.Lock()


def feed_of(redis_url: str) -> ChangeFeed:
    """Return this process's feed from a Redis."""
    key = (os.getpid(), redis_url)
    with _feeds_lock:
        return _feeds.setdefault(key, ChangeFeed(redis_url))


def watch_of(redis_url: str | None, *journals: Watched, every_s: float) -> Watch:
    """Watch journals by the feed of this process; without Redis, poll every `every_s` seconds."""
    if redis_url is None:
        return Watch(every_s=every_s)
    return feed_of(redis_url).watch(*journals, every_s=every_s)


class Watched(NamedTuple):
    """Journals that a reader watches: the channel that announces them, and their path, in which "*" stands for any text."""

    channel: str
    path: str


def journals_in(store: ObjectStore, path: str) -> Watched:
    """Name a journal of a store, or several by "*" after the first part of their path, in all processes alike."""
    return Watched(_channel(store.url.partition("?")[0], path), path)


@dataclass(frozen=True)
class Announcer:
    """Publishes which journals were appended to; a failure is ignored, for readers poll too.

    redis_url: where they are published. Pickled by its url.
    """

    redis_url: str

    def __call__(self, address: str, path: str) -> None:
        """Publish that the journal at `path` of the store at `address` has a new entry."""
        _publisher(self.redis_url).publish(_channel(address, path), path)


def announcer_of(redis_url: str | None) -> Announcer | None:
    """Make the announcer of a platform; None without Redis."""
    return Announcer(redis_url) if redis_url else None


class _Publisher:
    """Publisher of this process, which pauses while Redis does not answer."""

    def __init__(self, redis_url: str) -> None:
        self._client: Any = connection(redis_url, timeout_s=TIMEOUT_S)
        self._lock = threading.Lock()
        self._away_until = float("-inf")

    def publish(self, channel: str, path: str) -> None:
        if time.monotonic() < self._away_until:
            return
        try:
            self._client.publish(channel, path)
        except (RedisError, OSError):
            with self._lock:
                self._away_until = time.monotonic() + AWAY_S


@cache
def _publisher(redis_url: str) -> _Publisher:
    return _Publisher(redis_url)


def _channels(watch: Watch) -> frozenset[str]:
    return frozenset(each.channel for each in watch.journals)


def _channel(address: str, path: str) -> str:
    """Name the channel of the journals below one part of a store: a user of Redis may be kept to channels by name, not by pattern."""
    return f"{CHANNELS}{address}/{path.partition('/')[0]}"


def connection(redis_url: str, *, timeout_s: float) -> Any:
    """Open a client that fails fast: who uses it has another way, and tries again later."""
    return open_redis(redis_url, timeout_s=timeout_s, connect_timeout_s=timeout_s, patience_s=0.0)
