"""Conversion of times to whole microseconds since 1970 UTC and back, exactly."""

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def from_microseconds(value: int) -> datetime:
    """Convert microseconds since 1970 to an aware UTC time."""
    return _EPOCH + timedelta(microseconds=value)


def to_microseconds(value: datetime) -> int:
    """Convert an aware time to microseconds since 1970 UTC, exactly."""
    return (value - _EPOCH) // timedelta(microseconds=1)
