"""Sums over cohorts of logged predictions, each cohort summed once its labels had time to arrive.

Units are counted once over a split: those that met it, for the sample-ratio test, and those that met an event in each arm.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Generic, Self, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, ValidationError

from toque.functions.evaluation.realised_loss import Scored, possible_difference, score
from toque.functions.monitoring.results import Cohorts
from toque.functions.prediction_log import PINNED
from toque.functions.rollout.evidence.metrics import (
    FROM_TABLES,
    MetricCohort,
    MetricRows,
    MetricUnits,
    ReadMetric,
    exposure,
    exposure_cohort,
    metric_cohort,
)
from toque.functions.rollout.evidence.slots import KeptSums, SlotSums, SumsStore
from toque.functions.rollout.evidence.sums import ArmCounts, MetricSums, PairedLoss, UnitCounts
from toque.functions.rollout.policy import Guardrail, RolloutPolicy
from toque.functions.rollout.state import RolloutState
from toque.kernels.hashing import hash_strings
from toque.registry.models.traffic import BY_RULE, HOLDOUT
from toque.registry.times import epoch_us

# Until every replica has followed the traffic change, the split is not the declared one.
SETTLE_US = 10_000_000
_logger = logging.getLogger(__name__)
_LAYOUT = 5  # of the stored sums
_Kind = TypeVar("_Kind", bound="CohortSums")
ReadOutcomes = Callable[[datetime, datetime], pa.Table]  # predictions with labels, predicted in [start, end)


class CohortSums(KeptSums):
    """Sums over the cohorts before `next_cohort`.

    next_cohort: index of the first cohort that is not in the sums, counted in cohort lengths since the epoch. layout: sums of
    another one are made anew.
    """

    next_cohort: int
    layout: int = 0

    @abstractmethod
    def plus(self, cohort: Scored, state: RolloutState, tables: dict[str, MetricRows]) -> Self:
        """Add one more cohort, whose labels are due. tables: values of metrics by guardrail, where they stand in one."""

    @abstractmethod
    def counting(self, rows: Scored, state: RolloutState) -> Self:
        """Add traffic, without its losses and metrics."""


class WholeSums(CohortSums):
    """Sums of a whole rollout.

    loss_units: difference and rows by unit. champion_errors, challenger_errors: units of the shadow's requests that met an error.
    """

    loss: PairedLoss = PairedLoss()
    loss_units: SlotSums = SlotSums()
    shadow: ArmCounts = ArmCounts()
    champion_errors: SlotSums = SlotSums()
    challenger_errors: SlotSums = SlotSums()

    def plus(self, cohort: Scored, state: RolloutState, tables: dict[str, MetricRows]) -> Self:  # noqa: ARG002 - of a canary
        """Add one more cohort, whose labels are due."""
        loss, units = paired_loss(cohort, state)
        units = self.loss_units + units
        return self.counting(cohort, state).model_copy(
            update={
                "next_cohort": self.next_cohort + 1,
                "loss": (self.loss + loss).model_copy(update={"by_returning_unit": units.clusters()}),
                "loss_units": units,
            }
        )

    def counting(self, rows: Scored, state: RolloutState) -> Self:
        """Add traffic of the shadow stage, without its losses."""
        if state.canary_since is not None:
            rows = rows.where(rows.at < epoch_us(state.canary_since))
        arms = _arms(rows, state, challenger_is_shadow=True)
        met = (self.champion_errors, self.challenger_errors)
        errors = [
            before.first(_hashes(arm.where(~arm.answered))) for before, arm in zip(met, arms, strict=True)
        ]
        shadow = self.shadow + _requests(arms)
        return self.model_copy(
            update={
                "shadow": shadow.model_copy(
                    update={"champion_errors": len(errors[0]), "challenger_errors": len(errors[1])}
                ),
                "champion_errors": errors[0],
                "challenger_errors": errors[1],
            }
        )


class SplitSums(CohortSums):
    """Sums of a canary's present split: those of other shares are never pooled.

    errors, slow, units: units that met an event, and the split, each once in the arm that
    it met first: 1 the challenger's, -1 the champion's. metrics, metric_units: by guardrail, and its exposure.
    """

    canary: ArmCounts = ArmCounts()
    errors: SlotSums = SlotSums()
    slow: SlotSums = SlotSums()
    units: SlotSums = SlotSums()
    metrics: dict[str, MetricSums] = Field(default={})
    metric_units: dict[str, MetricUnits] = Field(default={})

    def plus(self, cohort: Scored, state: RolloutState, tables: dict[str, MetricRows]) -> Self:
        """Add one more cohort, whose labels are due."""
        metrics = _metrics(cohort, state, tables)
        units = {name: self.metric_units.get(name, MetricUnits()).plus(new) for name, new in metrics.items()}
        return self.counting(cohort, state).model_copy(
            update={
                "next_cohort": self.next_cohort + 1,
                "metric_units": units,
                "metrics": {
                    name: units[name].on(self.metrics.get(name, MetricSums()) + new.sums())
                    for name, new in metrics.items()
                },
            }
        )

    def counting(self, rows: Scored, state: RolloutState) -> Self:
        """Add traffic of the split, without its metrics."""
        split = rows.where((rows.at >= epoch_us(state.split_since)) & ~rows.outside & ~rows.shadow)
        arms = _arms(split, state, challenger_is_shadow=False)
        limit = state.policy.slow_ms
        errors = _first_met(self.errors, split.where(~split.answered), state)
        slow = (
            self.slow
            if limit is None
            else _first_met(self.slow, split.where(split.latency_ms > limit), state)
        )
        canary, erring, slowed = self.canary + _requests(arms), unit_counts(errors), unit_counts(slow)
        return self.model_copy(
            update={
                "canary": canary.model_copy(
                    update={
                        "champion_errors": erring.champion,
                        "challenger_errors": erring.challenger,
                        "champion_slow": slowed.champion,
                        "challenger_slow": slowed.challenger,
                    }
                ),
                "errors": errors,
                "slow": slow,
                "units": count_assigned(rows, state, self.units),
            }
        )


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums of one challenger: of the whole rollout, and of its present split, empty before the canary."""

    whole: WholeSums
    split: SplitSums


def no_metrics(guardrail: Guardrail, since: datetime) -> MetricRows:
    """Refuse to read a metric, for platforms without business metrics. Raises: LookupError."""
    raise LookupError(f"no reader of metrics was given, and metric {guardrail.name!r} is wanted from {since}")


def sum_cohorts(
    store: SumsStore,
    model: str,
    states: Sequence[RolloutState],
    read: ReadOutcomes,
    now: datetime,
    read_metric: ReadMetric = no_metrics,
) -> list[Sums]:
    """Sum as of `now` the losses of the cohorts whose labels are due, and the counts of all traffic so far.

    states: of one rollout, by challenger; all are summed in one reading of the log, a day at a time. Rows are read only from the
    first cohort that is not summed yet; finished cohorts are kept in the store under `rollouts/{model}/evidence/`, where a reader
    that was killed goes on. A row or label that comes later than `policy.label_delay` is not counted.
    """
    policy, due = states[0].policy, cohort_due(now, states[0].policy)
    grid = Cohorts(policy.cohort)
    wholes = [_Running.of(store, _key(model, state), state, WholeSums, state.started_at) for state in states]
    splits = {
        state.challenger: _Running.of(store, _split_key(model, state), state, SplitSums, state.split_since)
        for state in states
        if state.canary_since is not None
    }
    running: list[_Running[WholeSums] | _Running[SplitSums]] = [*wholes, *splits.values()]
    first = min(one.sums.next_cohort for one in running)
    tables: dict[str, MetricRows] = {}
    for split in splits.values():  # one at most: rivals have no canary
        if split.state.stage == "canary" and split.sums.next_cohort < due:
            since = grid.start(split.sums.next_cohort)
            wanted = (
                guardrail for guardrail in split.state.policy.guardrails if guardrail.source in FROM_TABLES
            )
            tables = {guardrail.name: read_metric(guardrail, since) for guardrail in wanted}

    def rows_of(since: datetime, until: datetime) -> Scored:
        rows = randomised_rows(read(max(since, states[0].started_at), until))
        return score(rows, loss=policy.loss, clip=policy.clip, cap=policy.loss_cap)

    while first < due:
        until = min(due, first + max(1, timedelta(days=1) // policy.cohort))
        rows = rows_of(grid.start(first), grid.start(until))
        for one in running:
            one.close(store, rows, until, tables)
        first = until
    start = max(grid.start(first), states[0].started_at)
    if start < now:
        rows = rows_of(start, now)
        for one in running:
            one.count_open(rows)
    none = SplitSums(next_cohort=first)
    return [
        Sums(one.sums, splits[one.state.challenger].sums if one.state.challenger in splits else none)
        for one in wholes
    ]


@dataclass
class _Running(Generic[_Kind]):
    """Sums of one kind that are summed on, and their key in the store."""

    key: str
    state: RolloutState
    sums: _Kind

    @classmethod
    def of(
        cls, store: SumsStore, key: str, state: RolloutState, kind: type[_Kind], since: datetime
    ) -> _Running[_Kind]:
        """Go on with what the store holds; sums begin with the cohort of `since` if there are none, or of another release."""
        try:
            sums = kind.find(store, key)
        except ValidationError as error:  # such as what no float holds
            _logger.warning("%s is summed anew from the log: %s", key, error)
            sums = None
        if sums is None or sums.layout != _LAYOUT:
            sums = kind(next_cohort=Cohorts(state.policy.cohort).index(since), layout=_LAYOUT)
        return _Running(key, state, sums)

    def close(self, store: SumsStore, rows: Scored, until: int, tables: dict[str, MetricRows]) -> None:
        """Add the cohorts before `until` that are not in the sums yet, and store them."""
        if self.sums.next_cohort >= until:
            return
        grid = Cohorts(self.state.policy.cohort)
        for _, own in grid.slices(rows.at, self.sums.next_cohort, until):
            self.sums = self.sums.plus(rows.where(np.arange(own.start, own.stop)), self.state, tables)
        self.sums.put(store, self.key)

    def count_open(self, rows: Scored) -> None:
        """Count the traffic of cohorts that still wait for labels, without their losses."""
        begin = Cohorts(self.state.policy.cohort).start(self.sums.next_cohort)
        self.sums = self.sums.counting(rows.where(rows.at >= epoch_us(begin)), self.state)


def _key(model: str, state: RolloutState) -> str:
    own = "" if state.challenger == state.versions[0] else f"-{state.challenger}"
    return f"rollouts/{model}/evidence/{state.rollout:08d}{own}.json"


def _split_key(model: str, state: RolloutState) -> str:
    by_hand = "" if state.split_entry is None else f"-split{state.split_entry}"
    return f"{_key(model, state).removesuffix('.json')}-step{state.step}{by_hand}.json"


def cohort_due(now: datetime, policy: RolloutPolicy) -> int:
    """Index of the first cohort whose labels have not had their time yet: those before it have ended and waited."""
    return Cohorts(policy.cohort).index(now - policy.label_delay)


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


def _metrics(cohort: Scored, state: RolloutState, tables: dict[str, MetricRows]) -> dict[str, MetricCohort]:
    """Sum the business metrics of one cohort of a canary."""
    if state.canary_since is None:
        return {}
    mine = cohort.where(~cohort.shadow & ~cohort.outside & (cohort.at >= epoch_us(state.split_since)))
    champion = mine.where(mine.version == state.champion)
    challenger = mine.where(mine.version == state.challenger)
    cohorts: dict[str, MetricCohort] = {}
    for guardrail in state.policy.guardrails:
        rows = (champion, challenger, guardrail, tables.get(guardrail.name))
        cohorts[guardrail.name] = metric_cohort(*rows)
        cohorts[exposure(guardrail.name)] = exposure_cohort(*rows)
    return cohorts


def paired_loss(cohort: Scored, state: RolloutState) -> tuple[PairedLoss, SlotSums]:
    """Pair the losses of champion and shadow on the same labelled requests of one cohort; and sum difference and rows by unit."""
    champion = cohort.where((cohort.version == state.champion) & ~cohort.shadow).first_by_id()
    challenger = cohort.where((cohort.version == state.challenger) & cohort.shadow).first_by_id()
    _, left, right = np.intersect1d(
        champion.id.astype(str), challenger.id.astype(str), assume_unique=True, return_indices=True
    )
    ours, theirs = challenger.where(right), champion.where(left)
    both = ours.answered & theirs.answered
    labelled = both & np.isfinite(ours.loss) & np.isfinite(theirs.loss)
    pairs, shadows, policy = theirs.where(labelled), ours.where(labelled), state.policy
    loss = PairedLoss.of_cohort(
        pairs.loss,
        shadows.loss,
        pairs.unit.astype(str).tolist(),
        pairs=int(both.sum()),
        requests=int(champion.answered.sum()),
        possible=possible_difference(pairs, shadows, loss=policy.loss, clip=policy.clip, cap=policy.loss_cap),
    )
    loss = loss.model_copy(
        update={
            "champion_unanswered": int((ours.answered & ~theirs.answered).sum()),
            "challenger_unanswered": int((theirs.answered & ~ours.answered).sum()),
        }
    )
    difference = pairs.loss - shadows.loss
    return loss, SlotSums.of(_hashes(pairs), difference, np.ones(len(pairs)))


def _arms(rows: Scored, state: RolloutState, *, challenger_is_shadow: bool) -> tuple[Scored, Scored]:
    return (
        rows.where((rows.version == state.champion) & ~rows.shadow),
        rows.where((rows.version == state.challenger) & (rows.shadow == challenger_is_shadow)),
    )


def _requests(arms: tuple[Scored, Scored]) -> ArmCounts:
    """Count the requests of each arm, and those that met an error."""
    champion, challenger = arms
    return ArmCounts(
        champion=len(champion),
        challenger=len(challenger),
        champion_unanswered=int((~champion.answered).sum()),
        challenger_unanswered=int((~challenger.answered).sum()),
    )


def _first_met(before: SlotSums, rows: Scored, state: RolloutState) -> SlotSums:
    """Add the units of `rows` of either arm, in order of time, that are not in `before`: in the arm of the first row."""
    rows = rows.where((rows.version == state.champion) | (rows.version == state.challenger))
    return before.first(_hashes(rows), np.where(rows.version == state.challenger, 1.0, -1.0))


def unit_counts(units: SlotSums) -> UnitCounts:
    """Count the units of each arm; those of neither, 0, are not counted."""
    arm = units.column(0)
    return UnitCounts(champion=int((arm < 0).sum()), challenger=int((arm > 0).sum()))


def count_assigned(rows: Scored, state: RolloutState, before: SlotSums) -> SlotSums:
    """Count the units of `rows` (in order of time) that were not counted before, as `SplitSums.units`.

    Counting begins right after the challenger's first answer that comes ten seconds into the canary or later: replicas take
    a moment to follow the traffic, and units that the champion alone answered meanwhile are no evidence on the split. That
    answer is a stopping time, so each unit after it is on the canary with the declared chance. The rows of a request without
    a unit were assigned together, and count once.
    """
    rows = _of_the_split(rows, state)
    if len(before):
        return _first_met(before, rows, state)
    answers = np.flatnonzero(rows.version == state.challenger)
    if not len(answers):
        return before
    begun = before.first(_hashes(rows.where(answers[:1])), np.zeros(1))
    return _first_met(begun, rows.where(np.arange(len(rows)) > answers[0]), state)


def _of_the_split(rows: Scored, state: RolloutState) -> Scored:
    """Select what champion and canary answered since the canary began."""
    if state.canary_since is None:
        return rows.where(np.zeros(len(rows), dtype=bool))
    since = int(state.split_since.timestamp() * 1_000_000) + SETTLE_US
    arms = (rows.version == state.champion) | (rows.version == state.challenger)
    return rows.where(arms & ~rows.shadow & ~rows.outside & (rows.at >= since))


def _hashes(rows: Scored) -> npt.NDArray[np.int64]:
    return hash_strings(rows.unit)
