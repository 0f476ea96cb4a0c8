"""Names of the gauges that the leading ticker publishes, with their labels."""

from __future__ import annotations

from typing import NamedTuple

from prometheus_client import Metric
from prometheus_client.metrics_core import GaugeMetricFamily

__all__ = ["FAMILIES", "Families", "Family"]


class Family(NamedTuple):
    """Text and labels of a gauge."""

    text: str
    labels: tuple[str, ...] = ()


_WORKSPACE = ("workspace",)
_VIEW = ("workspace", "view")
_QUOTA = ("workspace", "team", "resource")
_BUDGET = ("workspace", "team", "budget")
_KIND = ("workspace", "kind")
_SCORE = ("workspace", "model", "version", "arm", "scorer")

FAMILIES: dict[str, Family] = {
    "toque_platform_readable": Family("Whether a part of what the ticker measures could be read.", ("part",)),
    "toque_token_expiry_timestamp_seconds": Family("When the tokens of a name have expired.", ("name",)),
    "toque_certificate_expiry_timestamp_seconds": Family("When a certificate expires.", ("file",)),
    "toque_backup_timestamp_seconds": Family("Moment that the newest whole backup holds; 0: there is none."),
    "toque_head_up": Family("Whether the head's Serve controller answers."),
    "toque_application_healthy": Family(
        "Whether a Serve application is neither unhealthy nor failed to deploy.", ("application",)
    ),
    "toque_replicas_pending": Family(
        "Replicas that a deployment asks for and that do not run yet.", ("application", "deployment")
    ),
    "toque_redis_up": Family("Whether Redis answers."),
    "toque_redis_ping_seconds": Family("Seconds of one PING."),
    "toque_redis_used_bytes": Family("Memory that Redis uses."),
    "toque_redis_limit_bytes": Family("Memory that Redis may use; 0: no bound."),
    "toque_dead_letters": Family("Durable invocations that were given up and wait for somebody.", _WORKSPACE),
    "toque_quota_used": Family("What the running experiments of a team occupy.", _QUOTA),
    "toque_quota_limit": Family("What the experiments of a team may occupy.", _QUOTA),
    "toque_budget_spent": Family("What a team's ended experiments used of a budget this month.", _BUDGET),
    "toque_budget_limit": Family("What a team's experiments may use in a month.", _BUDGET),
    "toque_false_alarms_expected": Family(
        "Most false alarms to expect of the drift tests of the last 30 days.", _WORKSPACE
    ),
    "toque_alarms_called_false": Family("Alarms that people called false, ever.", _WORKSPACE),
    "toque_log_writers_lost": Family("Writers of the log that vanished, ever.", _WORKSPACE),
    "toque_log_writers_missing": Family("Writers that vanished and did not come back.", _WORKSPACE),
    "toque_log_requests_lost_at_most": Family("Answered requests whose rows may be missing.", _WORKSPACE),
    "toque_log_waiting_records": Family("Records in Redis that are not in the tables.", _KIND),
    "toque_log_drain_lag_seconds": Family("Since when a record in Redis has waited for a drain.", _KIND),
    "toque_live_score_mean": Family("Mean score of the sampled answers of a version that is served.", _SCORE),
    "toque_live_score_lower": Family(
        "Lower end of the mean's 95 % interval, which holds at every look.", _SCORE
    ),
    "toque_live_score_upper": Family("Upper end of the same.", _SCORE),
    "toque_live_score_answers": Family("Answers that have the score.", _SCORE),
    "toque_feature_rows": Family("Rows of a view's offline table.", _VIEW),
    "toque_feature_freshness_seconds": Family(
        "Age of a view's newest row that was there when it was measured.", _VIEW
    ),
    "toque_feature_recent_rows": Family("Rows in the newest span of a view.", _VIEW),
    "toque_feature_coverage_ratio": Family(
        "Share of a view's recent keys that is online within its ttl.", _VIEW
    ),
    "toque_feature_fill_ratio": Family(
        "Share of recent rows that have a value of a feature.", (*_VIEW, "feature")
    ),
    "toque_feature_measurement_age_seconds": Family("Time since a view was measured.", _VIEW),
}


class Families:
    """Gauges that are being measured."""

    def __init__(self) -> None:
        self._found: dict[str, GaugeMetricFamily] = {}
        self._seen: set[tuple[str, ...]] = set()

    def add(self, name: str, value: float, *labels: str) -> None:
        """Add a value to a gauge of `FAMILIES`; of the same labels only the first counts."""
        family = FAMILIES[name]
        if name not in self._found:
            self._found[name] = GaugeMetricFamily(name, family.text, labels=list(family.labels))
        if (name, *labels) not in self._seen:
            self._seen.add((name, *labels))
            self._found[name].add_metric(list(labels), value)

    def metrics(self) -> list[Metric]:
        """List the gauges that have a value."""
        return list(self._found.values())
