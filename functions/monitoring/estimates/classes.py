"""Estimates of classification performance before labels arrive, compared with the labels once they do.

An estimate raises and ends no alarm and is no proof of health: its verdicts are "estimate", later "agreed" or "contradicted".
Each cohort is estimated with what was known when it ended, however late the monitor runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from functions.evaluation.realised_loss import Loss, Scored, score
from functions.monitoring.cohorts import Cohorts, CohortState
from functions.monitoring.watch import MonitorResult, MonitorRun, ReadRows, by_cohort
from functions.stats.estimate import (
    Calibration,
    Estimate,
    ScoreSketch,
    estimate_auc,
    estimate_losses,
    realise,
)
from registry import ModelVersion

BLIND = "an estimate, not health: it cannot see a changed relation between features and labels"


class EstimateMonitor(BaseModel):
    """Settings of the monitor that estimates performance.

    loss: of one probability of label 1, from the model's own confidence; or the squared error of a number, learnt from rows of
        the last `lookback` that have labels.
    cohort: as of the performance monitor. label_delay: after it a cohort's labels are there and the estimate is settled.
    min_rows: cohorts with fewer answers are not estimated. min_labels: below it probabilities are taken as served, and
        squared errors not estimated.
    clip: as of the performance monitor. agree: standard errors within which labels agree with an estimate.
    lookback: how far back a monitor without a state begins.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["estimate"] = "estimate"
    loss: Loss = "log_loss"
    cohort: timedelta = timedelta(days=1)
    label_delay: timedelta = timedelta(days=1)
    min_rows: int = Field(default=30, ge=1)
    min_labels: int = Field(default=1_000, ge=1)
    clip: float = Field(default=0.01, gt=0, lt=0.5)
    agree: float = Field(default=4.0, gt=0)
    lookback: timedelta = timedelta(days=28)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.cohort <= timedelta(0) or self.label_delay < timedelta(0):
            raise ValueError(
                f"cohort must be longer than zero and label_delay not below it, got {self.cohort}, {self.label_delay}"
            )
        return self


class EstimateState(CohortState):
    """State of the monitor of estimates. next_cohort, next_label: the first cohort not estimated, and the first not settled.

    labelled: scores and labels of settled cohorts, from which probabilities are calibrated. pending: estimates to settle.
    """

    model_config = ConfigDict(frozen=True)

    version: int
    next_label: int
    labelled: ScoreSketch = ScoreSketch()
    pending: dict[int, dict[str, Estimate]] = Field(default={})

    def on_grid(self, moved: Callable[[int], int]) -> Self:
        """Keep the scores and labels, which are of rows; estimates that were not settled are given up."""
        return type(self)(
            version=self.version,
            next_cohort=moved(self.next_cohort),
            next_label=moved(self.next_label),
            labelled=self.labelled,
        )


@dataclass(frozen=True, slots=True)
class EstimateResult:
    """Estimate of one measure for one cohort. realised: None until labels are there."""

    cohort: int
    measure: str
    verdict: Literal["estimate", "agreed", "contradicted"]
    rows: int
    estimate: float
    realised: float | None
    z: float | None
    text: str


def estimate(
    state: EstimateState, index: int, rows: Scored, monitor: EstimateMonitor
) -> tuple[EstimateState, list[EstimateResult]]:
    """Estimate cohort `index` from its answers alone: return the state after it and the estimates."""
    after = state.model_copy(update={"next_cohort": index + 1})
    p = rows.output[_one_probability(rows)]
    if len(p) < monitor.min_rows:
        return after, []
    calibrated = state.labelled.n >= monitor.min_labels
    c = (state.labelled.calibration() if calibrated else Calibration())(p)
    how = f"calibrated on {state.labelled.n} labels" if calibrated else "uncalibrated, too few labels"
    found = estimate_losses(p, c, clip=monitor.clip)
    estimates = [
        EstimateResult(
            index,
            name,
            "estimate",
            len(p),
            one.mean,
            None,
            None,
            f"{name} about {one.mean:.4f} ± {one.error:.4f} ({how}): {BLIND}",
        )
        for name, one in found.items()
    ]
    if 0 < c.mean() < 1:
        auc = estimate_auc(p, c)
        estimates.append(
            EstimateResult(
                index, "auc", "estimate", len(p), auc, None, None, f"auc about {auc:.4f} ({how}): {BLIND}"
            )
        )
    return after.model_copy(update={"pending": state.pending | {index: found}}), estimates


def settle(
    state: EstimateState, index: int, rows: Scored, monitor: EstimateMonitor
) -> tuple[EstimateState, list[EstimateResult]]:
    """Compare the labels of cohort `index` with its estimates: return the state after it and the results."""
    known = np.isin(rows.label, (0.0, 1.0)) & _one_probability(rows)
    p, y = rows.output[known], rows.label[known]
    pending = {cohort: found for cohort, found in state.pending.items() if cohort > index}
    after = state.model_copy(
        update={
            "next_label": index + 1,
            "labelled": state.labelled + ScoreSketch.of(p, y),
            "pending": pending,
        }
    )
    if not len(p):
        return after, []
    found = state.pending.get(index, {})
    return after, [
        compared_with_labels(index, name, found[name], value, len(p), monitor)
        for name, value in realise(p, y, clip=monitor.clip).items()
        if name in found
    ]


def _one_probability(rows: Scored) -> npt.NDArray[np.bool_]:
    """Mark the rows (rows,) that were answered by the probability of label 1 alone."""
    return rows.answered & np.isfinite(rows.expected) & (rows.output >= 0) & (rows.output <= 1)


def compared_with_labels(
    index: int, name: str, expected: Estimate, realised: float, rows: int, monitor: EstimateMonitor
) -> EstimateResult:
    """Compare an estimate with what was realised on so many labelled rows."""
    # If only some of the labels came, their mean varies more than that of all would.
    z = expected.z(realised) * float(np.sqrt(min(rows / expected.n, 1.0)))
    agreed = abs(z) <= monitor.agree
    text = (
        f"{name} was {realised:.4f} on {rows} labels, estimated {expected.mean:.4f}: {z:+.1f} standard errors"
    )
    return EstimateResult(
        index, name, "agreed" if agreed else "contradicted", rows, expected.mean, realised, z, text
    )


def watch_estimates(
    run: MonitorRun, champion: ModelVersion, monitor: EstimateMonitor, read: ReadRows
) -> MonitorResult:
    """Estimate every cohort that has ended, and settle those whose labels are due, without alarms.

    read: predictions beside their labels, unlabelled ones included, predicted in [start, end).
    """
    grid = Cohorts(monitor.cohort)
    due = grid.index(run.now)
    state = load_estimate_state(run, champion, monitor, grid)
    if state.next_cohort >= due:
        return run.nothing_due(monitor, champion, state.next_cohort)
    first, begun = min(state.next_label, state.next_cohort), state.next_cohort
    rows = score(read(grid.start(first), grid.start(due)), loss="log_loss", clip=monitor.clip)
    rows = rows.where((rows.version == champion.version) & ~rows.shadow)
    cohorts = dict(by_cohort(rows, grid, first, due))
    estimates: list[EstimateResult] = []
    for index in range(begun, due):
        while state.next_label < grid.index(grid.start(index + 1) - monitor.label_delay):
            state, more = settle(state, state.next_label, cohorts[state.next_label], monitor)
            estimates += more
        state, more = estimate(state, index, cohorts[index], monitor)
        estimates += more
    return run.conclude(
        monitor,
        champion,
        state,
        range(begun, due),
        text=estimates[-1].text if estimates else "too few answers to estimate",
        findings=[result_row(run, champion, grid, one, monitor) for one in estimates],
    )


def load_estimate_state(
    run: MonitorRun, champion: ModelVersion, monitor: EstimateMonitor, grid: Cohorts
) -> EstimateState:
    """Load the state for this champion, or make the one to begin with."""
    state = run.load_state(monitor, EstimateState)
    if state is not None:
        if state.version == champion.version:
            return state
        begin = state.next_cohort
    else:
        begin = grid.index(run.now - monitor.lookback)
    return EstimateState(version=champion.version, next_cohort=begin, next_label=begin)


def result_row(
    run: MonitorRun, champion: ModelVersion, grid: Cohorts, one: EstimateResult, monitor: EstimateMonitor
) -> dict[str, Any]:
    """Convert an estimate to a row of the results table."""
    return {
        "monitor": monitor.kind,
        "subject": one.measure,
        "version": champion.version,
        "start": grid.start(one.cohort),
        "end": grid.start(one.cohort + 1),
        "rows": one.rows,
        "verdict": one.verdict,
        "value": one.realised,
        "reference": one.estimate,
        "statistic": one.z,
        "threshold": monitor.agree,
        "text": one.text,
        "judged_at": run.now,
    }
