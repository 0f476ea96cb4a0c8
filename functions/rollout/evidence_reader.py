"""Reader of the evidence for one decision: the sums of every challenger, the traffic, and the registry, each read once."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa
from redis import RedisError

from toque.functions.rollout.evidence.cohort_sums import ReadOutcomes, SumsStore, sum_cohorts
from toque.functions.rollout.evidence.late import late_rows
from toque.functions.rollout.evidence.live import LiveEvidence, ReadLive, live_evidence
from toque.functions.rollout.evidence.metrics import ReadMetric
from toque.functions.rollout.evidence.sums import Evidence
from toque.functions.rollout.judge.slo import slo_sums
from toque.functions.rollout.state import RolloutState
from toque.functions.rollout.traffic import CurrentTraffic, canary_share_of, champion_of

_logger = logging.getLogger(__name__)


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


@dataclass(frozen=True, slots=True)
class EvidenceReader:
    """Reader of the evidence of a model's rollouts.

    store: keeps the sums. read: logged predictions with labels. read_metric: tables of business metrics. read_live: counts of
    the last minutes; None: there are none.
    """

    store: SumsStore
    model: str
    read: ReadOutcomes
    read_metric: ReadMetric
    read_live: ReadLive | None = None

    def live(
        self, state: RolloutState, traffic: CurrentTraffic, problems: Mapping[int, str], now: datetime
    ) -> Evidence:
        """Read what can be known as of `now` without the log. problems: as of `evidence`."""

        def of(state: RolloutState) -> dict[str, Any]:
            return {
                "champion": champion_of(traffic),
                "challenger_problem": problems.get(state.challenger),
                "canary_share": canary_share_of(traffic, state) if state.stage == "canary" else None,
                "live": self._live(state, traffic, now),
            }

        rivals = {version: Evidence(**of(state.only(version))) for version in state.rivals}
        return Evidence(**of(state), rivals=rivals)

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
        cached = _CachedRead(self.read)
        slos = slo_sums(state.policy, self.read, now, challenger=state.challenger)

        def fields(state: RolloutState) -> dict[str, object]:
            sums = sum_cohorts(self.store, self.model, state, cached, now, self.read_metric)
            return {
                "champion": champion_of(traffic),
                "challenger_problem": problems.get(state.challenger),
                "loss": sums.loss,
                "shadow": sums.shadow,
                "canary": sums.canary,
                "units": sums.units.counts,
                "canary_share": canary_share_of(traffic, state) if state.stage == "canary" else None,
                "metrics": sums.metrics,
                "slos": slos,
                "live": self._live(state, traffic, now),
            }

        own = fields(state)  # first: rivals are judged on the rows that it read
        own["late"] = late_rows(self.store, self.model, state, self.read, now)
        rivals = {version: Evidence(**fields(state.only(version))) for version in state.rivals}
        return Evidence(**own, rivals=rivals)
