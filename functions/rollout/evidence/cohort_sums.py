"""Sums over cohorts of logged predictions, each cohort summed once its labels had time to arrive.

Units are counted once over a split: those that met it, for the sample-ratio test, and those that met an event in each arm.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, ValidationError

from toque.functions.evaluation.realised_loss import Scored, score
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
from toque.functions.rollout.evidence.slots import SlotSums
from toque.functions.rollout.evidence.sums import ArmCounts, MetricSums, PairedLoss, UnitCounts
from toque.functions.rollout.policy import Guardrail, RolloutPolicy
from toque.functions.rollout.state import RolloutState, Stage
from toque.kernels.hashing import hash_strings
from toque.registry.models.traffic import BY_RULE, HOLDOUT
from toque.registry.times import EPOCH, epoch_us

# Until every replica has followed the traffic change, the split is not the declared one.
SETTLE_US = 10_000_000
MAX_UNITS = 200_000  # a split that is off by 1 % of itself is found by then, and the test stays valid
_logger = logging.getLogger(__name__)
_LAYOUT = 4  # of the stored sums
ReadOutcomes = Callable[[datetime, datetime], pa.Table]  # predictions with labels, predicted in [start, end)


class AssignedUnits(BaseModel):
    """Units counted so far in each arm. begun: the challenger has answered. seen: sorted int64 hashes of the units that are counted, or not
    to be; little-endian.
    """

    model_config = ConfigDict(frozen=True, ser_json_bytes="base64", val_json_bytes="base64")

    counts: UnitCounts = UnitCounts()
    begun: bool = False
    seen: bytes = b""


class EventUnits(BaseModel):
    """Units that met an event, such as an error, in each arm of a split: one that comes back and meets it again counts once.

    champion, challenger: sorted int64 hashes, little-endian. No more are counted once there are `MAX_UNITS`.
    """

    model_config = ConfigDict(frozen=True, ser_json_bytes="base64", val_json_bytes="base64")

    champion: bytes = b""
    challenger: bytes = b""

    @property
    def counts(self) -> tuple[int, int]:
        """Number of units of the champion and of the challenger."""
        return len(self.champion) // 8, len(self.challenger) // 8

    def plus(self, champion: Scored, challenger: Scored) -> Self:
        """Add the units of the rows that met the event."""
        if sum(self.counts) >= MAX_UNITS or not len(champion) + len(challenger):
            return self
        return self.model_copy(
            update={
                name: np.union1d(np.frombuffer(before, dtype="<i8"), _hashes(rows)).astype("<i8").tobytes()
                for name, before, rows in (
                    ("champion", self.champion, champion),
                    ("challenger", self.challenger, challenger),
                )
            }
        )


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

    next_cohort: index of the first cohort that is not in the sums, counted in cohort lengths since the epoch. layout: sums of
    another one are made anew. loss_units: difference and rows by unit. events: units that met one, by stage and event. metrics, metric_units: by guardrail, and its exposure.
    """

    model_config = ConfigDict(frozen=True)

    next_cohort: int
    layout: int = 0
    loss: PairedLoss = PairedLoss()
    loss_units: SlotSums = SlotSums()
    shadow: ArmCounts = ArmCounts()
    canary: ArmCounts = ArmCounts()
    events: dict[str, EventUnits] = {}
    units: AssignedUnits = AssignedUnits()
    metrics: dict[str, MetricSums] = {}
    metric_units: dict[str, MetricUnits] = {}

    def plus(self, cohort: Scored, state: RolloutState, metrics: dict[str, MetricCohort]) -> Self:
        """Add one more cohort, whose labels are due."""
        counted = self.counting(cohort, state)
        units = {name: self.metric_units.get(name, MetricUnits()).plus(new) for name, new in metrics.items()}
        loss, loss_units = paired_loss(cohort, state)
        loss_units = self.loss_units + loss_units
        return counted.model_copy(
            update={
                "next_cohort": self.next_cohort + 1,
                "loss": (self.loss + loss).model_copy(update={"by_returning_unit": loss_units.clusters()}),
                "loss_units": loss_units,
                "metric_units": units,
                "metrics": {
                    name: units[name].on(self.metrics.get(name, MetricSums()) + new.sums())
                    for name, new in metrics.items()
                },
            }
        )

    def counting(self, cohort: Scored, state: RolloutState) -> Self:
        """Add the traffic of one more cohort, without its losses."""
        arms = stage_arms(cohort, state)
        events = self.events | {
            name: self.events.get(name, EventUnits()).plus(*met) for name, met in _events(arms, state).items()
        }
        return self.model_copy(
            update={
                "shadow": _with_events(self.shadow, arms["shadow"], events, "shadow"),
                "canary": _with_events(self.canary, arms["canary"], events, "canary"),
                "events": events,
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
    # Counts of different shares are never pooled.
    step = f"-step{state.step}" if state.step else ""
    by_hand = "" if state.split_entry is None else f"-split{state.split_entry}"
    key = f"rollouts/{model}/evidence/{state.rollout:08d}{own}{step}{by_hand}.json"
    sums = _stored_sums(store, key) or CohortSums(
        next_cohort=_index(state.started_at, policy), layout=_LAYOUT
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


def _stored_sums(store: SumsStore, key: str) -> CohortSums | None:
    """Read the sums under a key; None if there are none, or another release summed in another way or what no float holds."""
    stored = store.find(key)
    try:
        sums = None if stored is None else CohortSums.model_validate_json(stored)
    except ValidationError as error:
        _logger.warning("%s is summed anew from the log: %s", key, error)
        return None
    return sums if sums is not None and sums.layout == _LAYOUT else None


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
        end = epoch_us(_start(sums.next_cohort + 1, state.policy))
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
    loss = PairedLoss.of_cohort(
        theirs.loss[labelled],
        ours.loss[labelled],
        theirs.unit[labelled].astype(str).tolist(),
        pairs=int(both.sum()),
        requests=int(champion.answered.sum()),
    )
    loss = loss.model_copy(
        update={
            "champion_unanswered": int((ours.answered & ~theirs.answered).sum()),
            "challenger_unanswered": int((theirs.answered & ~ours.answered).sum()),
        }
    )
    pairs = theirs.where(labelled)
    difference = pairs.loss - ours.loss[labelled]
    return loss, SlotSums.of(_hashes(pairs), difference, np.ones(len(pairs)))


def stage_arms(cohort: Scored, state: RolloutState) -> dict[Stage, tuple[Scored, Scored]]:
    """Select the rows of one cohort that count in each stage, of the champion and of the challenger."""
    nothing = cohort.where(np.zeros(len(cohort), dtype=bool))
    shadow, canary = cohort, nothing
    if state.canary_since is not None:
        shadow = cohort.where(cohort.at < epoch_us(state.canary_since))
        canary = cohort.where((cohort.at >= epoch_us(state.split_since)) & ~cohort.outside)
    return {
        "shadow": _arms(shadow, state, challenger_is_shadow=True),
        "canary": _arms(canary, state, challenger_is_shadow=False),
    }


def _arms(rows: Scored, state: RolloutState, *, challenger_is_shadow: bool) -> tuple[Scored, Scored]:
    return (
        rows.where((rows.version == state.champion) & ~rows.shadow),
        rows.where((rows.version == state.challenger) & (rows.shadow == challenger_is_shadow)),
    )


def _events(
    arms: dict[Stage, tuple[Scored, Scored]], state: RolloutState
) -> dict[str, tuple[Scored, Scored]]:
    """Select the rows that met an event, of both arms, by stage and event."""
    limit = state.policy.slow_ms
    found = {
        f"{stage}/errors": (a.where(~a.answered), b.where(~b.answered)) for stage, (a, b) in arms.items()
    }
    if limit is not None:
        a, b = arms["canary"]
        found["canary/slow"] = (a.where(a.latency_ms > limit), b.where(b.latency_ms > limit))
    return found


def _with_events(
    counts: ArmCounts, arms: tuple[Scored, Scored], events: dict[str, EventUnits], stage: Stage
) -> ArmCounts:
    """Add the requests of one cohort, and set how many units have met an event so far."""
    errors, slow = (events.get(f"{stage}/{event}", EventUnits()).counts for event in ("errors", "slow"))
    return ArmCounts(
        champion=counts.champion + len(arms[0]),
        challenger=counts.challenger + len(arms[1]),
        champion_errors=errors[0],
        challenger_errors=errors[1],
        champion_slow=slow[0],
        challenger_slow=slow[1],
        champion_unanswered=counts.champion_unanswered + int((~arms[0].answered).sum()),
        challenger_unanswered=counts.challenger_unanswered + int((~arms[1].answered).sum()),
    )


def count_assigned(rows: Scored, state: RolloutState, before: AssignedUnits) -> AssignedUnits:
    """Count the units of `rows` (in order of time) that were not counted before.

    Counting begins right after the challenger's first answer that comes ten seconds into the canary or later: replicas take
    a moment to follow the traffic, and units that the champion alone answered meanwhile are no evidence on the split. That
    answer is a stopping time, so each unit after it is on the canary with the declared chance. The rows of a request without
    a unit were assigned together, and count once.
    """
    rows = _of_the_split(rows, state)
    seen = np.frombuffer(before.seen, dtype="<i8")
    if not before.begun:
        answers = np.flatnonzero(rows.version == state.challenger)
        if not len(answers):
            return before
        seen = _hashes(rows.where(answers[:1]))
        rows = rows.where(np.arange(len(rows)) > answers[0])
    units, first = np.unique(_hashes(rows), return_index=True)
    new = ~np.isin(units, seen)
    room = max(0, MAX_UNITS - before.counts.champion - before.counts.challenger)
    index = np.sort(first[new])[:room]
    challengers = int((rows.version[index] == state.challenger).sum())
    counts = UnitCounts(
        champion=before.counts.champion + len(index) - challengers,
        challenger=before.counts.challenger + challengers,
    )
    known = np.union1d(seen, _hashes(rows.where(index))).astype("<i8")
    return AssignedUnits(counts=counts, begun=True, seen=known.tobytes())


def _of_the_split(rows: Scored, state: RolloutState) -> Scored:
    """Select what champion and canary answered since the canary began."""
    if state.canary_since is None:
        return rows.where(np.zeros(len(rows), dtype=bool))
    since = int(state.split_since.timestamp() * 1_000_000) + SETTLE_US
    arms = (rows.version == state.champion) | (rows.version == state.challenger)
    return rows.where(arms & ~rows.shadow & ~rows.outside & (rows.at >= since))


def _hashes(rows: Scored) -> npt.NDArray[np.int64]:
    return hash_strings(rows.unit)


def _index(at: datetime, policy: RolloutPolicy) -> int:
    return (at - EPOCH) // policy.cohort


def _start(index: int, policy: RolloutPolicy) -> datetime:
    return EPOCH + index * policy.cohort
