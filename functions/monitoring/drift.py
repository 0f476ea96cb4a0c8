"""Drift of what is asked of a model, against the training set it learnt from, on sketches that add.

A column is called drifted when its test survives the correction over all columns *and* its effect exceeds a floor, in k of
the last n windows. Requests of one day are alike (they share weather, a promotion, an outage), so a window of some days is
worth far fewer rows than it has. How alike they are is measured once, on the days of the training set; counts of both sides
are scaled to what they are worth before they are tested, which is what keeps the test quiet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from functions.stats import k_of_n
from functions.stats.drift import ColumnDrift, DriftReport, compare
from functions.stats.moments import Floats
from functions.stats.sketch import ColumnSketch, TableSketch


class DriftMonitor(BaseModel):
    """How drift is watched.

    columns: those that matter; empty for all of the version's signature.
    cohort, window: sketches are kept for each cohort, and the last `window` cohorts are compared.
    bins: quantile bins of a numeric column. reference_rows: rows sampled of a larger training set.
    alpha: false-discovery level over columns. min_effect: differences of shares below are never drift.
    min_rows: rows, counted by what they are worth, below which a column is insufficient.
    k, n: windows that must agree before an alarm. lookback: how far back a monitor without a state begins.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["drift"] = "drift"
    columns: tuple[str, ...] = ()
    cohort: timedelta = timedelta(days=1)
    delay: timedelta = timedelta(hours=1)
    window: int = Field(default=7, ge=1)
    bins: int = Field(default=20, ge=2)
    reference_rows: int = Field(default=200_000, ge=100)
    alpha: float = Field(default=0.01, gt=0, lt=0.5)
    min_effect: float = Field(default=0.15, ge=0, lt=1)
    min_null_change: float = Field(default=0.1, ge=0, lt=1)
    min_rows: int = Field(default=30, ge=2)
    k: int = Field(default=3, ge=1)
    n: int = Field(default=4, ge=1)
    lookback: timedelta = timedelta(days=10)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.k > self.n:
            raise ValueError(f"k of n windows needs k <= n, got k={self.k}, n={self.n}")
        if self.cohort <= timedelta(0):
            raise ValueError(f"cohort must be longer than zero, got {self.cohort}")
        return self


@dataclass(frozen=True, slots=True)
class Reference:
    """What a training set looked like. sketch: of its rows; alike: for each column, how alike rows of a day are (0 to 1).

    rows_a_cohort: of the sketched rows, on average.
    """

    sketch: TableSketch
    alike: Mapping[str, float]
    rows_a_cohort: float

    @classmethod
    def of(cls, sketch: TableSketch, cohorts: Sequence[TableSketch]) -> Self:
        """From the sketch of all rows and those of the training set's cohorts; without cohorts rows are independent."""
        alike = {name: likeness([one.columns[name] for one in cohorts]) for name in sketch.columns}
        rows = max((column.rows for column in sketch.columns.values()), default=0)
        return cls(sketch, alike, rows / len(cohorts) if cohorts else 1.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` reads them back."""
        return {
            "sketch": self.sketch.to_dict(),
            "alike": dict(self.alike),
            "rows_a_cohort": self.rows_a_cohort,
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote."""
        return cls(TableSketch.from_dict(stored["sketch"]), stored["alike"], stored["rows_a_cohort"])


class DriftState(BaseModel):
    """What the monitor remembers. sketches: of the last cohorts, oldest first, as plain values.

    flagged: for each column, whether the last windows had drifted. alarmed: columns whose drift has been told; they are
    told again only after they were well.
    """

    model_config = ConfigDict(frozen=True)

    version: int
    next_cohort: int
    sketches: tuple[dict[str, Any], ...] = ()
    flagged: dict[str, tuple[bool, ...]] = {}
    alarmed: tuple[str, ...] = ()


class DriftVerdict(BaseModel):
    """What one window shows.

    rows: in the window; worth: for each column, what one of them is worth, up to 1. columns: empty until the window is full.
    confirmed: columns drifted in k of n windows. news: those not told yet. recovered: told before, well now.
    """

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    cohort: int
    rows: int
    columns: tuple[ColumnDrift, ...] = ()
    worth: dict[str, float] = {}
    confirmed: tuple[str, ...] = ()
    news: tuple[str, ...] = ()
    recovered: tuple[str, ...] = ()


def judge(
    state: DriftState, reference: Reference, cohort: TableSketch, index: int, monitor: DriftMonitor
) -> tuple[DriftState, DriftVerdict]:
    """The state after one more cohort, and what the window that ends with it shows.

    A cohort without rows counts for the window's length and for nothing else.
    """
    kept = (*state.sketches, cohort.to_dict())[-monitor.window :]
    state = state.model_copy(update={"next_cohort": index + 1, "sketches": kept})
    cohorts = [TableSketch.from_dict(one) for one in kept]
    rows = sum(_rows(one) for one in cohorts)
    if len(kept) < monitor.window or rows == 0:
        return state, DriftVerdict(cohort=index, rows=rows)
    report, worth = compare_window(reference, cohorts, monitor)
    return _conclude(
        state, DriftVerdict(cohort=index, rows=rows, columns=report.columns, worth=worth), monitor
    )


def _conclude(
    state: DriftState, seen: DriftVerdict, monitor: DriftMonitor
) -> tuple[DriftState, DriftVerdict]:
    """What k of the last n windows confirm, and what of that is news."""
    flagged = {one.column: _flags(state.flagged.get(one.column, ()), one, monitor.n) for one in seen.columns}
    confirmed = {name for name, flags in flagged.items() if k_of_n(flags, k=monitor.k, n=monitor.n)}
    well = {name for name, flags in flagged.items() if len(flags) >= monitor.n and not any(flags)}
    told = set(state.alarmed)
    verdict = seen.model_copy(
        update={
            "confirmed": tuple(sorted(confirmed)),
            "news": tuple(sorted(confirmed - told)),
            "recovered": tuple(sorted(told & well)),
        }
    )
    after = state.model_copy(update={"flagged": flagged, "alarmed": tuple(sorted((told - well) | confirmed))})
    return after, verdict


def compare_window(
    reference: Reference, cohorts: Sequence[TableSketch], monitor: DriftMonitor
) -> tuple[DriftReport, dict[str, float]]:
    """Compare the sum of `cohorts` with the reference, each side's counts scaled to what they are worth."""
    window = cohorts[0]
    for one in cohorts[1:]:
        window = window + one
    filled = [count for count in map(_rows, cohorts) if count]
    here = _worth(reference.alike, float(np.mean(filled)))
    report = compare(
        _scaled(reference.sketch, _worth(reference.alike, reference.rows_a_cohort)),
        _scaled(window, here),
        alpha=monitor.alpha,
        min_effect=monitor.min_effect,
        min_null_change=monitor.min_null_change,
        min_rows=monitor.min_rows,
    )
    return report, here


def likeness(cohorts: Sequence[ColumnSketch]) -> float:
    """How alike the rows of a cohort are: the intraclass correlation of a column's cells, 0 to 1.

    Taken from the variation between cohorts over what independent rows would show; of an ordered column the larger of
    that of its cells and of their cumulative shares, in which a shift of a whole day shows.
    Source: Rao and Scott, The analysis of categorical data from complex sample surveys, 1981.
    """
    counts = np.array([[*one.counts, one.nulls] for one in cohorts], dtype=np.float64)
    counts = counts[counts.sum(axis=1) > 0] if len(counts) else counts
    if len(counts) < 2:  # noqa: PLR2004 — variation needs two
        return 0.0
    size = float(counts.sum(axis=1).mean())
    ordered = cohorts[0].kind == "numeric"
    effect = max(
        _design_effect(counts), _design_effect(np.cumsum(counts, axis=1), of=counts) if ordered else 0.0
    )
    return float(np.clip((effect - 1) / max(size - 1, 1.0), 0.0, 1.0))


def _design_effect(hits: Floats, of: Floats | None = None) -> float:
    """Variance of the cells' shares between cohorts, over that of independent rows. hits: (cohorts, cells)."""
    sizes = (hits if of is None else of).sum(axis=1, keepdims=True)
    share = hits.sum(axis=0) / sizes.sum()
    between = (sizes * (hits / sizes - share) ** 2).sum() / (len(hits) - 1)
    within = float((share * (1 - share)).sum())
    return float(between / within) if within > 0 else 1.0


def _worth(alike: Mapping[str, float], rows: float) -> dict[str, float]:
    """What one of `rows` rows of a cohort is worth, by column."""
    return {name: 1.0 / (1.0 + max(rows - 1.0, 0.0) * rho) for name, rho in alike.items()}


def _rows(sketch: TableSketch) -> int:
    return max((column.rows for column in sketch.columns.values()), default=0)


def _scaled(sketch: TableSketch, worth: Mapping[str, float]) -> TableSketch:
    """Counts times what a row is worth, rounded so that a cell with a row keeps one."""
    return TableSketch({name: _scale(column, worth[name]) for name, column in sketch.columns.items()})


def _scale(column: ColumnSketch, worth: float) -> ColumnSketch:
    if worth >= 1.0:
        return column
    counts = tuple(_rounded(count, worth) for count in column.counts)
    return replace(column, counts=counts, nulls=_rounded(column.nulls, worth))


def _rounded(count: int, worth: float) -> int:
    return 0 if count == 0 else max(1, math.floor(count * worth + 0.5))


def _flags(before: tuple[bool, ...], column: ColumnDrift, n: int) -> tuple[bool, ...]:
    """The last n windows of a column; one with too little to judge says nothing."""
    if column.status == "insufficient":
        return before
    return (*before, column.status in ("drifted", "vanished"))[-n:]
