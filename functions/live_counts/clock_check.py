"""Check of this machine's clock against Redis's, as windows of counts are told by the clocks of several machines."""

from __future__ import annotations

import logging
from typing import Any

from toque.clusters.redis_clients import primaries

MOST_SKEW_S = 10.0
"""How far clocks may differ: beyond it counts of the last minutes come late to who judges them, or never."""
_EVERY_S = 60.0
_logger = logging.getLogger(__name__)


class ClockCheck:
    """Says in the log, once a minute, that the clock here and Redis's differ by more than `MOST_SKEW_S`. client: of Redis."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._next = float("-inf")

    def look(self, now: float) -> float | None:
        """Compare the clocks; returns how far this one is ahead, or None where it was done within the minute. Raises: RedisError."""
        if self._next - _EVERY_S <= now < self._next:
            return None
        self._next = now + _EVERY_S
        seconds, microseconds = primaries(self._client)[0].time()
        skew_s = now - (seconds + microseconds / 1e6)
        if abs(skew_s) > MOST_SKEW_S:
            _logger.error(
                "this machine's clock is %.0f s %s Redis's: the last minutes of models are judged late or not at all; "
                "synchronise the clocks (docs/runbooks/clock-skewed.md)",
                abs(skew_s),
                "ahead of" if skew_s > 0 else "behind",
            )
        return float(skew_s)
