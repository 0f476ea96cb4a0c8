"""Prometheus gauges of the platform's state in the store, Redis and Serve, which the leading ticker measures for all.

They are published as a whole (`toque.clusters.telemetry.metrics.publish`), since a view, a token or a team may be gone the next
time. Each part that cannot be read is left out, and `toque_platform_readable` says which.

While the head is away, a question to Serve's controller, which runs there, may wait for as long as the head is away; so it is
asked in a thread of its own, at most one at a time, and an answer that is late counts as none.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from cryptography import x509
from prometheus_client import Metric

from toque.clusters.redis_clients import RedisAddress, open_redis
from toque.functions.features.jobs import latest_feature_health
from toque.functions.maintenance.backup import last_backup
from toque.functions.monitoring.budget import budget_journal
from toque.functions.monitoring.language.scores import kept_means
from toque.functions.prediction_log import losses_of
from toque.functions.prediction_log.writing.stream import Stream
from toque.functions.runtime.context import Context
from toque.functions.runtime.durable.invocation import ledger_of
from toque.functions.runtime.durable.ledger import DeadLetters
from toque.functions.runtime.durable.slots import QuotaSlots
from toque.ray_apps.published import Families
from toque.registry import Access

MOST_TOKENS = 200
EXPIRED_FOR = timedelta(days=7)
LOOK_BACK = timedelta(days=2)  # an earlier measurement of features says nothing about now
_KINDS = ("predictions", "labels")
_FEATURES: Mapping[str, str] = {
    "rows": "toque_feature_rows",
    "freshness_s": "toque_feature_freshness_seconds",
    "recent_rows": "toque_feature_recent_rows",
    "coverage": "toque_feature_coverage_ratio",
    "fill": "toque_feature_fill_ratio",
}
_CERTIFICATES = frozenset({"ssl_certfile", "ssl_ca_certs"})
_logger = logging.getLogger(__name__)


class PlatformSeries:
    """Measures the platform of a context.

    in_workspace: gives the context of a workspace. serve: the cluster's applications, None outside a cluster.
    """

    def __init__(
        self,
        used: Context,
        access: Access,
        in_workspace: Callable[[str], Context],
        *,
        serve: ServeSeries | None = None,
    ) -> None:
        self._used, self._access, self._in_workspace, self._serve = used, access, in_workspace, serve
        self._workspaces: dict[str, _Workspace] = {}

    def measure(self) -> list[Metric]:
        """Measure the platform once, and each workspace."""
        families = Families()
        self._guarded(families, "tokens", self._tokens)
        self._guarded(families, "certificates", self._certificates)
        self._guarded(families, "backups", self._backups)
        if self._serve is not None:
            self._guarded(families, "applications", self._serve.measure)
        if self._used.redis_url is not None:
            self._guarded(families, "redis", self._redis)
        self._guarded(families, "workspaces", self._each_workspace)
        return families.metrics()

    def _guarded(self, families: Families, part: str, measure: Callable[[Families], None]) -> None:
        try:
            measure(families)
        except Exception as error:  # noqa: BLE001  # whatever a store or Redis that is away raises
            _logger.info("series of %s are missing: %s", part, error)
            families.add("toque_platform_readable", 0.0, part)
        else:
            families.add("toque_platform_readable", 1.0, part)

    def _each_workspace(self, families: Families) -> None:
        names = [each.name for each in self._access.known_workspaces()]
        self._workspaces = {name: found for name, found in self._workspaces.items() if name in names}
        for name in names:
            if name not in self._workspaces:
                self._workspaces[name] = _Workspace(self._in_workspace(name), self._client)
            for part, measure in self._workspaces[name].parts():
                self._guarded(families, f"{part} of {name}", measure)

    def _tokens(self, families: Families) -> None:
        now = datetime.now(UTC)
        ends = sorted(
            (token.expires_at, token.name)
            for token in self._access.list_tokens()
            if token.expires_at is not None
            and token.revoked_at is None
            and token.expires_at > now - EXPIRED_FOR
        )
        soonest: dict[str, datetime] = {}
        for at, name in reversed(ends):  # of a name, the token that lasts longest replaces the others
            soonest.setdefault(name, at)
        for name, at in sorted(soonest.items(), key=lambda each: each[1])[:MOST_TOKENS]:
            families.add("toque_token_expiry_timestamp_seconds", at.timestamp(), name)

    def _backups(self, families: Families) -> None:
        newest = last_backup(self._used.store)
        families.add("toque_backup_timestamp_seconds", 0.0 if newest is None else newest.timestamp())

    def _certificates(self, families: Families) -> None:
        settings = RedisAddress.of(self._used.redis_url).settings if self._used.redis_url else {}
        for file in sorted({str(value) for name, value in settings.items() if name in _CERTIFICATES}):
            for ends in _expiries(Path(file)):
                families.add("toque_certificate_expiry_timestamp_seconds", ends.timestamp(), file)

    @cached_property
    def _client(self) -> Any:
        return None if self._used.redis_url is None else open_redis(self._used.redis_url, patience_s=0.0)

    def _redis(self, families: Families) -> None:
        begun = time.perf_counter()
        try:
            self._client.ping()
        except Exception:
            families.add("toque_redis_up", 0.0)
            raise
        families.add("toque_redis_up", 1.0)
        families.add("toque_redis_ping_seconds", time.perf_counter() - begun)
        memory = self._client.info("memory")
        if "used_memory" in memory:  # a Cluster answers by node
            families.add("toque_redis_used_bytes", memory["used_memory"])
            families.add("toque_redis_limit_bytes", memory.get("maxmemory", 0))


class _Workspace:
    """Measures the state of one workspace."""

    def __init__(self, used: Context, client: Any) -> None:
        self._used, self._client, name = used, client, used.workspace
        self._dead = DeadLetters(used.store, actor=used.actor)
        self._losses = losses_of(used)
        self._alarm_budget = budget_journal(used)
        self._quota = QuotaSlots(ledger_of(used), workspace=used.workspace, prices=used.prices)
        self._name = name
        self._lags = {kind: Lag() for kind in _KINDS}

    def parts(self) -> Iterator[tuple[str, Callable[[Families], None]]]:
        """List what is measured, each for itself."""
        yield "features", self._features
        yield "functions", self._functions
        yield "losses", self._lost
        yield "false alarms", self._false_alarms
        yield "scores", self._scores
        if self._client is not None:
            yield "log", self._log

    def _functions(self, families: Families) -> None:
        families.add("toque_dead_letters", len(self._dead.all()), self._name)
        for team, resource, used, limit in self._quota.usage():
            families.add("toque_quota_used", used, self._name, team, resource)
            if limit is not None:
                families.add("toque_quota_limit", limit, self._name, team, resource)
        for team, budget, spent, limit in self._quota.spent():
            families.add("toque_budget_spent", spent, self._name, team, budget)
            families.add("toque_budget_limit", limit, self._name, team, budget)

    def _lost(self, families: Families) -> None:
        lost = self._losses.refresh()
        families.add("toque_log_writers_lost", lost.writers, self._name)
        families.add("toque_log_writers_missing", len(lost.standing), self._name)
        families.add("toque_log_requests_lost_at_most", lost.requests_at_most, self._name)

    def _false_alarms(self, families: Families) -> None:
        state = self._alarm_budget.refresh()
        families.add(
            "toque_false_alarms_expected", state.expected_a_month(self._used.clock().date()), self._name
        )
        families.add("toque_alarms_called_false", len(state.called_false), self._name)

    def _log(self, families: Families) -> None:
        for kind in _KINDS:
            states = Stream(self._client, kind, workspace=self._name).states()
            shipped, drained = sum(each.shipped for each in states), sum(each.drained for each in states)
            families.add("toque_log_waiting_records", max(0, shipped - drained), self._name, kind)
            families.add(
                "toque_log_drain_lag_seconds", self._lags[kind].at(shipped, drained), self._name, kind
            )

    def _scores(self, families: Families) -> None:
        for model, means in kept_means(self._used.store):
            for each in means:
                labels = (self._name, model, str(each.version), each.arm, each.scorer)
                families.add("toque_live_score_mean", each.mean, *labels)
                families.add("toque_live_score_lower", each.lower, *labels)
                families.add("toque_live_score_upper", each.upper, *labels)
                families.add("toque_live_score_answers", each.answers, *labels)

    def _features(self, families: Families) -> None:
        now = self._used.clock()
        for row in latest_feature_health(self._used.store, since=now - LOOK_BACK):
            labels = [self._name, row["view"]] + ([row["feature"]] if row["metric"] == "fill" else [])
            since_s = (now - row["measured_at"]).total_seconds()
            families.add("toque_feature_measurement_age_seconds", since_s, *labels[:2])
            if row["metric"] in _FEATURES and row["value"] is not None:
                older_s = since_s if row["metric"] == "freshness_s" else 0.0
                families.add(_FEATURES[row["metric"]], row["value"] + older_s, *labels)


class Lag:
    """Seconds that a reader of a growing log is behind: since when it has not had all that there was.

    clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends: deque[tuple[float, int]] = deque(maxlen=10_000)

    def at(self, written: int, read: int) -> float:
        """Seconds since the oldest record that is not read was seen first."""
        now = self._clock()
        while self._ends and self._ends[0][1] <= read:
            self._ends.popleft()
        if written > read and (not self._ends or self._ends[-1][1] < written):
            self._ends.append((now, written))
        return now - self._ends[0][0] if self._ends else 0.0


def _expiries(file: Path) -> Iterable[datetime]:
    """Read when the certificates of a file end. Raises: OSError, ValueError."""
    return [each.not_valid_after_utc for each in x509.load_pem_x509_certificates(file.read_bytes())]


_ILL = frozenset({"UNHEALTHY", "DEPLOY_FAILED"})
_PENDING = frozenset({"STARTING", "RECOVERING", "PENDING_MIGRATION"})


class ServeSeries:
    """Measures the applications of Serve.

    applications: asks for their statuses by name, by default the cluster's. patience_s: how long an answer may take.
    """

    def __init__(
        self, applications: Callable[[], Mapping[str, Any]] | None = None, *, patience_s: float = 5.0
    ) -> None:
        self._ask = applications or _of_the_cluster
        self._patience_s = patience_s
        self._question: _Question | None = None

    def measure(self, families: Families) -> None:
        """Measure whether the head answers, and what its controller says of the applications. Raises: TimeoutError; what asking raises."""
        if self._question is None or not self._question.thread.is_alive():
            self._question = _Question(self._ask)
        try:
            applications = self._question.answer(self._patience_s)
        except Exception:
            families.add("toque_head_up", 0.0)
            raise
        families.add("toque_head_up", 1.0)
        for name, application in applications.items():
            families.add("toque_application_healthy", float(application.status not in _ILL), name)
            for deployment, overview in application.deployments.items():
                pending = sum(count for state, count in overview.replica_states.items() if state in _PENDING)
                families.add("toque_replicas_pending", pending, name, deployment)


class _Question:
    """One question to Serve's controller, asked in a thread that no exit of the process waits for."""

    def __init__(self, ask: Callable[[], Mapping[str, Any]]) -> None:
        self._applications: Mapping[str, Any] = {}
        self._error: Exception | None = None
        self.thread = threading.Thread(target=self._run, args=(ask,), daemon=True, name="serve-status")
        self.thread.start()

    def answer(self, patience_s: float) -> Mapping[str, Any]:
        """Wait for the controller's answer. Raises: TimeoutError if it is late; what the question raised."""
        self.thread.join(patience_s)
        if self.thread.is_alive():
            raise TimeoutError(f"Serve's controller does not answer within {patience_s:g} s")
        if self._error is not None:
            raise self._error
        return self._applications

    def _run(self, ask: Callable[[], Mapping[str, Any]]) -> None:
        try:
            self._applications = ask()
        except Exception as error:  # noqa: BLE001  # raised in `answer`
            self._error = error


def _of_the_cluster() -> Mapping[str, Any]:
    from ray import serve  # late: seconds, and only a cluster has it

    return serve.status().applications


__all__ = ["PlatformSeries", "ServeSeries"]
