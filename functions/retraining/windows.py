"""Training windows: the rows of the past that a challenger learns from."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

_YEAR = timedelta(days=365.2425)
_DAY_US = 86_400e6


class TrainingWindow(BaseModel):
    """Window of training rows before the held-out ones; conditions that are not set choose all rows.

    days: recent: the last so many days. season_days: seasonal: rows whose time of year lies within so many days of the end of
    the window's, in whatever year. half_life_days: weighted: of rows so much older than the newest half are kept, of rows
    twice as old a quarter, at random but the same rows each time, as if weighted by a half and a quarter.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    days: int | None = Field(default=None, ge=1)
    season_days: int | None = Field(default=None, ge=1, le=182)
    half_life_days: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.days is not None and self.season_days is not None and self.days <= self.season_days:
            raise ValueError(
                f"window {self.name!r}: of the last {self.days} days all lie within {self.season_days} of the season; "
                "leave one of them out"
            )
        return self

    @property
    def chooses(self) -> bool:
        """Whether the window leaves out rows between its beginning and its end."""
        return self.season_days is not None or self.half_life_days is not None

    def chosen(self, at: npt.NDArray[Any], end: datetime) -> npt.NDArray[np.bool_]:
        """Mark the rows (rows,) that the window chooses. at: their times as datetime64 in UTC; end: of the window, aware.

        Raises: ValueError if `end` has no time zone.
        """
        if end.tzinfo is None:
            raise ValueError(f"end {end} has no time zone; pass an aware UTC time")
        newest = np.datetime64(end.replace(tzinfo=None) - (end.utcoffset() or timedelta(0)), "us")
        age = (newest - at.astype("datetime64[us]")).astype(np.int64) / _DAY_US
        kept = np.ones(len(at), dtype=bool)
        if self.season_days is not None:
            year = _YEAR / timedelta(days=1)
            phase = np.mod(age, year)
            kept &= np.minimum(phase, year - phase) <= self.season_days
        if self.half_life_days is not None:
            chance = np.random.default_rng(0).random(len(at))
            kept &= chance < np.exp2(-np.maximum(age, 0.0) / self.half_life_days)
        return kept
