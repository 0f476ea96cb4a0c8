"""Settings, state and findings of the monitor that estimates performance before labels arrive.

An estimate raises and ends no alarm and is no proof of health: its verdicts are "estimate", later "agreed" or "contradicted".
Each cohort is estimated with what was known when it ended, however late the monitor runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, Self

import numpy as np
from pydantic import ConfigDict, Field

from toque.functions.evaluation.meanings import MEANINGS, Loss
from toque.functions.evaluation.outcome_kinds import outcome_kind
from toque.functions.monitoring.results import CohortState
from toque.functions.monitoring.settings import LabelMonitor
from toque.functions.monitoring.watch import Course, MonitorResult
from toque.functions.stats.estimate import ClassSketch, Estimate, ScoreSketch
from toque.registry import ModelVersion

COVARIATE_SHIFT = "labels follow features as they did (covariate shift)"
LABEL_SHIFT = "only the shares of the classes changed, not what their rows look like (label shift)"
BLIND = "an estimate, not health: it cannot see a changed relation between features and labels"
SHARES, SHARE_OF = "shares", "share of "
"""Measure of all shares, where none can be estimated, and beginning of the measure that is the share of a class among the rows."""
_Z_95 = 1.96  # half width of a 95 % interval, in standard errors


class EstimateMonitor(LabelMonitor):
    """Settings of the monitor that estimates performance.

    Of probabilities it is estimated from the model's own confidence, of numbers and counts from rows that have labels.
    """

    kind: Literal["estimate"] = Field(default="estimate", description="Kind of the monitor.")
    loss: Loss = Field(
        default="log_loss",
        description="Loss that is estimated: that of probabilities, or that of a number or a count.",
    )
    min_rows: int = Field(default=30, ge=1, description="Answers below which a cohort is not estimated.")
    min_labels: int = Field(
        default=1_000,
        ge=1,
        description=(
            "Labels below which probabilities are taken as served, and losses "
            "of numbers and counts not estimated."
        ),
    )
    agree: float = Field(
        default=4.0, gt=0, description="Standard errors within which labels agree with an estimate."
    )
    lookback: timedelta = Field(
        default=timedelta(days=28),
        description=(
            "How far back a monitor without a state begins, and labelled rows of "
            "numbers and counts are learnt from."
        ),
    )


class EstimateState(CohortState):
    """State of the monitor of estimates. next_cohort, next_label: the first cohort not estimated, and the first not settled.

    labelled: scores and labels of settled cohorts, from which probabilities are calibrated; classes: the same of a model of several
    classes. pending: estimates to settle.
    """

    model_config = ConfigDict(frozen=True)

    version: int
    next_label: int
    labelled: ScoreSketch = ScoreSketch()
    classes: ClassSketch | None = None
    pending: dict[int, dict[str, Estimate]] = Field(default={})

    def on_grid(self, moved: Callable[[int], int]) -> Self:
        """Keep the scores and labels, which are of rows; estimates that were not settled are given up."""
        return type(self)(
            version=self.version,
            next_cohort=moved(self.next_cohort),
            next_label=moved(self.next_label),
            labelled=self.labelled,
            classes=self.classes,
        )


@dataclass(frozen=True, slots=True)
class EstimateResult:
    """Estimate of one measure for one cohort. error: its standard error, None if unknown; realised: None until labels are there."""

    cohort: int
    measure: str
    verdict: Literal["estimate", "agreed", "contradicted", "insufficient"]
    rows: int
    estimate: float | None
    realised: float | None
    z: float | None
    text: str
    error: float | None = None


Step = Callable[[EstimateState, int], tuple[EstimateState, list[EstimateResult]]]
"""Estimates or settles one cohort: the state after it, and the results."""


def foreseen(index: int, name: str, found: Estimate, how: str) -> EstimateResult:
    """Make the result of a cohort without labels. how: what the estimate was learnt from."""
    assumed = f"an estimate, not health: right if {LABEL_SHIFT}" if name.startswith(SHARE_OF) else BLIND
    low, high = interval(found.mean, found.error)
    text = f"{name} about {found.mean:.4g}, 95 % interval {low:.4g} to {high:.4g} ({how}): {assumed}"
    return EstimateResult(index, name, "estimate", found.n, found.mean, None, None, text, found.error)


def insufficient(index: int, name: str, rows: int, why: str) -> EstimateResult:
    """Make the result of a cohort for which a measure cannot be estimated."""
    return EstimateResult(
        index, name, "insufficient", rows, None, None, None, f"no estimate of {name}: {why}"
    )


def check_estimable(champion: ModelVersion, loss: Loss) -> None:
    """Check that a loss of a version can be estimated. Raises: ValueError that names the outcome, and what to do instead."""
    kind = outcome_kind(champion).name
    meaning = MEANINGS[kind]
    if why := meaning.refused.get("monitor.estimate"):
        raise ValueError(
            f"{champion.model}@{champion.version} answers {kind!r}, so nothing is estimated: {why}"
        )
    if loss not in meaning.losses:
        raise ValueError(
            f"{champion.model}@{champion.version} answers {kind!r}, which has no {loss!r}: use loss={meaning.losses[0]!r}"
        )


def interval(mean: float, error: float) -> tuple[float, float]:
    """95 % interval of an estimate with this standard error."""
    return mean - _Z_95 * error, mean + _Z_95 * error


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


def begun(course: Course[EstimateMonitor]) -> EstimateState:
    """Load the state for this champion, or make the one to begin with."""
    state, version = course.load(EstimateState), course.champion.version
    if state is not None and state.version == version:
        return state
    begin = course.begin if state is None else state.next_cohort
    return EstimateState(version=version, next_cohort=begin, next_label=begin)


def watch_cohorts(
    course: Course[EstimateMonitor], state: EstimateState, *, estimate: Step, settle: Step, nothing: str
) -> MonitorResult:
    """Estimate every cohort that has ended, settle before each those whose labels were due then, and end the run.

    nothing: text of a run without an estimate. The statistic of a finding is the estimate's standard error, once settled z.
    """
    grid, monitor, begin = course.grid, course.monitor, state.next_cohort
    results: list[EstimateResult] = []
    for index in range(begin, course.due):
        while state.next_label < grid.index(grid.start(index + 1) - monitor.label_delay):
            state, more = settle(state, state.next_label)
            results += more
        state, more = estimate(state, index)
        results += more
    for one in results:
        course.find(
            one.measure,
            one.verdict,
            one.cohort,
            rows=one.rows,
            value=one.realised,
            reference=one.estimate,
            statistic=one.error if one.verdict == "estimate" else one.z,
            threshold=monitor.agree,
            text=one.text,
        )
    texts = [one.text for one in results if one.measure == monitor.loss]
    return course.conclude(state, range(begin, course.due), texts[-1] if texts else nothing)
