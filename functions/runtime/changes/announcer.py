"""Announcer that publishes in Redis which journal of a store has a new entry."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from functools import cache
from typing import Any

from redis import RedisError

from clusters.redis_clients import open_redis
from registry.store import ObjectStore

CHANNELS = "toque:changed:"
TIMEOUT_S = 0.25  # a writer must not wait for a Redis that hangs
AWAY_S = 5.0


@dataclass(frozen=True)
class Announcer:
    """Publishes the addresses of journals that were appended to; a failure is ignored, for readers poll too.

    redis_url: where they are published. Pickled by its url.
    """

    redis_url: str

    def __call__(self, address: str) -> None:
        """Publish that the journal at `address` has a new entry."""
        _publisher(self.redis_url).publish(address)


def announcer_of(redis_url: str | None) -> Announcer | None:
    """Make the announcer of a platform; None without Redis."""
    return Announcer(redis_url) if redis_url else None


def address_in(store: ObjectStore, path: str) -> str:
    """Address of a journal, or a pattern of addresses with "*", in all processes that use the store."""
    return f"{store.url.partition('?')[0]}/{path}"


class _Publisher:
    """Publisher of this process, which pauses while Redis does not answer."""

    def __init__(self, redis_url: str) -> None:
        self._client: Any = connection(redis_url, timeout_s=TIMEOUT_S)
        self._lock = threading.Lock()
        self._away_until = float("-inf")

    def publish(self, address: str) -> None:
        if time.monotonic() < self._away_until:
            return
        try:
            self._client.publish(f"{CHANNELS}{address}", b"")
        except (RedisError, OSError):
            with self._lock:
                self._away_until = time.monotonic() + AWAY_S


@cache
def _publisher(redis_url: str) -> _Publisher:
    return _Publisher(redis_url)


def connection(redis_url: str, *, timeout_s: float) -> Any:
    """Open a client that fails fast: who uses it has another way, and tries again later."""
    return open_redis(redis_url, timeout_s=timeout_s, connect_timeout_s=timeout_s, patience_s=0.0)
