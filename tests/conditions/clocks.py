"""Clocks as several machines have them: one ahead or behind, two that differ, and a zone whose clocks are put forward and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import strategies as st

MILLISECOND = timedelta(milliseconds=1)

SKEWS = {
    "the same": timedelta(0),
    "50 ms behind": -50 * MILLISECOND,
    "50 ms ahead": 50 * MILLISECOND,
    "2 s behind": -timedelta(seconds=2),
    "2 s ahead": timedelta(seconds=2),
}
"""Differences between two machines that synchronise their clocks, by name."""
FAR_SKEWS = {"an hour behind": -timedelta(hours=1), "an hour ahead": timedelta(hours=1)}
"""Differences of a machine whose clock is wrong."""

MINUTES_OFF = {
    "90 s behind": -timedelta(seconds=90),
    "90 s ahead": timedelta(seconds=90),
    "150 s ahead": timedelta(seconds=150),
}
"""Differences of a machine whose synchronisation has stopped, by more than is allowed."""

any_skew = pytest.mark.parametrize("skew", SKEWS.values(), ids=SKEWS.keys())
skews = st.sampled_from(list(SKEWS.values()))


def skewed(clock: Callable[[], datetime], skew: timedelta) -> Callable[[], datetime]:
    """Clock of another machine, which differs from this one."""
    return lambda: clock() + skew


KNOWN_AFTER = {
    "at once": timedelta(0),
    "a microsecond later": timedelta(microseconds=1),
    "eleven hours later": timedelta(hours=11),
    "a year later": timedelta(days=365),
}
"""How long after it happened something becomes known, by name."""
any_delay = pytest.mark.parametrize("delay", KNOWN_AFTER.values(), ids=KNOWN_AFTER.keys())


@dataclass(frozen=True, slots=True)
class Change:
    """Change of a zone's clocks: local times that come twice, or never, and of which the neighbours come once."""

    name: str
    zone: str
    before: str
    during: str
    after: str
    twice: bool

    def moments(self) -> list[datetime]:
        """Moments that have the local time `during`, in their order."""
        local = datetime.fromisoformat(self.during)
        both = (local.replace(tzinfo=ZoneInfo(self.zone), fold=fold).astimezone(UTC) for fold in (0, 1))
        return list(both) if self.twice else []


CHANGES = (
    Change(
        "autumn in New York",
        "America/New_York",
        "2024-11-03 00:30",
        "2024-11-03 01:30",
        "2024-11-03 02:30",
        twice=True,
    ),
    Change(
        "spring in New York",
        "America/New_York",
        "2024-03-10 01:30",
        "2024-03-10 02:30",
        "2024-03-10 03:30",
        twice=False,
    ),
    Change(
        "autumn in Berlin",
        "Europe/Berlin",
        "2024-10-27 01:30",
        "2024-10-27 02:30",
        "2024-10-27 03:30",
        twice=True,
    ),
    Change(
        "half an hour on Lord Howe",
        "Australia/Lord_Howe",
        "2024-04-07 01:15",
        "2024-04-07 01:45",
        "2024-04-07 02:15",
        twice=True,
    ),
)
any_change = pytest.mark.parametrize("change", CHANGES, ids=[change.name for change in CHANGES])
