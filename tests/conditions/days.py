"""Days as they follow each other in life: independent, like their neighbours, by weekday, or after a novelty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import strategies as st

_WEEK = np.array([1.0, 1.0, 1.0, 1.0, 1.0, -2.5, -2.5])  # Monday to Sunday: no shift over a whole week


@dataclass(frozen=True, slots=True)
class Days:
    """Process of what a day adds to everything that is measured on it, in units of `scale`; its mean over time is zero.

    correlation: of a day with the one before. weekly: part of the variance that the weekday has. novelty: what the first day
    has on top, halved every two days.
    """

    name: str
    correlation: float = 0.0
    weekly: float = 0.0
    novelty: float = 0.0

    def draw(self, rng: np.random.Generator, days: int, *, scale: float = 1.0) -> npt.NDArray[np.float64]:
        """Draw the shock of each day, (days,), from any day of the week on; apart from the novelty its variance is scale²."""
        innovations = rng.standard_normal(days) * np.sqrt(1 - self.correlation**2)
        shocks = np.empty(days)
        before = rng.standard_normal()
        for day, innovation in enumerate(innovations):
            before = shocks[day] = self.correlation * before + innovation
        weekday = (rng.integers(7) + np.arange(days)) % 7
        weekly = _WEEK[weekday] / np.sqrt(np.mean(_WEEK**2))
        mixed = np.sqrt(1 - self.weekly) * shocks + np.sqrt(self.weekly) * weekly
        drawn: npt.NDArray[np.float64] = scale * (mixed + self.novelty * 0.5 ** (np.arange(days) / 2))
        return drawn


INDEPENDENT = Days("independent")
CORRELATED = Days("correlated", correlation=0.5)
STRONGLY_CORRELATED = Days("strongly correlated", correlation=0.8)
WEEKLY = Days("weekly", weekly=0.9)
NOVELTY = Days("novelty", novelty=3.0)
ALL = (INDEPENDENT, CORRELATED, STRONGLY_CORRELATED, WEEKLY, NOVELTY)


def parameters(*names: str) -> list[Any]:
    """Parameters of a test: the named processes, all of them if none is named."""
    return [pytest.param(days, id=days.name) for days in ALL if not names or days.name in names]


def processes() -> st.SearchStrategy[Days]:
    """Processes of any correlation and weekly part."""
    return st.builds(Days, st.just("any"), st.floats(0.0, 0.9), st.floats(0.0, 1.0))
