"""Times as whole microseconds since 1970."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from toque.registry.times import epoch_us, from_epoch_us

TIMES = (
    (datetime(1970, 1, 1, tzinfo=UTC), 0),
    (datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), -1),
    (datetime(2026, 10, 25, 2, 30, tzinfo=timezone(timedelta(hours=2))), 1_792_888_200_000_000),
    (datetime(2255, 6, 5, 23, 47, 34, 740_993, tzinfo=UTC), 2**53 + 1),  # floats are even from 2^53 on
)


@pytest.mark.parametrize(("at", "microseconds"), TIMES)
def test_a_time_is_the_same_moment_in_microseconds_and_back(at: datetime, microseconds: int) -> None:
    assert epoch_us(at) == microseconds
    assert from_epoch_us(microseconds) == at
    assert from_epoch_us(microseconds).tzinfo is UTC


@pytest.mark.parametrize("at", [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)])
def test_the_ends_of_the_calendar_are_exact(at: datetime) -> None:
    assert from_epoch_us(epoch_us(at)) == at


def test_a_naive_time_is_refused() -> None:
    with pytest.raises(ValueError, match="needs its zone"):
        epoch_us(datetime(2026, 1, 1))  # noqa: DTZ001 - the condition
