"""Whether the gateway can do its work: the last answer of the store, which requests never wait for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from toque.registry import ObjectStore, RegistryError

CHECK_EVERY_S = 1.0
STALE_AFTER_S = 10.0


class Readiness:
    """Knows whether the store answers, by one read at a time and at most one a second; for one event loop.

    The probes of anybody, who needs no token, cost the store nothing more. monotonic: seconds.
    """

    def __init__(self, store: ObjectStore, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._monotonic = monotonic
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="readiness")
        self._check: asyncio.Future[None] | None = None
        self._begun_s = self._ended_s = float("-inf")
        self._answers = False

    async def is_ready(self) -> bool:
        """Whether the store answered lately; where nobody has asked for a while, this waits for its answer."""
        now_s = self._monotonic()
        if (self._check is None or self._check.done()) and now_s - self._begun_s >= CHECK_EVERY_S:
            self._begun_s = now_s
            self._check = asyncio.get_running_loop().run_in_executor(self._thread, self._read)
        patience_s = self._begun_s + STALE_AFTER_S - now_s
        if self._is_stale and self._check is not None and patience_s > 0:
            await asyncio.wait([self._check], timeout=patience_s)
        return self._answers and not self._is_stale

    @property
    def _is_stale(self) -> bool:
        return self._monotonic() - self._ended_s >= STALE_AFTER_S

    def _read(self) -> None:
        try:
            self._store.find("health")
        except RegistryError:
            self._answers = False
        else:
            self._answers = True
        self._ended_s = self._monotonic()
