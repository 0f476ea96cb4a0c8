"""Drift monitor: compares requests with the training set, or with earlier requests, on sketches that add up.

A column is called drifted when its test survives the correction over all columns *and* its effect exceeds a floor, in k of
the last n separate windows. An alarm is raised where it also survives at the level that the workspace's budget of false alarms
has for this window (see `budget`). Counts of both sides are scaled to what they are worth before they are tested (see `reference`), which is
what keeps the test quiet. Findings and alarms are made alike for features and for answers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import timedelta
from types import MappingProxyType
from typing import Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from toque.functions.monitoring.budget import Decide
from toque.functions.monitoring.drift.reference import NumberedSketch, Reference, rows_of, scaled
from toque.functions.monitoring.results import CohortState
from toque.functions.monitoring.settings import ColumnMonitor
from toque.functions.monitoring.watch import Course
from toque.functions.stats import k_of_n
from toque.functions.stats.drift import ColumnDrift, DriftReport, compare, corrected
from toque.functions.stats.sketch import TableSketch

Season = Literal["none", "day", "week", "year", "auto"]
_SHORTEST_MONTH = timedelta(days=28)
_LENGTHS: dict[str, timedelta] = {"day": timedelta(days=1), "week": timedelta(days=7)}
_EXPLAINED = " spoiled by an incident"
_NO_CAUSES: Mapping[str, str] = MappingProxyType({})


class DriftMonitor(ColumnMonitor):
    """Settings of the drift monitor.

    Sketches are kept for each cohort, and the last `window` cohorts are compared; with a season it may be one cohort.
    A season of a day or a week needs cohorts that divide it, one of a year a training set of a year.
    """

    kind: Literal["drift"] = Field(default="drift", description="Kind of the monitor.")
    columns: tuple[str, ...] = Field(
        default=(),
        description="Features that are watched, a tensor by figures of it; all of the version's signature if empty.",
    )
    reference_rows: int = Field(
        le=100_000_000,
        default=200_000,
        ge=100,
        description="Rows that are sampled of a training set that has more.",
    )
    min_rows: int = Field(
        default=30,
        ge=2,
        description="Rows, counted by what they are worth, below which a column is insufficient and not judged.",
    )
    reference: Literal["training", "rolling"] = Field(
        default="training",
        description="What windows are compared with: the training set, or the `rolling` cohorts before the window.",
    )
    rolling: int = Field(
        le=100_000,
        default=28,
        ge=2,
        description=(
            "Cohorts before the window that make a rolling reference, which "
            "forgets a drift once it is that old."
        ),
    )
    season: Season = Field(
        default="none",
        description=(
            "Like is compared with like: `day` the same hours, `week` also weekdays, `year` months; "
            "`auto` finds day or week in the training set."
        ),
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.season in _LENGTHS and not self.periods:
            raise ValueError(
                f"a season of a {self.season} needs cohorts that divide it, got {self.cohort}: shorten cohort"
            )
        if self.season == "year" and self.cohort > _SHORTEST_MONTH:
            raise ValueError(
                f"a season of a year needs cohorts within a month, got {self.cohort}: shorten cohort"
            )
        return self

    @property
    def kept(self) -> int:
        """Number of cohorts whose sketches are kept: those of a window, and of a rolling reference."""
        return self.window + (self.rolling if self.reference == "rolling" else 0)

    @property
    def periods(self) -> tuple[int, ...]:
        """Lengths in cohorts of the possible seasons, shortest first; of a declared season its own alone."""
        wanted = [_LENGTHS[self.season]] if self.season in _LENGTHS else list(_LENGTHS.values())
        if self.season in ("none", "year"):
            return ()
        return tuple(one // self.cohort for one in wanted if not one % self.cohort and one > self.cohort)


class DriftState(CohortState):
    """State of the drift monitor. sketches: of the last cohorts, oldest first, as JSON values.

    flagged: for each column, whether the last windows had drifted. alarmed: columns with an alarm; another is raised only
    after they were well. excused: columns with an alarm that a data-quality incident explains; another is raised should they
    still drift once no window holds a spoiled cohort.
    """

    model_config = ConfigDict(frozen=True)

    version: int
    sketches: tuple[dict[str, Any], ...] = ()
    flagged: dict[str, tuple[bool, ...]] = Field(default={})
    alarmed: tuple[str, ...] = ()
    excused: tuple[str, ...] = ()

    def on_grid(self, moved: Callable[[int], int]) -> Self:
        """Keep the alarms, so that they recover; windows are filled anew."""
        kept = {"version": self.version, "alarmed": self.alarmed, "excused": self.excused}
        return type(self)(next_cohort=moved(self.next_cohort), **kept)


class DriftVerdict(BaseModel):
    """Verdict of the drift monitor on one window.

    rows: in the window; worth: for each column, what one of them is worth, up to 1. columns: empty until the window is full.
    confirmed: columns drifted in k of n windows. news: those without an alarm yet that the budget lets raise one. recovered: with an alarm, well now.
    excused, forgiven: as news and recovered, of columns whose drift a data-quality incident explains.
    """

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    cohort: int
    rows: int
    columns: tuple[ColumnDrift, ...] = ()
    worth: dict[str, float] = {}
    confirmed: tuple[str, ...] = ()
    news: tuple[str, ...] = ()
    recovered: tuple[str, ...] = ()
    excused: tuple[str, ...] = ()
    forgiven: tuple[str, ...] = ()


def judge(
    state: DriftState,
    reference: Reference,
    cohort: TableSketch,
    index: int,
    monitor: DriftMonitor,
    *,
    spoiled: Collection[str] = (),
    decide: Decide | None = None,
) -> tuple[DriftState, DriftVerdict]:
    """Judge the window that ends with one more cohort: return the state after it and the verdict.

    A cohort without rows counts for the window's length and for nothing else.
    spoiled: columns of which a data-quality incident spoiled cohorts in one of the last n separate windows.
    decide: asked once for each window with a column to test; by `monitor.alpha` alone unless given.
    """
    kept = (*state.sketches, cohort.to_dict())[-monitor.kept :]
    state = state.model_copy(update={"next_cohort": index + 1, "sketches": kept})
    first = index + 1 - len(kept)
    numbered = [(first + place, TableSketch.from_dict(one)) for place, one in enumerate(kept)]
    before, window = numbered[: -monitor.window], numbered[-monitor.window :]
    rows = sum(rows_of(one) for _, one in window)
    if len(kept) < monitor.kept or rows == 0:
        return state, DriftVerdict(cohort=index, rows=rows)
    held_against = _rolled(reference, before) if monitor.reference == "rolling" else reference
    if held_against is None:
        return state, DriftVerdict(cohort=index, rows=rows)
    report, worth = compare_window(held_against, window, monitor)
    seen = DriftVerdict(cohort=index, rows=rows, columns=report.columns, worth=worth)
    return _conclude(state, seen, monitor, set(spoiled), decide or (lambda _, q: q))


def _rolled(reference: Reference, before: Sequence[NumberedSketch]) -> Reference | None:
    """Make a reference of the cohorts before the window, in the season of the training set; None if they have no row."""
    filled = [(index, one) for index, one in before if rows_of(one)]
    if not filled:
        return None
    if reference.season is not None:
        return Reference.seasonal(filled, reference.season)
    sketches = [one for _, one in filled]
    return Reference.of(TableSketch.total(sketches), sketches)


def _conclude(
    state: DriftState, seen: DriftVerdict, monitor: DriftMonitor, spoiled: set[str], decide: Decide
) -> tuple[DriftState, DriftVerdict]:
    """Find what k of the last n separate windows confirm, and which of that needs a new alarm."""
    flagged = {one.column: _flags(state.flagged.get(one.column, ()), one, monitor) for one in seen.columns}
    confirmed = {
        name
        for name, flags in flagged.items()
        if k_of_n(flags, k=monitor.k, n=monitor.n, window=monitor.window)
    }
    well = {
        name for name, flags in flagged.items() if len(flags) >= monitor.n and not any(flags[-monitor.n :])
    }
    alarmed, excused = set(state.alarmed), set(state.excused)
    well |= (
        alarmed | excused
    ) - flagged.keys()  # no longer watched, so that no window would say that it is over
    # Standing alarms and broken feeds are known: testing them again would spend, and earn, for nothing new.
    open_columns = [one for one in seen.columns if one.column not in alarmed | spoiled]
    q = corrected(open_columns, min_effect=monitor.min_effect, min_null_change=monitor.min_null_change)
    news = {
        name
        for name in decide(seen.cohort, {name: p if name in confirmed else 1.0 for name, p in q.items()})
        if name in confirmed and q.get(name, 1.0) <= monitor.alpha
    }
    explained = (confirmed & spoiled) - alarmed
    verdict = seen.model_copy(
        update={
            "confirmed": tuple(sorted(confirmed)),
            "news": tuple(sorted(news)),
            "recovered": tuple(sorted(alarmed & well)),
            "excused": tuple(sorted(explained - excused)),
            "forgiven": tuple(sorted(excused & (well | news))),
        }
    )
    left = {
        "alarmed": tuple(sorted((alarmed - well) | news)),
        "excused": tuple(sorted((excused - well - news) | explained)),
    }
    return state.model_copy(update={"flagged": flagged} | left), verdict


def compare_window(
    reference: Reference, cohorts: Sequence[NumberedSketch], monitor: DriftMonitor
) -> tuple[DriftReport, dict[str, float]]:
    """Compare the sum of `cohorts` with the reference, each side's counts scaled to what they are worth."""
    filled = [rows for _, one in cohorts if (rows := rows_of(one))]
    here = reference.row_weights(float(np.mean(filled)))
    before, window = reference.matched(cohorts)
    report = compare(
        scaled(before, reference.row_weights(reference.rows_a_cohort)),
        scaled(window, here),
        alpha=monitor.alpha,
        min_effect=monitor.min_effect,
        min_null_change=monitor.min_null_change,
        min_rows=monitor.min_rows,
    )
    return report, here


def _flags(before: tuple[bool, ...], column: ColumnDrift, monitor: DriftMonitor) -> tuple[bool, ...]:
    """Append the newest window of a column to its last ones, unless it had too little to judge."""
    if column.status == "insufficient":
        return before
    return (*before, column.status in ("drifted", "vanished"))[-monitor.flags_kept :]


def tell(
    course: Course[Any],
    verdict: DriftVerdict,
    state: DriftState,
    subject: str,
    causes: Mapping[str, str] = _NO_CAUSES,
) -> None:
    """Add the finding on each column of a window, and its alarms.

    At most one alarm is of new drift, naming all columns that drift, as it takes the place of the one before, and one says that every
    column is well again. subject: what is watched. Drift that an incident of `causes` explains is a subject of its own.
    """
    monitor = course.monitor
    for column in verdict.columns:
        course.find(
            column.column,
            column.status,
            verdict.cohort,
            window=monitor.window,
            rows=column.rows_window,
            value=column.effect,
            reference=monitor.min_effect,
            statistic=column.q,
            threshold=monitor.alpha,
            text=column.reason,
        )
    reasons = {column.column: column.reason for column in verdict.columns}
    for names, spoiled, recovered in (
        (state.alarmed if verdict.news else (), False, False),
        (verdict.excused, True, False),
        (verdict.recovered if not state.alarmed else (), False, True),
        (verdict.forgiven if not state.excused else (), True, True),
    ):
        if names:
            name = f"{course.champion.version}/{verdict.cohort}{'/explained' if spoiled else ''}"
            course.alarm(
                f"{name}/recovered" if recovered else name,
                f"{subject}{_EXPLAINED}" if spoiled else subject,
                verdict.cohort,
                window=monitor.window,
                text="; ".join(f"{name}: {reasons.get(name, 'it is watched no longer')}" for name in names),
                recovered=recovered,
                columns=names,
                explained_by=tuple(sorted({causes[name] for name in names}))
                if spoiled and not recovered
                else (),
            )
