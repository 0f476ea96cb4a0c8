"""Series of a healthy platform, and of one in which something goes wrong for a while, in promtool's notation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

STEP_S = 120
GOOD, BAD, AFTER = 45, 10, 35
"""Steps of two minutes: an hour and a half of health, twenty minutes of trouble, an hour of health and a bit."""

Phases = tuple[int, int, int]
Series = Callable[[Phases], str]


def _joined(runs: Sequence[tuple[float, float, int]]) -> str:
    """Write runs of (first value, growth a step, number of values)."""
    return " ".join(
        f"{start:g}{'+' if growth >= 0 else '-'}{abs(growth):g}x{count - 1}" for start, growth, count in runs
    )


def gauge(good: float, bad: float | None = None) -> Series:
    """A gauge that has one value, and another in the trouble."""
    worse = good if bad is None else bad
    return lambda phases: _joined([(good, 0, phases[0]), (worse, 0, phases[1]), (good, 0, phases[2])])


def counter(good: float, bad: float | None = None) -> Series:
    """A counter that grows by so much a step, and by another amount in the trouble."""

    def written(phases: Phases) -> str:
        value, runs = 0.0, []
        for growth, count in zip((good, good if bad is None else bad, good), phases, strict=True):
            runs.append((value, growth, count))
            value += growth * count
        return _joined(runs)

    return written


def gone() -> Series:
    """A gauge of one whose process is away in the trouble."""
    return lambda phases: f"1x{phases[0] - 1} stale _x{phases[1] - 1} 1x{phases[2]}"


MODEL = 'workspace="default",model="late"'
HELPER = 'workspace="default",model="helper",version="1",arm="champion"'
"""A language model: a whole answer takes seconds, its first token does not."""
DAY_S = 86_400.0
HEALTHY: Mapping[str, Series] = {
    'up{job="toque",instance="a:8000"}': gauge(1),
    'up{job="toque-haproxy",instance="a:9101"}': gauge(1),
    'toque_exporter_up{node="a"}': gauge(1),
    f'toque_predictor_responses_total{{{MODEL},status="200"}}': counter(500),
    f'toque_predictor_responses_total{{{MODEL},status="500"}}': counter(0.1),
    f'toque_predictor_latency_seconds_bucket{{{MODEL},version="1",arm="champion",le="0.25"}}': counter(499.8),
    f'toque_predictor_latency_seconds_bucket{{{MODEL},version="1",arm="champion",le="+Inf"}}': counter(500),
    f'toque_predictor_latency_seconds_count{{{MODEL},version="1",arm="champion"}}': counter(500),
    f'toque_predictor_latency_seconds_bucket{{{HELPER},le="0.25"}}': counter(0),
    f'toque_predictor_latency_seconds_bucket{{{HELPER},le="+Inf"}}': counter(300),
    f"toque_predictor_latency_seconds_count{{{HELPER}}}": counter(300),
    f'toque_generative_first_token_seconds_bucket{{{HELPER},le="2.5"}}': counter(299.9),
    f'toque_generative_first_token_seconds_bucket{{{HELPER},le="+Inf"}}': counter(300),
    f"toque_generative_first_token_seconds_count{{{HELPER}}}": counter(300),
    f'toque_predictor_logged_total{{node="a",{MODEL},outcome="dropped"}}': counter(0),
    f'toque_predictor_loads_total{{{MODEL},outcome="loaded"}}': counter(1),
    f'toque_predictor_loads_total{{{MODEL},outcome="failed"}}': counter(0),
    'toque_feature_freshness_seconds{workspace="default",view="weather"}': gauge(3_600),
    'toque_feature_fill_ratio{workspace="default",view="weather",feature="wind"}': gauge(0.99),
    'toque_stream_lag{workspace="default",source="clicks",partition="0"}': gauge(20),
    'toque_stream_rows_total{workspace="default",source="clicks"}': counter(12_000),
    'toque_stream_rejected_total{workspace="default",source="clicks"}': counter(12),
    'toque_stream_failures_total{workspace="default",source="clicks"}': counter(0),
    'toque_labels_received_total{workspace="default"}': counter(20),
    'toque_gateway_requests_total{route="/feedback",status="200"}': counter(20),
    'toque_gateway_requests_total{route="/feedback",status="500"}': counter(0),
    'toque_gateway_request_seconds_bucket{route="/feedback",le="2.5"}': counter(20),
    'toque_gateway_request_seconds_bucket{route="/feedback",le="10"}': counter(20),
    'toque_gateway_request_seconds_bucket{route="/feedback",le="+Inf"}': counter(20),
    'toque_gateway_request_seconds_count{route="/feedback"}': counter(20),
    'toque_haproxy_restarts_total{node="a"}': counter(0),
    'haproxy_server_http_responses_total{proxy="http-late",server="SERVE_PROXY_ACTOR-fallback-1"}': counter(
        0
    ),
    'toque_redis_up{node="a"}': gauge(1),
    'toque_store_requests_total{node="a",operation="get",outcome="ok"}': counter(100),
    'toque_store_requests_total{node="a",operation="get",outcome="unavailable"}': counter(0),
    'toque_store_requests_total{node="a",operation="create",outcome="exists"}': counter(10),
    'toque_store_requests_total{node="a",operation="put",outcome="forbidden"}': counter(0),
    'toque_store_request_seconds_bucket{node="a",le="1"}': counter(100),
    'toque_store_request_seconds_bucket{node="a",le="5"}': counter(100),
    'toque_store_request_seconds_bucket{node="a",le="+Inf"}': counter(100),
    'toque_store_request_seconds_count{node="a"}': counter(100),
    'toque_clock_skew_seconds{node="a"}': gauge(0.02),
    'toque_disk_free_bytes{node="a",folder="log"}': gauge(5e10),
    'toque_disk_size_bytes{node="a",folder="log"}': gauge(1e11),
    'toque_oom_kills_total{node="a"}': counter(0),
    'toque_log_backlog_records{node="a",workspace="default",kind="predictions"}': gauge(100),
    'toque_log_writers_missing{node="a",workspace="default"}': gauge(0),
    'toque_log_drain_lag_seconds{node="a",workspace="default",kind="predictions"}': gauge(15),
    'toque_ticker_leader{node="a"}': gauge(1),
    'toque_ticker_leader{node="b"}': gauge(0),
    'toque_schedule_lateness_seconds_count{workspace="default",schedule="drain"}': counter(1),
    'toque_schedule_lateness_seconds_bucket{workspace="default",schedule="drain",le="300.0"}': counter(1),
    'toque_schedule_skipped_ticks_total{workspace="default",schedule="drain"}': counter(0),
    'toque_dead_letters{node="a",workspace="default"}': gauge(0),
    'toque_head_up{node="a"}': gauge(1),
    'toque_application_healthy{node="a",application="late"}': gauge(1),
    'toque_application_healthy{node="a",application="gateway"}': gauge(1),
    'toque_replicas_pending{node="a",application="late",deployment="predictor"}': gauge(0),
    'toque_backup_timestamp_seconds{node="a"}': gauge(90 * DAY_S),
    'toque_expired_token_refusals_total{node="a",name="old-ci"}': counter(0),
    'DCGM_FI_DEV_XID_ERRORS{Hostname="gpu-7",gpu="0"}': gauge(13),  # of a program that read beyond its array
    'DCGM_FI_DEV_ROW_REMAP_FAILURE{Hostname="gpu-7",gpu="0"}': gauge(0),
    'DCGM_FI_DEV_ECC_DBE_VOL_TOTAL{Hostname="gpu-7",gpu="0"}': counter(0),
    'toque_token_expiry_timestamp_seconds{node="a",name="old-ci"}': gauge(0),  # ended long ago
    'toque_token_expiry_timestamp_seconds{node="a",name="robot"}': gauge(90 * DAY_S),
    'toque_access_refusals_total{node="a",status="401"}': counter(2),  # of scanners
    'toque_certificate_expiry_timestamp_seconds{node="a",file="redis.pem"}': gauge(90 * DAY_S),
}


@dataclass(frozen=True)
class Fault:
    """What goes wrong, the series that show it, and the alert that is to fire, and no other.

    within_s: how long it may take. phases: steps before, during and after.
    """

    alert: str
    series: Mapping[str, Series]
    within_s: int = 300
    severities: frozenset[str] = frozenset({"ticket"})
    phases: Phases = field(default=(GOOD, BAD, AFTER))


def _of(name: str) -> str:
    (found,) = (each for each in HEALTHY if each.startswith(name))
    return found


def _fault(alert: str, series: Mapping[str, Series], **more: object) -> Fault:
    return Fault(alert, {_of(name): values for name, values in series.items()}, **more)  # type: ignore[arg-type]


_PAGE, _BOTH = frozenset({"page"}), frozenset({"page", "ticket"})
_LONG = (GOOD, BAD, 210)  # until the slow burn's window of six hours has passed
_FAILING = f'toque_predictor_responses_total{{{MODEL},status="500"'
_QUICK = f'toque_predictor_latency_seconds_bucket{{{MODEL},version="1",arm="champion",le="0.25"'

FAULTS = (
    _fault(
        "ModelErrorBudgetBurns", {_FAILING: counter(0.1, 100)}, severities=_BOTH, within_s=600, phases=_LONG
    ),
    _fault(
        "ModelLatencyBudgetBurns",
        {_QUICK: counter(499.8, 200)},
        severities=_BOTH,
        within_s=1_080,
        phases=_LONG,
    ),
    _fault(
        "ModelLatencyBudgetBurns",
        {f'toque_generative_first_token_seconds_bucket{{{HELPER},le="2.5"': counter(299.9, 100)},
        severities=_BOTH,
        within_s=1_080,
        phases=_LONG,
    ),
    _fault("VersionDoesNotLoad", {f'toque_predictor_loads_total{{{MODEL},outcome="failed"': counter(0, 2)}),
    _fault("FeaturesStale", {"toque_feature_freshness_seconds": gauge(3_600, 90_000)}),
    _fault("FeatureFillLow", {"toque_feature_fill_ratio": gauge(0.99, 0.2)}, within_s=420),
    _fault("StreamLags", {"toque_stream_lag": gauge(20, 50_000)}, within_s=720),
    _fault(
        "StreamStands",
        {
            "toque_stream_lag": gauge(20, 2_000),
            "toque_stream_rows": counter(12_000, 0),
            "toque_stream_rejected": counter(12, 0),
        },
        within_s=720,
        severities=_PAGE,
    ),
    _fault("StreamStands", {"toque_stream_lag": gone()}, within_s=480, severities=_PAGE),
    _fault(
        "StreamStands",
        {
            "toque_stream_failures": counter(0, 24),
            "toque_stream_rows": counter(12_000, 0),
            "toque_stream_rejected": counter(12, 0),
            "toque_stream_lag": gauge(0),
        },
        within_s=900,
        severities=_PAGE,
    ),
    _fault("LabelsStopped", {"toque_labels": counter(20, 0)}, within_s=300, phases=(GOOD, 20, AFTER)),
    _fault("LabelsStopped", {"toque_labels": counter(6, 0)}, within_s=2_040, phases=(GOOD, 20, AFTER)),
    _fault(
        "GatewayErrors",
        {'toque_gateway_requests_total{route="/feedback",status="500"': counter(0, 40)},
        severities=_PAGE,
    ),
    _fault(
        "GatewaySlow",
        {'toque_gateway_request_seconds_bucket{route="/feedback",le="2.5"': counter(20, 10)},
    ),
    _fault("HaproxyDown", {'up{job="toque-haproxy"': gauge(1, 0)}, severities=_PAGE),
    _fault("HaproxyRestarted", {"toque_haproxy_restarts_total": counter(0, 0.2)}),
    _fault("PythonProxyAnswers", {"haproxy_server_http_responses_total": counter(0, 10)}),
    _fault(
        "PlatformUnseen",
        {
            'up{job="toque",': gone(),
            'toque_ticker_leader{node="a"': gone(),
            'toque_ticker_leader{node="b"': gone(),
            "toque_stream_lag": gone(),
        },
        within_s=720,
        severities=_PAGE,
    ),
    _fault("MetricsMissing", {"toque_exporter_up": gauge(1, 0)}, severities=_PAGE),
    _fault(  # whether a ticker leads and a stream is read is not known then
        "MetricsMissing",
        {
            'up{job="toque",': gauge(1, 0),
            'toque_ticker_leader{node="a"': gone(),
            'toque_ticker_leader{node="b"': gone(),
            "toque_stream_lag": gone(),
        },
        severities=_PAGE,
    ),
    _fault("RedisAway", {"toque_redis_up": gauge(1, 0)}, severities=_PAGE),
    _fault(
        "StoreFails",
        {'toque_store_requests_total{node="a",operation="get",outcome="unavailable"': counter(0, 30)},
        severities=_PAGE,
    ),
    _fault(
        "StoreFails",
        {'toque_store_requests_total{node="a",operation="put",outcome="forbidden"': counter(0, 30)},
        severities=_PAGE,
    ),
    _fault("StoreSlow", {'toque_store_request_seconds_bucket{node="a",le="1"': counter(100, 20)}),
    _fault("ClockSkewed", {"toque_clock_skew_seconds": gauge(0.02, -40)}),
    _fault("DiskFills", {"toque_disk_free_bytes": gauge(5e10, 1e9)}, severities=_PAGE),
    _fault("OutOfMemory", {"toque_oom_kills_total": counter(0, 0.2)}, severities=_PAGE),
    _fault("PredictionLogBacklog", {"toque_log_backlog_records": gauge(100, 1e6)}),
    _fault("PredictionsDropped", {"toque_predictor_logged_total": counter(0, 3)}, severities=_PAGE),
    _fault("LogWritersLost", {"toque_log_writers_missing": gauge(0, 1)}),
    _fault("DrainLags", {"toque_log_drain_lag_seconds": gauge(15, 4_000)}),
    _fault("NoLeader", {'toque_ticker_leader{node="a"': gauge(1, 0)}, severities=_PAGE),
    _fault(
        "NoLeader",
        {'toque_ticker_leader{node="a"': gone(), 'toque_ticker_leader{node="b"': gone()},
        severities=_PAGE,
    ),
    _fault("SchedulesMissed", {"toque_schedule_skipped_ticks": counter(0, 1)}),
    _fault("SchedulesMissed", {"toque_schedule_lateness_seconds_bucket": counter(1, 0)}),
    _fault("DeadLetters", {"toque_dead_letters": gauge(0, 2)}),
    _fault(
        "TokenExpires",
        {'toque_token_expiry_timestamp_seconds{node="a",name="robot"': gauge(90 * DAY_S, DAY_S)},
        within_s=4_000,
        phases=(GOOD, 60, AFTER),
    ),
    Fault(  # a process that counts none before its first refusal
        "TokenExpired",
        {'toque_expired_token_refusals_total{node="b",name="robot"}': lambda p: f"_x{p[0]} 1x{p[1]} stale"},
        phases=(GOOD, 4, AFTER),
    ),
    _fault("TokenExpired", {"toque_expired_token_refusals": counter(0, 2)}),
    _fault(
        "BackupStale",
        {"toque_backup": gauge(90 * DAY_S, -2 * DAY_S)},
        within_s=4_000,
        phases=(GOOD, 60, AFTER),
    ),
    _fault("HeadAway", {"toque_head_up": gauge(1, 0)}, severities=_PAGE),
    _fault(
        "ApplicationUnhealthy",
        {'toque_application_healthy{node="a",application="late"': gauge(1, 0)},
        severities=_PAGE,
    ),
    _fault("ReplicasPending", {"toque_replicas_pending": gauge(0, 2)}, within_s=1_080),
    _fault("CardFails", {"DCGM_FI_DEV_XID": gauge(13, 79)}),
    _fault("CardFails", {"DCGM_FI_DEV_ROW_REMAP": gauge(0, 1)}),
    _fault("CardFails", {"DCGM_FI_DEV_ECC": counter(0, 1)}),
    _fault("CertificateExpires", {"toque_certificate_expiry_timestamp_seconds": gauge(90 * DAY_S, DAY_S)}),
)
"""For each alert what raises it; `HEALTHY` raises none."""
