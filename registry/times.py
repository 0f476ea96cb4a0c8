"""Times are timezone-aware UTC, written as ISO 8601 with microseconds."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from registry.errors import InvalidInput

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """Current UTC time of the wall clock."""
    return datetime.now(UTC)


def as_utc(at: datetime, *, name: str = "time") -> datetime:
    """Convert a timezone-aware time to UTC.

    name: of the argument, for the message.
    Raises: InvalidInput if `at` has no timezone.
    """
    if at.tzinfo is None:
        raise InvalidInput(f"{name}={at!r} has no timezone; pass datetime(..., tzinfo=UTC)")
    return at.astimezone(UTC)


def to_text(at: datetime) -> str:
    """Write a time as ISO 8601 in UTC, always with microseconds, so that text order is time order."""
    return as_utc(at).isoformat(timespec="microseconds")


def from_text(text: str) -> datetime:
    """Read a time that `to_text` wrote."""
    return as_utc(datetime.fromisoformat(text))
