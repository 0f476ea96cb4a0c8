"""Reader of live counts: all processes added up, by model and window."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from threading import Lock
from typing import Any

from cachetools import LRUCache

from toque.clusters.redis_clients import open_redis
from toque.functions.live_counts.counts import WindowCounts, decode
from toque.functions.live_counts.windows import KEPT_S, WINDOW_S, counts_key, models_key, window_at

TIMEOUT_S = 2.0
_CACHED = 20_000  # windows that have ended, of all models


class LiveReader:
    """Reads the counts of a workspace's models. client: of Redis. Windows that are over are read once."""

    def __init__(self, client: Any, workspace: str) -> None:
        self._client, self._workspace = client, workspace
        self._ended: LRUCache[tuple[str, int], WindowCounts] = LRUCache(_CACHED)
        self._lock = Lock()

    def models(self, now: float, *, within_s: float = 10 * WINDOW_S) -> list[str]:
        """List the models that were asked in the last seconds. now: seconds since the epoch. Raises: RedisError."""
        key = models_key(self._workspace)
        self._client.zremrangebyscore(key, "-inf", now - KEPT_S)
        return sorted(name.decode() for name in self._client.zrangebyscore(key, now - within_s, "+inf"))

    def windows(self, model: str, windows: Iterable[int], now: float) -> dict[int, WindowCounts]:
        """Read the counts of windows. Raises: RedisError."""
        settled = window_at(now - WINDOW_S / 2)  # a window gets its last counts a few seconds after its end
        found: dict[int, WindowCounts] = {}
        for window in windows:
            with self._lock:
                counts = self._ended.get((model, window))
            if counts is None:
                counts = self._read(model, window)
                if window < settled:
                    with self._lock:
                        self._ended[model, window] = counts
            found[window] = counts
        return found

    def _read(self, model: str, window: int) -> WindowCounts:
        fields = self._client.hvals(counts_key(self._workspace, model, window))
        return WindowCounts.sum(map(decode, fields))


@cache
def live_reader(redis_url: str, workspace: str) -> LiveReader:
    """Return this process's reader of a workspace's counts; it fails fast, as the next look is seconds away."""
    client = open_redis(redis_url, timeout_s=TIMEOUT_S, connect_timeout_s=TIMEOUT_S, patience_s=0.0)
    return LiveReader(client, workspace)
