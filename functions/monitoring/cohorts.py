"""Cohorts of predictions: equal windows of prediction time, numbered from the epoch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol, Self

from pydantic import BaseModel, ConfigDict

from toque.registry.times import EPOCH

COHORT_S = "cohort_s"
"""Key beside a state that says how long the cohorts are which it numbers."""


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

    def when_due(self, index: int, delay: timedelta) -> str:
        """Say which times cohort `index` has, and from when on it is judged."""
        start, end = self.start(index), self.start(index + 1)
        return f"that from {start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} is judged from {end + delay:%Y-%m-%d %H:%M} UTC on"


class CohortState(BaseModel, ABC):
    """State of a monitor between runs. next_cohort: number of the first cohort that was not judged."""

    model_config = ConfigDict(frozen=True)

    next_cohort: int

    @abstractmethod
    def on_grid(self, moved: Callable[[int], int]) -> Self:
        """Make the state on another grid of cohorts, without what was learnt about cohorts of the old length.

        moved: number of the cohort of the new grid in which one of the old begins.
        """


class HasCohort(Protocol):
    """Settings of a monitor that judges cohorts."""

    @property
    def kind(self) -> str:
        """Name of the monitor, unique within a model."""

    @property
    def cohort(self) -> timedelta:
        """Length of the cohorts that it judges."""
