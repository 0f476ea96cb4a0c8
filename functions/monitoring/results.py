"""Findings of monitors, as rows of the table `monitoring/{model}`; each is recorded once, however often a monitor runs.

Cohorts of predictions are equal windows of prediction time, numbered from the epoch.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import AwareDatetime, BaseModel, ConfigDict

from toque.registry import ObjectStore, Table
from toque.registry.times import EPOCH, epoch_us

_TIME = pa.timestamp("us", tz="UTC")
RESULTS = pa.schema(
    [
        pa.field("monitor", pa.string(), nullable=False),
        pa.field("subject", pa.string(), nullable=False),
        pa.field("version", pa.int64(), nullable=False),
        pa.field("start", _TIME, nullable=False),
        pa.field("end", _TIME, nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("verdict", pa.string(), nullable=False),
        pa.field("value", pa.float64()),
        pa.field("reference", pa.float64()),
        pa.field("statistic", pa.float64()),
        pa.field("threshold", pa.float64()),
        pa.field("text", pa.string()),
        pa.field("judged_at", _TIME, nullable=False),
    ]
)
"""One row a cohort and subject (a measure of loss, or a column). value and reference: mean loss and its baseline, or the
effect and its floor; statistic and threshold: CUSUM level and limit, or corrected p-value and level."""
_WRONG = frozenset({"alarm", "drifted", "vanished", "incident", "contradicted"})
COHORT_S = "cohort_s"
"""Key beside a state that says how long the cohorts are which it numbers."""


def results_table(model: str) -> str:
    """Return the name of a model's table of findings."""
    return f"monitoring/{model}"


class RunningFigures(BaseModel):
    """Figures of the requests since midnight UTC that are in the log, which no monitor has judged yet.

    answers: of all arms but shadows; unanswered: among the requests; labels: that came for them; logged_until: the newest
    request in the log, None before the first of the day.
    """

    model_config = ConfigDict(frozen=True)

    since: AwareDatetime
    answers: int = 0
    unanswered: int = 0
    labels: int = 0
    logged_until: AwareDatetime | None = None


class MonitorStatus(BaseModel):
    """Status of one monitor at its newest cohort or window.

    rows: judged there; subjects: measures or columns; wrong: findings on the subjects with a problem; next_start, next_end:
    of the cohort that is judged next, once it has ended and its delay is over.
    """

    model_config = ConfigDict(frozen=True)

    monitor: str
    judged_until: AwareDatetime | None = None
    judged_at: AwareDatetime | None = None
    rows: int
    subjects: int
    wrong: tuple[str, ...] = ()
    next_start: AwareDatetime | None = None
    next_end: AwareDatetime | None = None


def last_judged(store: ObjectStore, model: str) -> list[MonitorStatus]:
    """Read the newest findings of each monitor of a model, and which cohort it waits for; empty before the first run."""
    waiting = _waiting(store, model)
    found = {status.monitor: status for status in _judged(store, model)}
    return [
        found.get(name, MonitorStatus(monitor=name, rows=0, subjects=0)).model_copy(
            update=dict(zip(("next_start", "next_end"), waiting.get(name, (None, None)), strict=True))
        )
        for name in sorted({*found, *waiting})
    ]


def _waiting(store: ObjectStore, model: str) -> dict[str, tuple[datetime, datetime]]:
    """Start and end of the cohort that each monitor judges next, as its state says."""
    found = {}
    for key in store.list(f"monitoring/{model}/state/"):
        state = json.loads(store.get(key))
        if COHORT_S in state:
            grid = Cohorts(timedelta(seconds=state[COHORT_S]))
            first = int(state["next_cohort"])
            found[key.rpartition("/")[2].removesuffix(".json")] = grid.start(first), grid.start(first + 1)
    return found


def _judged(store: ObjectStore, model: str) -> list[MonitorStatus]:
    table = Table(store, results_table(model))
    if not table.exists():
        return []
    newest: dict[str, list[dict[str, Any]]] = {}
    for row in table.read(
        columns=["monitor", "subject", "end", "rows", "verdict", "text", "judged_at"]
    ).to_pylist():
        kept = newest.setdefault(row["monitor"], [row])
        if row["end"] > kept[0]["end"]:
            newest[row["monitor"]] = [row]
        elif row["end"] == kept[0]["end"] and row is not kept[0]:
            kept.append(row)
    return [_status(monitor, rows) for monitor, rows in sorted(newest.items())]


def _status(monitor: str, rows: Sequence[dict[str, Any]]) -> MonitorStatus:
    return MonitorStatus(
        monitor=monitor,
        judged_until=rows[0]["end"],
        judged_at=max(row["judged_at"] for row in rows),
        rows=max(row["rows"] for row in rows),
        subjects=len(rows),
        wrong=tuple(
            f"{row['subject']}: {row['text'] or row['verdict']}" for row in rows if row["verdict"] in _WRONG
        ),
    )


def record(
    store: ObjectStore, model: str, monitor: str, rows: Sequence[dict[str, Any]], *, upto: int
) -> None:
    """Append `rows` unless `monitor` has already recorded its cohorts below `upto`."""
    if rows:
        table = Table(store, results_table(model))
        table.append(
            pa.Table.from_pylist(list(rows), schema=RESULTS), transactions={f"monitor/{monitor}": upto}
        )


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

    def slices(self, at: npt.NDArray[np.int64], first: int, end: int) -> Iterator[tuple[int, slice]]:
        """Find the rows of each cohort from `first` to before `end`, empty ones included. at: (rows,), sorted, in microseconds."""
        bounds = np.searchsorted(at, [epoch_us(self.start(index)) for index in range(first, end + 1)])
        return zip(range(first, end), map(slice, bounds, bounds[1:]), strict=True)

    def cut(self, rows: pa.Table, first: int, end: int) -> Iterator[tuple[int, pa.Table]]:
        """Cut rows in order of `predicted_at` into the cohorts from `first` to before `end`, empty ones included."""
        at = rows["predicted_at"].cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
        for index, own in self.slices(at, first, end):
            yield index, rows.slice(own.start, own.stop - own.start)

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
