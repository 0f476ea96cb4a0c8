"""Cohorts of predictions: equal windows of prediction time, numbered from the epoch."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Cohorts:
    """Grid of windows of one length."""

    length: timedelta

    def index(self, at: datetime) -> int:
        """Return the number of the cohort that holds `at`. Raises: ValueError if it is naive."""
        if at.tzinfo is None:
            raise ValueError(f"time {at} has no time zone; pass an aware UTC time")
        return (at - EPOCH) // self.length

    def start(self, index: int) -> datetime:
        """Return the time at which cohort `index` begins."""
        return EPOCH + index * self.length


def epoch_us(at: datetime) -> int:
    """Convert an aware time to microseconds since the epoch."""
    return (at - EPOCH) // timedelta(microseconds=1)
