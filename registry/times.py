"""Times are timezone-aware UTC, written as ISO 8601 with microseconds; and random waits between a writer's attempts."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from random import SystemRandom

from toque.registry.errors import InvalidInput

# The platform's own: a seeded `random` is the user's, and a thread of ours must not draw from it.
CHANCE = SystemRandom()

Clock = Callable[[], datetime]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
"""Resolution of stored times; `span // MICROSECOND` is a span as they are counted."""
FIRST_TIME, LAST_TIME = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
"""Range of the times that the platform takes. Arrow and Polars hold others, which nothing could read back as a `datetime`."""
_FIRST_BACKOFF_S = 0.01
_MAX_BACKOFF_S = 1.0


def utc_now() -> datetime:
    """Current UTC time of the wall clock."""
    return datetime.now(UTC)


def as_utc(at: datetime, *, name: str = "time") -> datetime:
    """Convert a timezone-aware time to UTC.

    name: of the argument, for the message.
    Raises: InvalidInput if `at` has no timezone, or lies beyond the calendar's ends in UTC.
    """
    if at.tzinfo is None:
        raise InvalidInput(f"{name}={at!r} has no timezone; pass datetime(..., tzinfo=UTC)")
    try:
        return at.astimezone(UTC)
    except OverflowError:
        raise InvalidInput(
            f"{name}={at.isoformat()} is before the year 1 or after 9999 in UTC; pass a time between"
        ) from None


def to_text(at: datetime) -> str:
    """Write a time as ISO 8601 in UTC, always with microseconds, so that text order is time order."""
    return as_utc(at).isoformat(timespec="microseconds")


def from_text(text: str) -> datetime:
    """Read a time that `to_text` wrote."""
    return as_utc(datetime.fromisoformat(text))


def epoch_us(at: datetime) -> int:
    """Convert a time to microseconds since 1970, exactly. Raises: ValueError if it is naive."""
    if at.tzinfo is None:
        raise ValueError(f"a time needs its zone, got {at.isoformat()}; use datetime.now(UTC)")
    return (at - EPOCH) // MICROSECOND


def from_epoch_us(microseconds: int) -> datetime:
    """Convert microseconds since 1970 to a time in UTC."""
    return EPOCH + timedelta(microseconds=microseconds)


def backoff_s(attempt: int) -> float:
    """Seconds to wait before try `attempt` + 1: random, so that losers do not meet again."""
    return CHANCE.uniform(0.0, min(_MAX_BACKOFF_S, _FIRST_BACKOFF_S * 2.0 ** min(attempt, 10)))
