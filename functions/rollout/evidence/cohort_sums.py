"""Sums over cohorts of logged predictions, each cohort summed once its labels had time to arrive."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Protocol, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from functions.evaluation.realised_loss import Scored, score
from functions.prediction_log import PINNED
from functions.rollout.evidence.assigned_units import AssignedUnits, count_assigned
from functions.rollout.evidence.metrics import FROM_TABLES, MetricRows, ReadMetric, metric_sums
from functions.rollout.evidence.sums import ArmCounts, MetricSums, PairedLoss
from functions.rollout.policy import Guardrail, RolloutPolicy
from functions.rollout.state import RolloutState
from registry.models.traffic import BY_RULE, HOLDOUT

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
ReadOutcomes = Callable[[datetime, datetime], pa.Table]  # predictions with labels, predicted in [start, end)


class SumsStore(Protocol):
    """Object store that keeps the sums."""

    def find(self, key: str) -> bytes | None:
        """Find an object by its key, or return None."""
        ...

    def put(self, key: str, data: bytes) -> None:
        """Write or overwrite an object under its key."""
        ...


class CohortSums(BaseModel):
    """Sums of all cohorts before `next_cohort`; a cache that can be rebuilt from the log.

    next_cohort: index of the first cohort that is not in the sums, counted in cohort lengths since the epoch.
    """

    model_config = ConfigDict(frozen=True)

    next_cohort: int
    loss: PairedLoss = PairedLoss()
    shadow: ArmCounts = ArmCounts()
    canary: ArmCounts = ArmCounts()
    units: AssignedUnits = AssignedUnits()
    metrics: dict[str, MetricSums] = {}

    def plus(self, cohort: Scored, state: RolloutState, metrics: dict[str, MetricSums]) -> Self:
        """Add one more cohort, whose labels are due."""
        counted = self.counting(cohort, state)
        return counted.model_copy(
            update={
                "next_cohort": self.next_cohort + 1,
                "loss": self.loss + paired_loss(cohort, state),
                "metrics": {
                    name: self.metrics.get(name, MetricSums()) + new for name, new in metrics.items()
                },
            }
        )

    def counting(self, cohort: Scored, state: RolloutState) -> Self:
        """Add the traffic of one more cohort, without its losses."""
        shadow, canary = counts(cohort, state)
        return self.model_copy(
            update={
                "shadow": self.shadow + shadow,
                "canary": self.canary + canary,
                "units": count_assigned(cohort, state, self.units),
            }
        )


def no_metrics(guardrail: Guardrail, since: datetime) -> MetricRows:
    """Refuse to read a metric, for platforms without business metrics. Raises: LookupError."""
    raise LookupError(f"no reader of metrics was given, and metric {guardrail.name!r} is wanted from {since}")


def sum_cohorts(
    store: SumsStore,
    model: str,
    state: RolloutState,
    read: ReadOutcomes,
    now: datetime,
    read_metric: ReadMetric = no_metrics,
) -> CohortSums:
    """Sum as of `now` the losses of the cohorts whose labels are due, and the counts of all traffic so far.

    Rows are read only from the first cohort that is not summed yet; finished cohorts are kept in the store under
    `rollouts/{model}/evidence/`. A row or label that comes later than `policy.label_delay` is not counted.
    """
    policy = state.policy
    own = "" if state.challenger == state.versions[0] else f"-{state.challenger}"
    step = f"-step{state.step}" if state.step else ""  # counts of different shares are never pooled
    key = f"rollouts/{model}/evidence/{state.rollout:08d}{own}{step}.json"
    kept = store.find(key)
    sums = (
        CohortSums(next_cohort=_index(state.started_at, policy))
        if kept is None
        else CohortSums.model_validate_json(kept)
    )
    begun = sums.next_cohort
    due = cohort_due(now, policy)
    start = max(state.started_at, _start(sums.next_cohort, policy))
    if start >= now:
        return sums
    rows = score(randomised_rows(read(start, now)), loss=policy.loss, clip=policy.clip, cap=policy.loss_cap)
    tables = _metric_tables(state, read_metric, start) if sums.next_cohort < due else {}
    sums, rows = _finish(sums, rows, state, due, tables)
    if sums.next_cohort > begun:
        store.put(key, sums.model_dump_json().encode())
    return _with_open_cohorts(sums, rows, state)


def cohort_due(now: datetime, policy: RolloutPolicy) -> int:
    """Index of the first cohort whose labels have not had their time yet: those before it have ended and waited."""
    return _index(now - policy.label_delay, policy)


def unpinned_rows(rows: pa.Table) -> pa.Table:
    """Drop rows that asked for a version by number: they were not split and say nothing about the arms."""
    return rows.filter(pc.not_equal(rows["arm"], PINNED))


def randomised_rows(rows: pa.Table) -> pa.Table:
    """Keep the rows that were assigned to their arm at random by the split.

    Dropped are units that are held out, and requests that a rule sent to a version: their attributes chose it, not chance.
    """
    rows = unpinned_rows(rows)
    rows = rows.filter(pc.invert(pc.starts_with(rows["arm"], BY_RULE)))
    return rows.filter(pc.not_equal(rows["arm"], HOLDOUT))


def _metric_tables(state: RolloutState, read_metric: ReadMetric, since: datetime) -> dict[str, MetricRows]:
    """Read the tables of the guardrails whose values stand in one."""
    if state.stage != "canary":
        return {}
    wanted = [guardrail for guardrail in state.policy.guardrails if guardrail.source in FROM_TABLES]
    return {guardrail.name: read_metric(guardrail, since) for guardrail in wanted}


def _finish(
    sums: CohortSums, rows: Scored, state: RolloutState, due: int, tables: dict[str, MetricRows]
) -> tuple[CohortSums, Scored]:
    """Add every cohort that is due; return the rows that are not."""
    while sums.next_cohort < due:
        end = _micros(_start(sums.next_cohort + 1, state.policy))
        cohort, rows = rows.where(rows.at < end), rows.where(rows.at >= end)
        sums = sums.plus(cohort, state, _metrics(cohort, state, tables))
    return sums, rows


def _with_open_cohorts(sums: CohortSums, rows: Scored, state: RolloutState) -> CohortSums:
    """Count the traffic of cohorts that still wait for labels, without their losses."""
    length = int(state.policy.cohort / timedelta(microseconds=1))
    index = rows.at // length
    for one in np.unique(index):
        sums = sums.counting(rows.where(index == one), state)
    return sums


def _metrics(cohort: Scored, state: RolloutState, tables: dict[str, MetricRows]) -> dict[str, MetricSums]:
    """Sum the business metrics of one cohort of a canary."""
    if state.canary_since is None:
        return {}
    mine = cohort.where(~cohort.shadow & ~cohort.outside & (cohort.at >= _micros(state.split_since)))
    champion = mine.where(mine.version == state.champion)
    challenger = mine.where(mine.version == state.challenger)
    return {
        guardrail.name: metric_sums(champion, challenger, guardrail, tables.get(guardrail.name))
        for guardrail in state.policy.guardrails
    }


def paired_loss(cohort: Scored, state: RolloutState) -> PairedLoss:
    """Pair the losses of champion and shadow on the same labelled requests of one cohort."""
    champion = cohort.where((cohort.version == state.champion) & ~cohort.shadow).first_by_id()
    challenger = cohort.where((cohort.version == state.challenger) & cohort.shadow).first_by_id()
    _, left, right = np.intersect1d(
        champion.id.astype(str), challenger.id.astype(str), assume_unique=True, return_indices=True
    )
    ours, theirs = challenger.where(right), champion.where(left)
    both = ours.answered & theirs.answered
    labelled = both & np.isfinite(ours.loss) & np.isfinite(theirs.loss)
    return PairedLoss.of_cohort(
        theirs.loss[labelled],
        ours.loss[labelled],
        theirs.unit[labelled].astype(str).tolist(),
        pairs=int(both.sum()),
        requests=int(champion.answered.sum()),
    )


def counts(cohort: Scored, state: RolloutState) -> tuple[ArmCounts, ArmCounts]:
    """Count requests, errors and slow answers of one cohort, in the shadow stage and in the canary stage."""
    if state.canary_since is None:
        return _counts(cohort, state, challenger_is_shadow=True), ArmCounts()
    began, boundary = _micros(state.canary_since), _micros(state.split_since)
    return (
        _counts(cohort.where(cohort.at < began), state, challenger_is_shadow=True),
        _counts(cohort.where((cohort.at >= boundary) & ~cohort.outside), state, challenger_is_shadow=False),
    )


def _counts(rows: Scored, state: RolloutState, *, challenger_is_shadow: bool) -> ArmCounts:
    champion = rows.where((rows.version == state.champion) & ~rows.shadow)
    challenger = rows.where((rows.version == state.challenger) & (rows.shadow == challenger_is_shadow))
    slow_ms = state.policy.slow_ms if state.policy.slow_ms is not None else np.inf
    return ArmCounts(
        champion=len(champion),
        challenger=len(challenger),
        champion_errors=_units(champion, ~champion.answered),
        challenger_errors=_units(challenger, ~challenger.answered),
        champion_slow=_units(champion, champion.latency_ms > slow_ms),
        challenger_slow=_units(challenger, challenger.latency_ms > slow_ms),
    )


def _units(rows: Scored, met: np.ndarray) -> int:
    """Count the units that met the event; a unit that repeats its request is one observation."""
    return len(set(rows.unit[met]))


def _index(at: datetime, policy: RolloutPolicy) -> int:
    return (at - EPOCH) // policy.cohort


def _start(index: int, policy: RolloutPolicy) -> datetime:
    return EPOCH + index * policy.cohort


def _micros(at: datetime) -> int:
    return (at - EPOCH) // timedelta(microseconds=1)
