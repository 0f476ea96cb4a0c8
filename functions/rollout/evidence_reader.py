"""Reader of the evidence for one decision: the sums of every challenger, the traffic, and the registry, each read once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa

from functions.rollout.evidence.cohort_sums import ReadOutcomes, SumsStore, sum_cohorts
from functions.rollout.evidence.metrics import ReadMetric
from functions.rollout.evidence.sums import Evidence
from functions.rollout.judge.slo import slo_sums
from functions.rollout.state import RolloutState
from functions.rollout.traffic import CurrentTraffic, canary_share_of, champion_of


@dataclass
class _CachedRead:
    """Reader that caches the last span, so that all challengers are judged on the same rows."""

    read: ReadOutcomes
    last: tuple[datetime, datetime] | None = None
    table: pa.Table | None = None

    def __call__(self, start: datetime, end: datetime) -> pa.Table:
        if self.table is None or self.last != (start, end):
            self.last, self.table = (start, end), self.read(start, end)
        return self.table


def read_evidence(
    store: SumsStore,
    model: str,
    state: RolloutState,
    read: ReadOutcomes,
    read_metric: ReadMetric,
    traffic: CurrentTraffic,
    problems: Mapping[int, str],
    now: datetime,
) -> Evidence:
    """Read the evidence as of `now`. problems: by version, why a challenger cannot be served."""
    once, slos = _CachedRead(read), slo_sums(state.policy, read, now)
    return Evidence(
        **_evidence_fields(store, model, state, once, read_metric, traffic, problems, now),
        slos=slos,
        rivals={
            version: Evidence(
                **_evidence_fields(
                    store, model, state.only(version), once, read_metric, traffic, problems, now
                ),
                slos=slos,
            )
            for version in state.rivals
        },
    )


def _evidence_fields(
    store: SumsStore,
    model: str,
    state: RolloutState,
    read: ReadOutcomes,
    read_metric: ReadMetric,
    traffic: CurrentTraffic,
    problems: Mapping[int, str],
    now: datetime,
) -> dict[str, object]:
    sums = sum_cohorts(store, model, state, read, now, read_metric)
    return {
        "champion": champion_of(traffic),
        "challenger_problem": problems.get(state.challenger),
        "loss": sums.loss,
        "shadow": sums.shadow,
        "canary": sums.canary,
        "units": sums.units.counts,
        "canary_share": canary_share_of(traffic, state) if state.stage == "canary" else None,
        "metrics": sums.metrics,
    }
