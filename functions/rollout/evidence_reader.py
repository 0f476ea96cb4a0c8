"""Reader of the evidence for one decision: the sums of every challenger, the traffic, and the registry, each read once.

A cohort is closed by the clock, and what comes later is not in its sums: rows of a node that was cut off, labels that took longer than
`label_delay`. Each is counted when it is closed and looked at once more, one cohort later: so much is known of what the sums leave
out. Where late labels differ from early ones, as complaints do, the loss is one of early labels.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from redis import RedisError

from toque.functions.monitoring.results import Cohorts
from toque.functions.rollout.evidence.cohort_sums import (
    ReadOutcomes,
    Sums,
    cohort_due,
    randomised_rows,
    sum_cohorts,
    unit_counts,
)
from toque.functions.rollout.evidence.live import LiveEvidence, ReadLive, live_evidence
from toque.functions.rollout.evidence.metrics import ReadMetric
from toque.functions.rollout.evidence.slots import KeptSums, SumsStore
from toque.functions.rollout.evidence.sums import Evidence, LateRows
from toque.functions.rollout.judge.slo import slo_sums
from toque.functions.rollout.state import RolloutState
from toque.functions.rollout.traffic import CurrentTraffic, canary_share_of, champion_of
from toque.registry import ObjectStore

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EvidenceReader:
    """Reader of the evidence of a model's rollouts.

    store: keeps the sums. read: logged predictions with labels. read_metric: tables of business metrics. read_live: counts of
    the last minutes; None: there are none.
    """

    store: ObjectStore
    model: str
    read: ReadOutcomes
    read_metric: ReadMetric
    read_live: ReadLive | None = None

    def live(
        self, state: RolloutState, traffic: CurrentTraffic, problems: Mapping[int, str], now: datetime
    ) -> Evidence:
        """Read what can be known as of `now` without the log. problems: as of `evidence`."""
        states = [state, *(state.only(version) for version in state.rivals)]
        own, *others = (self._known(one, traffic, problems, now) for one in states)
        rivals = {version: Evidence(**one) for version, one in zip(state.rivals, others, strict=True)}
        return Evidence(**own, rivals=rivals)

    def _known(
        self, state: RolloutState, traffic: CurrentTraffic, problems: Mapping[int, str], now: datetime
    ) -> dict[str, Any]:
        """Fields of the evidence on one challenger that need no log."""
        return {
            "champion": champion_of(traffic),
            "challenger_problem": problems.get(state.challenger),
            "canary_share": canary_share_of(traffic, state) if state.stage == "canary" else None,
            "live": self._live(state, traffic, now),
        }

    def _live(self, state: RolloutState, traffic: CurrentTraffic, now: datetime) -> LiveEvidence | None:
        if self.read_live is None:
            return None
        try:
            return live_evidence(self.read_live, self.model, state, traffic, now, store=self.store)
        except (RedisError, OSError) as error:
            _logger.warning("%s: nothing is known of the last minutes: %s", self.model, error)
            return None

    def evidence(
        self, state: RolloutState, traffic: CurrentTraffic, problems: Mapping[int, str], now: datetime
    ) -> Evidence:
        """Read the evidence as of `now`. problems: by version, why a challenger cannot be served."""
        slos = slo_sums(state.policy.slos, self.store, self.model, now, challenger=state.challenger)
        states = [state, *(state.only(version) for version in state.rivals)]
        sums = sum_cohorts(self.store, self.model, states, self.read, now, self.read_metric)
        late = late_rows(self.store, self.model, state, self.read, now)

        def fields(state: RolloutState, sums: Sums) -> dict[str, Any]:
            return self._known(state, traffic, problems, now) | {
                "loss": sums.whole.loss,
                "shadow": sums.whole.shadow,
                "canary": sums.split.canary,
                "units": unit_counts(sums.split.units),
                "metrics": sums.split.metrics,
                "slos": slos,
            }

        own, *others = (fields(*pair) for pair in zip(states, sums, strict=True))
        rivals = {version: Evidence(**one) for version, one in zip(state.rivals, others, strict=True)}
        return Evidence(**own, late=late, rivals=rivals)


class _Looks(KeptSums):
    """State of the looks at closed cohorts. next_cohort: first one that has not been closed; closed_rows: of the one before it, when it was closed."""

    next_cohort: int
    closed_rows: int | None = None
    late: LateRows = LateRows()


def late_rows(
    store: SumsStore, model: str, state: RolloutState, read: ReadOutcomes, now: datetime
) -> LateRows:
    """Count what came too late for the cohorts that were closed as of `now`; the log is read once for each cohort.

    The looks are kept in the store under `rollouts/{model}/evidence/`. Each is at a cohort that is due, and once more at the one
    before; what was closed long ago is not read for it.
    """
    key = f"rollouts/{model}/evidence/{state.rollout:08d}-late.json"
    grid, delay, due = Cohorts(state.policy.cohort), state.policy.label_delay, cohort_due(now, state.policy)
    begun = looks = _Looks.find(store, key) or _Looks(next_cohort=max(grid.index(state.started_at), due - 1))
    for index in range(looks.next_cohort, due):
        middle, start = grid.start(index), max(grid.start(index - 1), state.started_at)
        rows = randomised_rows(read(start, grid.start(index + 1)))
        rows = rows.filter(pc.invert(rows["shadow"]))
        is_before = pc.less(rows["predicted_at"], pa.scalar(middle, pa.timestamp("us", "UTC")))
        late, closed_rows = looks.late, rows.filter(pc.invert(is_before)).num_rows
        if looks.closed_rows is not None:
            late += _late_in(rows.filter(is_before), middle + delay, looks.closed_rows)
        looks = _Looks(next_cohort=index + 1, closed_rows=closed_rows, late=late)
    if looks is not begun:
        looks.put(store, key)
    return looks.late


def _late_in(rows: pa.Table, deadline: datetime, closed_rows: int) -> LateRows:
    """Count one cohort that is looked at again. closed_rows: when it was closed, at `deadline`."""
    labelled = rows.filter(pc.is_valid(rows["label"]))
    late = 0
    if "received_at" in rows.schema.names:
        after = pc.greater(labelled["received_at"], pa.scalar(deadline, pa.timestamp("us", "UTC")))
        late = int(pc.sum(after).as_py() or 0)
    return LateRows(
        cohorts=1,
        rows=rows.num_rows,
        late_rows=max(0, rows.num_rows - closed_rows),
        labels=labelled.num_rows,
        late_labels=late,
    )
