"""Publisher of this process's tallies: a thread sends to Redis, once a second, what has changed."""

from __future__ import annotations

import logging
import threading
import time
import uuid
import weakref
from collections.abc import Mapping
from functools import cache
from typing import Any

from redis import RedisError

from toque.clusters.redis_clients import open_redis
from toque.functions.live_counts.clock_check import ClockCheck
from toque.functions.live_counts.counts import ArmTally, SplitArm, encode
from toque.functions.live_counts.tally import Tally
from toque.functions.live_counts.windows import KEPT_S, counts_key, models_key

EVERY_S = 1.0
TIMEOUT_S = 1.0
_QUIET_S = 60.0
_logger = logging.getLogger(__name__)


class LivePublisher:
    """Sends the tallies of one process. Each is sent whole under a field of its own, so sending twice counts once.

    While Redis is away the counts of the running window are kept, and those of older windows are lost.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._process = uuid.uuid4().hex
        self._tallies: list[tuple[str, str, str, weakref.ref[Tally]]] = []
        self._made = 0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._told_at = float("-inf")
        self._check = ClockCheck(client)

    def tally(self, workspace: str, model: str) -> Tally:
        """Make the tally of a model, sent from now on for as long as somebody holds it."""
        made = Tally()
        with self._lock:
            self._made += 1  # a model that was evicted and came back has another field
            field = f"{self._process}-{self._made}"
            self._tallies.append((workspace, model, field, weakref.ref(made)))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="live-counts", daemon=True)
                self._thread.start()
        return made

    def send(self) -> None:
        """Send what has changed since the last call. Raises: RedisError; OSError; it is sent again next time."""
        self._check.look(time.time())
        with self._lock:
            self._tallies = [each for each in self._tallies if each[-1]() is not None]
            known = list(self._tallies)
        for workspace, model, field, reference in known:
            tally = reference()
            taken = tally.take() if tally is not None else {}
            if tally is None or not taken:
                continue
            try:
                self._send(workspace, model, field, taken)
            except (RedisError, OSError):
                tally.put_back(set(taken))
                raise

    def _send(
        self, workspace: str, model: str, field: str, taken: Mapping[int, Mapping[SplitArm, ArmTally]]
    ) -> None:
        pipe = self._client.pipeline(transaction=False)
        for window, arms in taken.items():
            key = counts_key(workspace, model, window)
            pipe.hset(key, field, encode(arms))
            pipe.expire(key, KEPT_S)
        pipe.zadd(models_key(workspace), {model: time.time()})
        pipe.execute()

    def _run(self) -> None:
        waiting = threading.Event()
        while not waiting.wait(EVERY_S):
            try:
                self.send()
            except Exception as error:  # noqa: BLE001 - the thread must outlive any fault of Redis
                now = time.monotonic()
                if now - self._told_at > _QUIET_S:
                    self._told_at = now
                    _logger.warning("live counts are sent later: %s", error)


@cache
def live_publisher(redis_url: str) -> LivePublisher:
    """Return this process's publisher to a Redis."""
    client = open_redis(redis_url, timeout_s=TIMEOUT_S, connect_timeout_s=TIMEOUT_S, patience_s=0.0)
    return LivePublisher(client)
