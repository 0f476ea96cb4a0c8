"""Announcer that publishes in Redis which journal of a store has a new entry."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from redis import RedisError

from toque.clusters.redis_clients import open_redis
from toque.registry.store import ObjectStore

CHANNELS = "toque:changed:"
TIMEOUT_S = 0.25  # a writer must not wait for a Redis that hangs
AWAY_S = 5.0


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


class Watched(NamedTuple):
    """Journals that a reader watches: the channel that announces them, and their path, in which "*" stands for any text."""

    channel: str
    path: str


def journals_in(store: ObjectStore, path: str) -> Watched:
    """Name a journal of a store, or several by "*" after the first part of their path, in all processes alike."""
    return Watched(_channel(store.url.partition("?")[0], path), path)


def _channel(address: str, path: str) -> str:
    """Name the channel of the journals below one part of a store: a user of Redis may be kept to channels by name, not by pattern."""
    return f"{CHANNELS}{address}/{path.partition('/')[0]}"


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


def connection(redis_url: str, *, timeout_s: float) -> Any:
    """Open a client that fails fast: who uses it has another way, and tries again later."""
    return open_redis(redis_url, timeout_s=timeout_s, connect_timeout_s=timeout_s, patience_s=0.0)
