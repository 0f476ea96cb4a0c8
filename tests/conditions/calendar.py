"""Times at the two ends of the calendar: those that a `datetime` in UTC holds, and their neighbours that it does not."""

from __future__ import annotations

import pytest

WITHIN = ["0001-01-01T00:00:00+00:00", "9999-12-31T23:59:59.999999+00:00", "9999-12-31T23:59:59.999000+00:00"]
BEYOND = [
    "0001-01-01T00:00:00+01:00",
    "0001-01-01T00:00:00+00:01",
    "9999-12-31T23:59:59-01:00",
    "9999-12-31T23:59:59.999999-00:01",
]
"""ISO 8601 texts that are times where they are written and lie outside the years 1 to 9999 in UTC."""
any_time_within = pytest.mark.parametrize("end", WITHIN)
any_time_beyond = pytest.mark.parametrize("end", BEYOND)
