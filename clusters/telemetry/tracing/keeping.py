"""Tail sampling in the process that answered: failed and slow requests are kept, and a share of the rest.

The share is decided by the trace id alone, so all processes keep the same traces. How many are kept each second is bounded:
when everything fails, the first of them tell why, and a failure must not cost more than an answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Literal

from toque.clusters.telemetry.tracing.series import REQUESTS

__all__ = ["KEPT_PER_S", "Keeper", "Kept"]

Kept = Literal["failed", "slow", "sampled", "caller"]
"""Why a request is kept; "caller": the process that sent it keeps its own part of the trace."""

KEPT_PER_S: Final = 50.0
"""Requests that one process keeps a second, on average; twice as many at once."""
_RANDOM_DIGITS: Final = 14
"""Last digits of a trace id, which are random by W3C's Trace Context, level 2."""


class Keeper:
    """Decides which requests of a process are kept. share, slow_s: see `TraceSettings`; clock: seconds that pass."""

    def __init__(
        self,
        share: float,
        slow_s: float,
        *,
        kept_per_s: float = KEPT_PER_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.share, self.slow_s = share, slow_s
        self._below = int(share * 16**_RANDOM_DIGITS)
        self._rate, self._clock = kept_per_s, clock
        self._room, self._at = 2 * kept_per_s, clock()

    def is_sampled(self, trace_id: str) -> bool:
        """Whether a trace belongs to the share that is kept however its requests end."""
        return self._below > 0 and int(trace_id[-_RANDOM_DIGITS:], 16) < self._below

    def decide(self, trace_id: str, *, by_caller: bool, failed: bool, duration_s: float) -> Kept | None:
        """Say why a request is kept, or None if it is not.

        by_caller: whether the caller's `traceparent` says that it keeps its part.
        """
        reason: Kept
        if failed:
            reason = "failed"
        elif duration_s >= self.slow_s:
            reason = "slow"
        elif by_caller:
            reason = "caller"
        elif self.is_sampled(trace_id):
            reason = "sampled"
        else:
            return None
        if self._take():
            REQUESTS.labels(reason).inc()
            return reason
        REQUESTS.labels("dropped").inc()
        return None

    def _take(self) -> bool:
        now = self._clock()
        self._room = min(2 * self._rate, self._room + (now - self._at) * self._rate)
        self._at = now
        if self._room < 1:
            return False
        self._room -= 1
        return True
