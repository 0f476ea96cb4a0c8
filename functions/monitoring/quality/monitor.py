"""Data-quality monitor: finds broken feeds and opens incidents, which never lead to a retrain.

Drift asks whether the world changed; this asks whether the feed broke. Each cohort is compared with the extremes of the healthy
cohorts before it, at first those of the training set, so that a season stays quiet and a break shows in the first cohort:
- schema: requests whose vectors have another length than the version's signature. duplicates: prediction ids seen twice.
- nulls: values that went missing. ranges: values beyond what was declared, or infinite.
- constant: a column that always varied stands still. unit: it jumped to where another unit would put it.
- volume: far fewer or more rows than in any healthy cohort. freshness: a view's newest row is too old.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from toque.functions.monitoring.cohorts import CohortState
from toque.functions.monitoring.quality.profile import ColumnProfile, Range
from toque.functions.monitoring.quality.units import UNITS

Fault = Literal["schema", "nulls", "ranges", "constant", "unit", "freshness", "volume", "duplicates"]


class QualityMonitor(BaseModel):
    """Settings of the data-quality monitor.

    columns: features that are watched; empty for all of the version's signature. ranges: least and most value of a column; those
        that its view expects (`InRange`) need not be repeated. max_age: of a view's newest row, by view; else what the
        view expects (`Freshness`), or its ttl.
    units: unit of a column, one of `toque.functions.monitoring.quality.units.UNITS`: then it is watched for a change to another.
    cohort, delay: rows are judged by windows of prediction time, so long after their end.
    history: healthy cohorts that are remembered; min_history: below it constant, unit and volume are not judged.
    min_rows: a column or cohort with fewer rows is not judged.
    max_null_rise: over the largest share of nulls of a healthy cohort; twice that share where it is more, since a column
        that is missing now and then is missing more at times. max_outside: share beyond the range.
    max_misfit, max_duplicates: shares. min_volume, max_volume: rows over the fewest and the most of a healthy cohort.
    recover: healthy cohorts after which an incident is over. lookback: how far back a monitor without a state begins.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["quality"] = "quality"
    columns: tuple[str, ...] = ()
    ranges: dict[str, Range] = {}
    units: dict[str, str] = {}
    max_age: dict[str, timedelta] = {}
    cohort: timedelta = timedelta(days=1)
    delay: timedelta = timedelta(hours=1)
    history: int = Field(default=28, ge=2)
    min_history: int = Field(default=5, ge=2)
    min_rows: int = Field(default=30, ge=2)
    max_null_rise: float = Field(default=0.2, gt=0, lt=1)
    max_outside: float = Field(default=0.01, ge=0, lt=1)
    max_misfit: float = Field(default=0.01, ge=0, lt=1)
    max_duplicates: float = Field(default=0.05, ge=0, lt=1)
    min_volume: float = Field(default=0.2, ge=0, lt=1)
    max_volume: float = Field(default=5.0, gt=1)
    recover: int = Field(default=1, ge=1)
    lookback: timedelta = timedelta(days=10)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.cohort <= timedelta(0):
            raise ValueError(f"cohort must be longer than zero, got {self.cohort}")
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
