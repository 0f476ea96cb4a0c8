"""Training windows: the rows of the past that a challenger learns from.

A model's labelled rows are cut in time: the newest are what a version is judged by.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, Field, model_validator

from toque.functions.features.entity_rows import EVENT_TIMESTAMP, LABEL_KNOWN_AT
from toque.functions.training import TrainingDataError
from toque.registry import Table, TableSnapshot
from toque.registry.times import from_epoch_us

_YEAR = timedelta(days=365.2425)
_DAY_US = 86_400e6
HELD_OUT = 0.2
_MICROSECOND = timedelta(microseconds=1)
_UTC = pa.timestamp("us", "UTC")


class TrainingWindow(BaseModel, frozen=True, extra="forbid"):
    """Window of training rows before the held-out ones; conditions that are not set choose all rows.

    days: recent: the last so many days. season_days: seasonal: rows whose time of year lies within so many days of the end of
    the window's, in whatever year. half_life_days: weighted: of rows so much older than the newest half are kept, of rows
    twice as old a quarter, at random but the same rows each time, as if weighted by a half and a quarter.
    """

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


@dataclass(frozen=True, slots=True)
class Cut:
    """Times of the labelled rows: the first, where those begin that are held out, and after the last."""

    first: datetime
    split: datetime
    end: datetime


def newest_fifth(
    snapshot: TableSnapshot,
    label: str,
    *,
    entities: Table,
    known_by: datetime | None = None,
    until: datetime | None = None,
) -> Cut:
    """Cut where the newest fifth of the labelled rows begins. Raises: TrainingDataError if no time parts them.

    known_by: leave out labels that became known later; until: and rows from that time on.
    """
    read = [part for part in _times(snapshot, label, entities, known_by, until) if len(part)]
    if not read:
        raise TrainingDataError(f"{snapshot}: no row has a {label}; nothing can be learnt")
    times: Any = np.sort(np.concatenate(read))
    split = times[int(len(times) * (1 - HELD_OUT))]
    if split == times[0]:
        later = times[times > split]
        if not len(later):
            raise TrainingDataError(
                f"{snapshot}: every row has the time {_at(split)}: none can be held out to judge by; give rows of other times"
            )
        split = later[0]
    return Cut(_at(times[0]), _at(split), _at(times[-1]) + _MICROSECOND)


def newest_span(
    snapshot: TableSnapshot,
    label: str,
    span: timedelta,
    *,
    entities: Table,
    known_by: datetime,
    delay: timedelta,
) -> Cut:
    """Cut so long before the newest labelled row, whenever that was; at the newest fifth where no row is older than the span.

    known_by: leave out labels that became known later; delay: and rows that were no older then.
    Raises: TrainingDataError if no row is left, or no time parts them.
    """
    first, last, until = None, None, known_by - delay
    for part in _times(snapshot, label, entities, known_by, until):
        if len(part):
            low, high = int(part.min()), int(part.max())
            first, last = min(low, low if first is None else first), max(high, high if last is None else last)
    if first is None or last is None:
        raise TrainingDataError(
            f"{snapshot} has no rows with {label!r} known by {known_by} and {EVENT_TIMESTAMP} < {until}, which is "
            "label_delay before"
        )
    end = _at(last) + _MICROSECOND
    if end - span > _at(first):
        return Cut(_at(first), end - span, end)
    return newest_fifth(snapshot, label, entities=entities, known_by=known_by, until=until)


def _times(
    snapshot: TableSnapshot, label: str, entities: Table, known_by: datetime | None, until: datetime | None
) -> Iterator[Any]:
    """Yield the times of labelled rows in microseconds, some at a time."""
    for batch in entities.batches(version=snapshot.version, columns=[EVENT_TIMESTAMP, label, LABEL_KNOWN_AT]):
        if label not in batch.column_names:
            raise TrainingDataError(f"{snapshot} has no column {label!r}; it has {batch.column_names}")
        chosen = pc.is_valid(pc.field(label)) & pc.is_valid(pc.field(EVENT_TIMESTAMP))
        if until is not None:
            chosen &= pc.field(EVENT_TIMESTAMP) < pa.scalar(until, _UTC)
        if known_by is not None and LABEL_KNOWN_AT in batch.column_names:
            chosen &= pc.field(LABEL_KNOWN_AT) <= pa.scalar(known_by, _UTC)
        yield batch.filter(chosen)[EVENT_TIMESTAMP].cast(_UTC).cast(pa.int64()).to_numpy()


def _at(microseconds: Any) -> datetime:
    return from_epoch_us(int(microseconds))
