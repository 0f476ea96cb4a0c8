"""Reader of live counts: all processes added up, by model and window."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from threading import Lock
from typing import Any

from cachetools import LRUCache

from toque.clusters.redis_clients import open_redis
from toque.functions.live_counts.clock_check import ClockCheck
from toque.functions.live_counts.counts import WindowCounts, decode
from toque.functions.live_counts.windows import KEPT_S, WINDOW_S, counts_key, models_key, window_at

TIMEOUT_S = 2.0
_CACHED = 20_000  # windows that have ended, of all models


class LiveReader:
    """Reads the counts of a workspace's models. client: of Redis. Windows that are over are read once.

    A window is over when its writers have come two windows further, whatever the clock here says of it.
    """

    def __init__(self, client: Any, workspace: str) -> None:
        self._client, self._workspace = client, workspace
        self._ended: LRUCache[tuple[str, int], WindowCounts] = LRUCache(_CACHED)
        self._lock = Lock()
        self._reached: dict[str, int] = {}
        self._check = ClockCheck(client)

    def models(self, now: float, *, within_s: float = 10 * WINDOW_S) -> list[str]:
        """List the models that were asked in the last seconds. now: seconds since the epoch. Raises: RedisError."""
        self._check.look(now)
        key = models_key(self._workspace)
        self._client.zremrangebyscore(key, "-inf", now - KEPT_S)
        return sorted(name.decode() for name in self._client.zrangebyscore(key, now - within_s, "+inf"))

    def windows(self, model: str, windows: Iterable[int], now: float) -> dict[int, WindowCounts]:
        """Read the counts of windows. Raises: RedisError."""
        with self._lock:
            counts = {window: self._ended.get((model, window)) for window in windows}
        read = self._read(model, [window for window, ended in counts.items() if ended is None])
        self._reached[model] = max(
            [self._reached.get(model, 0), *(window for window, one in read.items() if one.arms)]
        )
        # A window gets its last counts a few seconds after its end.
        settled = min(window_at(now - WINDOW_S / 2), self._reached[model] - 1)
        with self._lock:
            self._ended.update(
                {(model, window): one for window, one in sorted(read.items()) if window < settled}
            )
        return {window: read[window] if ended is None else ended for window, ended in counts.items()}

    def _read(self, model: str, windows: list[int]) -> dict[int, WindowCounts]:
        """Read some windows in one round trip."""
        pipe = self._client.pipeline(transaction=False)
        for window in windows:
            pipe.hvals(counts_key(self._workspace, model, window))
        answers = pipe.execute() if windows else []
        return {
            window: WindowCounts.sum(map(decode, fields))
            for window, fields in zip(windows, answers, strict=True)
        }


@cache
def live_reader(redis_url: str, workspace: str) -> LiveReader:
    """Return this process's reader of a workspace's counts; it fails fast, as the next look is seconds away."""
    client = open_redis(redis_url, timeout_s=TIMEOUT_S, connect_timeout_s=TIMEOUT_S, patience_s=0.0)
    return LiveReader(client, workspace)
