"""Data-quality monitor: finds broken feeds and opens incidents, which never lead to a retrain.

Drift asks whether the world changed; this asks whether the feed broke. Each cohort is compared with the extremes of the healthy
cohorts before it, at first those of the training set, so that a season stays quiet and a break shows in the first cohort:
- schema: requests whose vectors have another length than the version's signature. duplicates: prediction ids seen twice.
- nulls: values that went missing. ranges: values beyond what was declared, or infinite.
- constant: a column that always varied stands still. unit: its quartiles jump to where a known conversion puts them.
- volume: far fewer or more rows than in any healthy cohort. freshness: a view's newest row is too old.

A change of unit is looked for only in columns whose unit is declared, and only from that unit: weather halves overnight, and a
delay grows tenfold in a storm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, model_validator

from toque.functions.monitoring.results import CohortState
from toque.functions.monitoring.settings import RequestMonitor
from toque.functions.stats.moments import Floats

QUARTILES = (0.25, 0.5, 0.75)

Range = tuple[float | None, float | None]
Fault = Literal["schema", "nulls", "ranges", "constant", "unit", "freshness", "volume", "duplicates"]
JUMP = 2.6
"""Spreads between cohorts from which a move is a jump."""
_NEAR_COHORTS = 14  # last cohorts, over which a season hardly moves
_MIN_RATIO = 2.0  # a conversion must bring the quartiles so many times nearer than the old unit does
_MAD_TO_SD = 1.4826


class QualityMonitor(RequestMonitor):
    """Settings of the data-quality monitor, which holds each cohort against the healthy ones before it."""

    kind: Literal["quality"] = Field(default="quality", description="Kind of the monitor.")
    columns: tuple[str, ...] = Field(
        default=(), description="Features that are watched; all of the version's signature if empty."
    )
    ranges: dict[str, Range] = Field(
        default={},
        description=(
            "Least and most value by column, null where unbounded; in place of "
            "what its view expects (`InRange`)."
        ),
    )
    units: dict[str, str] = Field(
        default={},
        description="Unit by column, such as `C` or `hPa`; the column is then watched for a change to another unit.",
    )
    max_age: dict[str, timedelta] = Field(
        default={},
        description=(
            "Limit on the age of a view's newest row, by view; else what the "
            "view expects (`Freshness`), or its ttl."
        ),
    )
    history: int = Field(
        le=100_000, default=28, ge=2, description="Number of healthy cohorts that are remembered."
    )
    min_history: int = Field(
        le=100_000,
        default=5,
        ge=2,
        description="Healthy cohorts below which constant columns, changed units and the volume are not judged.",
    )
    min_rows: int = Field(
        default=30, ge=2, description="Rows below which a column or a cohort is not judged."
    )
    max_null_rise: float = Field(
        default=0.2,
        gt=0,
        lt=1,
        # A column that is missing now and then is missing more at times.
        description=(
            "Allowed rise of the share of nulls over a healthy cohort's largest; twice that largest, where it is more."
        ),
    )
    max_outside: float = Field(
        default=0.01,
        ge=0,
        lt=1,
        description="Share of a column's values that may be beyond its range or infinite.",
    )
    max_misfit: float = Field(
        default=0.01,
        ge=0,
        lt=1,
        description="Share of rows whose vectors may have another length than the version's signature.",
    )
    max_duplicates: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="Share of rows that may repeat the prediction id of an earlier one.",
    )
    min_volume: float = Field(
        default=0.2,
        ge=0,
        lt=1,
        description="Fewest rows of a cohort, as a multiple of the fewest of a healthy one.",
    )
    max_volume: float = Field(
        default=5.0, gt=1, description="Most rows of a cohort, as a multiple of the most of a healthy one."
    )
    recover: int = Field(
        le=100_000, default=1, ge=1, description="Healthy cohorts after which an incident is over."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name, (least, most) in self.ranges.items():
            if least is not None and most is not None and least > most:
                raise ValueError(f"ranges[{name!r}]: least {least} is above most {most}; swap them")
        unknown = sorted(set(self.units.values()) - UNITS)
        if unknown:
            raise ValueError(f"units: {unknown} are not known here; known are {sorted(UNITS)}")
        return self


class ViewAge(BaseModel):
    """Age of the newest row of a view, its limit, and the columns of the model that come from the view."""

    model_config = ConfigDict(frozen=True)

    view: str
    columns: tuple[str, ...]
    age: timedelta | None
    most: timedelta


class ColumnProfile(BaseModel):
    """Profile of one column of one cohort.

    index: of the cohort. nulls: missing values, NaN included. outside: values beyond the declared range, infinite ones
    always. top_share: share of the most frequent value among those present, 0 where there is none.
    quartiles: of the finite values of a numeric column; empty for others.
    """

    model_config = ConfigDict(frozen=True)

    index: int
    rows: int
    nulls: int
    outside: int = 0
    top_share: float = 0.0
    quartiles: tuple[float, ...] = ()

    @classmethod
    def of_numbers(cls, index: int, values: npt.NDArray[Any], allowed: Range = (None, None)) -> Self:
        """Profile numbers (rows,), NaN where missing. allowed: least and most value, None where unbounded."""
        present = values[~np.isnan(values)]
        finite = present[np.isfinite(present)]
        least, most = allowed
        beyond = np.zeros(len(finite), dtype=bool)
        if least is not None:
            beyond |= finite < least
        if most is not None:
            beyond |= finite > most
        return cls(
            index=index,
            rows=len(values),
            nulls=len(values) - len(present),
            outside=int(beyond.sum()) + len(present) - len(finite),
            top_share=_top_share(np.unique(present, return_counts=True)[1]),
            quartiles=tuple(np.quantile(finite.astype(np.float64), QUARTILES).tolist())
            if len(finite)
            else (),
        )

    @classmethod
    def of_words(cls, index: int, words: pa.ChunkedArray | pa.Array) -> Self:
        """Profile strings (rows,), null where missing."""
        counts = pc.value_counts(words.drop_null()).field("counts").to_numpy()
        return cls(index=index, rows=len(words), nulls=words.null_count, top_share=_top_share(counts))

    @property
    def present(self) -> int:
        """Number of values that are there."""
        return self.rows - self.nulls

    @property
    def null_share(self) -> float:
        """Share of missing values; 0 of no rows."""
        return self.nulls / self.rows if self.rows else 0.0


def _top_share(counts: npt.NDArray[Any]) -> float:
    return float(counts.max() / counts.sum()) if len(counts) else 0.0


class CohortSummary(BaseModel):
    """Summary of one cohort, which is what is judged.

    rows: answered, without shadows. misfit: the champion's with vectors of another length than its signature.
    duplicates: rows whose id came before. columns: their profiles, those without a row included.
    views: only of the newest cohort.
    """

    model_config = ConfigDict(frozen=True)

    index: int
    rows: int
    misfit: int = 0
    duplicates: int = 0
    columns: dict[str, ColumnProfile] = {}
    views: tuple[ViewAge, ...] = ()


class Incident(BaseModel):
    """Fault that was found in cohorts. about: the column or view, or "rows". columns: of the model that it spoils.

    since, seen: first and last cohort that showed it. value, limit: the figure, and the one that it broke.
    """

    model_config = ConfigDict(frozen=True)

    fault: Fault
    about: str
    columns: tuple[str, ...] = ()
    text: str
    value: float
    limit: float
    since: int
    seen: int

    @property
    def key(self) -> str:
        """Key that identifies an incident among the open ones."""
        return f"{self.fault}:{self.about}"


class Span(BaseModel):
    """Cohorts in which a column was spoiled, last one included, None while it still is. told: name of the alarm."""

    model_config = ConfigDict(frozen=True)

    column: str
    incident: str
    told: str
    first: int
    last: int | None = None


class QualityState(CohortState):
    """State of the quality monitor. history: healthy profiles of each column, oldest first; volumes: rows of healthy cohorts.

    open: incidents under way, by key. spans: of the last ones, over included.
    """

    model_config = ConfigDict(frozen=True)

    version: int
    history: dict[str, tuple[ColumnProfile, ...]] = Field(default={})
    volumes: tuple[int, ...] = ()
    open: dict[str, Incident] = Field(default={})
    spans: tuple[Span, ...] = ()

    def on_grid(self, moved: Callable[[int], int]) -> Self:
        """Keep the incidents, so that they end; what healthy cohorts look like is learnt anew."""
        incidents = {
            key: one.model_copy(update={"since": moved(one.since), "seen": moved(one.seen)})
            for key, one in self.open.items()
        }
        spans = tuple(
            one.model_copy(
                update={"first": moved(one.first), "last": None if one.last is None else moved(one.last)}
            )
            for one in self.spans
        )
        return type(self)(
            version=self.version, next_cohort=moved(self.next_cohort), open=incidents, spans=spans
        )


class QualityVerdict(BaseModel):
    """Verdict of the quality monitor on one cohort. faults: found in it.

    changed: kinds with an incident that is new or over, and their open incidents.
    """

    model_config = ConfigDict(frozen=True)

    cohort: int
    rows: int
    faults: tuple[Incident, ...] = ()
    changed: dict[Fault, tuple[Incident, ...]] = {}


@dataclass(frozen=True, slots=True)
class Conversion:
    """Change of unit: new value = slope · old value + offset."""

    source: str
    target: str
    slope: float
    offset: float = 0.0


@dataclass(frozen=True, slots=True)
class Jump:
    """Distance that the quartiles moved, in spreads between cohorts, and the change of unit that explains it, if any."""

    spreads: float
    conversion: Conversion | None

    @property
    def is_jump(self) -> bool:
        """Whether neighbouring cohorts seldom lie so far apart."""
        return self.spreads > JUMP


_FORWARD = (
    Conversion("F", "C", 5 / 9, -160 / 9),
    Conversion("F", "K", 5 / 9, 273.15 - 160 / 9),
    Conversion("C", "K", 1.0, 273.15),
    Conversion("in", "mm", 25.4),
    Conversion("inHg", "hPa", 33.8639),
    Conversion("min", "s", 60.0),
    Conversion("h", "min", 60.0),
    Conversion("share", "percent", 100.0),
    Conversion("unit", "thousandth", 1_000.0),
)
CONVERSIONS: tuple[Conversion, ...] = (
    *_FORWARD,
    *(Conversion(one.target, one.source, 1 / one.slope, -one.offset / one.slope) for one in _FORWARD),
)
"""The changes of unit that are looked for, there and back. Miles to kilometres is not: a windy day does as much."""

UNITS = frozenset(one.source for one in CONVERSIONS)


def jump_of(past: Sequence[Sequence[float]], now: Sequence[float], *, unit: str) -> Jump | None:
    """Measure how far the quartiles of a column jumped; None if it does not vary, so that its unit cannot be known.

    past: quartiles of the last cohorts, (cohorts, 3), oldest first, at least two; now: (3,). unit: one of `UNITS`.
    """
    before, here = np.array(past[-_NEAR_COHORTS:], dtype=np.float64), np.array(now, dtype=np.float64)
    middle: Floats = np.median(before, axis=0)
    width = float(middle[-1] - middle[0])
    if width <= 0:
        return None
    # The largest spread of the three quartiles counts for all: a quartile that happened to vary little must not make jumps.
    spread = max(float(np.median(np.abs(before - middle), axis=0).max()) * _MAD_TO_SD, 0.02 * width)
    moved = float(np.abs(here - middle).max()) / spread
    return Jump(moved, _explaining(middle, here, spread, unit) if moved > JUMP else None)


def _explaining(middle: Floats, here: Floats, spread: float, unit: str) -> Conversion | None:
    """Find the conversion that brings the quartiles nearest, if far nearer than without it."""
    looked_for = [one for one in CONVERSIONS if one.source == unit]
    distances = [
        float(np.abs(here - (one.slope * middle + one.offset)).max()) / (spread * one.slope)
        for one in looked_for
    ]
    moved = float(np.abs(here - middle).max()) / spread
    best = int(np.argmin(distances))
    return looked_for[best] if distances[best] <= min(JUMP, moved / _MIN_RATIO) else None
