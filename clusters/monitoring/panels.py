"""Lists the panels of each Grafana dashboard: what is shown, in which unit, by which queries of Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["DASHBOARDS", "Dashboard", "Panel"]


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart of a dashboard. unit: one of Grafana's; queries: each with the legend of its lines.

    may_be_empty: without a failure, or without what it is about (a pool, a training), there is nothing to show.
    """

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    meaning: str = ""
    kind: Literal["timeseries", "stat", "bargauge"] = "timeseries"
    may_be_empty: bool = False


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One dashboard, which answers one question. variables: name of a label, and a series that has it."""

    name: str
    title: str
    question: str
    rows: tuple[tuple[str, tuple[Panel, ...]], ...]
    variables: tuple[tuple[str, str], ...] = ()

    def panels(self) -> Iterator[Panel]:
        """Go through the panels of all rows."""
        for _, row in self.rows:
            yield from row


_MODEL = '{workspace=~"$workspace",model=~"$model"}'
_WORKSPACE = '{workspace=~"$workspace"}'
_RATE = "[$__rate_interval]"
_OF_MODELS = (("workspace", "toque_predictor_responses_total"), ("model", "toque_predictor_responses_total"))
_ARMS = "workspace, model, version, arm"
_ARM = "{{model}}@{{version}} {{arm}}"


def _rate(series: str, *, by: str, where: str = "") -> str:
    return f"sum by ({by}) (rate({series}{where}{_RATE}))"


def _quantile(q: float, series: str, *, by: str, where: str = "") -> str:
    return f"histogram_quantile({q}, sum by (le, {by}) (rate({series}_bucket{where}{_RATE})))"


def _share(part: str, whole: str) -> str:
    return f"({part}) / ({whole})"


_PLATFORM: Final = Dashboard(
    "platform",
    "the platform",
    "Does everything run, and what is close to its bound?",
    (
        (
            "Doors",
            (
                Panel(
                    "Answers of models",
                    "reqps",
                    (
                        (
                            _rate("toque_predictor_responses_total", by="workspace, status"),
                            "{{workspace}} {{status}}",
                        ),
                    ),
                ),
                Panel(
                    "Answers of the gateway",
                    "reqps",
                    ((_rate("toque_gateway_requests_total", by="status"), "{{status}}"),),
                ),
                Panel(
                    "Latency of the gateway, 95 %",
                    "s",
                    ((_quantile(0.95, "toque_gateway_request_seconds", by="route"), "{{route}}"),),
                ),
                Panel(
                    "Requests that were refused",
                    "reqps",
                    ((_rate("toque_access_refusals_total", by="status"), "{{status}}"),),
                    "401: no valid token. 403: not allowed. 429: over a limit.",
                    may_be_empty=True,
                ),
                Panel(
                    "Nodes whose series are here",
                    "bool_yes_no",
                    (("toque_exporter_up", "{{node}}"),),
                    kind="stat",
                ),
                Panel("What runs", "none", (("toque_build_info", "{{version}}, Ray {{ray}}"),), kind="stat"),
            ),
        ),
        (
            "Memory: store and Redis",
            (
                Panel(
                    "Requests to the store",
                    "reqps",
                    (
                        (
                            _rate("toque_store_requests_total", by="operation, outcome"),
                            "{{operation}} {{outcome}}",
                        ),
                    ),
                ),
                Panel(
                    "Latency of the store, 95 %",
                    "s",
                    ((_quantile(0.95, "toque_store_request_seconds", by="operation"), "{{operation}}"),),
                ),
                Panel(
                    "Latency of Redis, 99 %",
                    "s",
                    ((_quantile(0.99, "toque_redis_command_seconds", by="node"), "{{node}}"),),
                ),
                Panel(
                    "Memory of Redis",
                    "bytes",
                    (("max(toque_redis_used_bytes)", "used"), ("max(toque_redis_limit_bytes) > 0", "limit")),
                ),
                Panel("Redis answers", "bool_yes_no", (("toque_redis_up", "{{node}}"),), kind="stat"),
                Panel(
                    "Failures of Redis",
                    "reqps",
                    ((_rate("toque_redis_failures_total", by="error"), "{{error}}"),),
                    may_be_empty=True,
                ),
            ),
        ),
        (
            "Prediction log",
            (
                Panel(
                    "Records written, shipped, drained",
                    "cps",
                    (
                        (_rate("toque_log_written_records_total", by="kind"), "written {{kind}}"),
                        (_rate("toque_log_shipped_records_total", by="kind"), "shipped {{kind}}"),
                        (_rate("toque_log_drained_records_total", by="kind"), "drained {{kind}}"),
                    ),
                ),
                Panel(
                    "Records that Redis does not have",
                    "short",
                    (("sum by (node, kind) (toque_log_backlog_records)", "{{node}} {{kind}}"),),
                    "A node that is lost takes them with it.",
                ),
                Panel(
                    "Drain lag",
                    "s",
                    (("max by (workspace) (toque_log_drain_lag_seconds)", "{{workspace}}"),),
                    "Age of the oldest record that waits for its table.",
                ),
            ),
        ),
        (
            "Machines",
            (
                Panel(
                    "Resident memory",
                    "bytes",
                    (("sum by (node, role) (toque_process_resident_bytes)", "{{node}} {{role}}"),),
                ),
                Panel(
                    "Open files",
                    "short",
                    (("sum by (node, role) (toque_process_open_files)", "{{node}} {{role}}"),),
                ),
                Panel(
                    "Tickers that lead",
                    "none",
                    (("max(toque_ticker_leader)", "leaders"),),
                    "One, in a platform that works.",
                    kind="stat",
                ),
            ),
        ),
    ),
)

_MODELS: Final = Dashboard(
    "model",
    "a model",
    "Who answers, how fast, and what goes wrong?",
    (
        (
            "Answers",
            (
                Panel(
                    "Requests by arm",
                    "reqps",
                    ((_rate("toque_predictor_requests_total", by=_ARMS, where=_MODEL), _ARM),),
                ),
                Panel(
                    "Share of errors",
                    "percentunit",
                    (
                        (
                            _share(
                                _rate(
                                    "toque_predictor_responses_total",
                                    by="workspace, model",
                                    where=_MODEL[:-1] + ',status=~"5.."}',
                                ),
                                _rate("toque_predictor_responses_total", by="workspace, model", where=_MODEL),
                            ),
                            "{{model}}",
                        ),
                    ),
                    may_be_empty=True,
                ),
                Panel(
                    "Errors by class",
                    "reqps",
                    (
                        (
                            _rate(
                                "toque_predictor_errors_total", by="model, version, arm, class", where=_MODEL
                            ),
                            f"{_ARM} {{{{class}}}}",
                        ),
                    ),
                    may_be_empty=True,
                ),
                Panel(
                    "Latency: half and 99 %",
                    "s",
                    (
                        (
                            _quantile(0.5, "toque_predictor_latency_seconds", by=_ARMS, where=_MODEL),
                            f"{_ARM} 50 %",
                        ),
                        (
                            _quantile(0.99, "toque_predictor_latency_seconds", by=_ARMS, where=_MODEL),
                            f"{_ARM} 99 %",
                        ),
                    ),
                ),
                Panel(
                    "Answers with a value that is no finite number",
                    "reqps",
                    ((_rate("toque_predictor_missing_answers_total", by=_ARMS, where=_MODEL), _ARM),),
                ),
                Panel(
                    "Predictions that were not logged",
                    "reqps",
                    (
                        (
                            _rate(
                                "toque_predictor_logged_total",
                                by="model, outcome",
                                where=_MODEL[:-1] + ',outcome!="written"}',
                            ),
                            "{{model}} {{outcome}}",
                        ),
                    ),
                    may_be_empty=True,
                ),
            ),
        ),
        (
            "Replicas",
            (
                Panel(
                    "In flight and queued",
                    "short",
                    (
                        (f"sum by (model) (toque_predictor_in_flight{_MODEL})", "{{model}} in flight"),
                        (f"sum by (model) (toque_predictor_queued{_MODEL})", "{{model}} queued"),
                    ),
                ),
                Panel(
                    "Rows in a batch",
                    "short",
                    (
                        (
                            _share(
                                _rate("toque_predictor_batch_rows_total", by="model", where=_MODEL),
                                _rate("toque_predictor_batches_total", by="model", where=_MODEL),
                            ),
                            "{{model}}",
                        ),
                    ),
                ),
                Panel(
                    "Versions that can answer, over all replicas",
                    "short",
                    ((f"sum by (model) (toque_predictor_loaded_versions{_MODEL})", "{{model}}"),),
                ),
                Panel(
                    "Loads of versions",
                    "cps",
                    (
                        (
                            _rate("toque_predictor_loads_total", by="model, outcome", where=_MODEL),
                            "{{model}} {{outcome}}",
                        ),
                    ),
                ),
                Panel(
                    "Models that pools load and evict",
                    "cps",
                    (
                        ("sum by (pool) (rate(toque_pool_loads_total" + _RATE + "))", "{{pool}} loads"),
                        (
                            "sum by (pool) (rate(toque_pool_evictions_total" + _RATE + "))",
                            "{{pool}} evictions",
                        ),
                    ),
                    may_be_empty=True,
                ),
                Panel(
                    "Requests that took Serve's Python proxy",
                    "reqps",
                    (
                        (
                            _rate("toque_predictor_indirect_requests_total", by="model", where=_MODEL),
                            "{{model}}",
                        ),
                    ),
                    may_be_empty=True,
                ),
            ),
        ),
    ),
    _OF_MODELS,
)

_ROLLOUTS: Final = Dashboard(
    "rollout",
    "rollouts",
    "Is the new version worse than the old one, right now?",
    (
        (
            "Arms side by side",
            (
                Panel(
                    "Share of requests",
                    "percentunit",
                    (
                        (
                            _rate("toque_predictor_requests_total", by=_ARMS, where=_MODEL)
                            + " / on (workspace, model) group_left () "
                            + _rate("toque_predictor_requests_total", by="workspace, model", where=_MODEL),
                            _ARM,
                        ),
                    ),
                ),
                Panel(
                    "Share of failed requests",
                    "percentunit",
                    (
                        (
                            _share(
                                _rate("toque_predictor_errors_total", by=_ARMS, where=_MODEL),
                                _rate("toque_predictor_requests_total", by=_ARMS, where=_MODEL),
                            ),
                            _ARM,
                        ),
                    ),
                    "Guards of a rollout judge the counts themselves; see docs/rollout.md.",
                    may_be_empty=True,
                ),
                Panel(
                    "Latency, half",
                    "s",
                    ((_quantile(0.5, "toque_predictor_latency_seconds", by=_ARMS, where=_MODEL), _ARM),),
                ),
                Panel(
                    "Share of answers that are no finite number",
                    "percentunit",
                    (
                        (
                            _share(
                                _rate("toque_predictor_missing_answers_total", by=_ARMS, where=_MODEL),
                                _rate("toque_predictor_requests_total", by=_ARMS, where=_MODEL),
                            ),
                            _ARM,
                        ),
                    ),
                ),
                Panel(
                    "Copies for shadows",
                    "reqps",
                    (
                        (
                            _rate("toque_predictor_shadows_total", by="model, outcome", where=_MODEL),
                            "{{model}} {{outcome}}",
                        ),
                    ),
                    may_be_empty=True,
                ),
                Panel(
                    "Labels received",
                    "cps",
                    (
                        (
                            _rate("toque_labels_received_total", by="workspace", where=_WORKSPACE),
                            "{{workspace}}",
                        ),
                    ),
                    "Without labels, only errors, latency and missing answers are judged.",
                    may_be_empty=True,
                ),
                Panel(
                    "Delay of labels, half",
                    "s",
                    (
                        (
                            _quantile(0.5, "toque_label_delay_seconds", by="workspace", where=_WORKSPACE),
                            "{{workspace}}",
                        ),
                    ),
                    may_be_empty=True,
                ),
            ),
        ),
    ),
    _OF_MODELS,
)

_VIEW = '{workspace=~"$workspace",view=~"$view"}'
_FEATURES: Final = Dashboard(
    "features",
    "features",
    "Are the features fresh, full and found?",
    (
        (
            "Views",
            (
                Panel(
                    "Age of the newest row",
                    "s",
                    (
                        (
                            f"toque_feature_freshness_seconds{_VIEW} + (time() - toque_feature_measured_timestamp_seconds{_VIEW})",
                            "{{view}}",
                        ),
                    ),
                ),
                Panel("Rows of the table", "short", ((f"toque_feature_rows{_VIEW}", "{{view}}"),)),
                Panel(
                    "Share of recent keys that are online",
                    "percentunit",
                    ((f"toque_feature_coverage_ratio{_VIEW}", "{{view}}"),),
                    may_be_empty=True,
                ),
                Panel(
                    "Share of recent rows with a value",
                    "percentunit",
                    ((f"toque_feature_fill_ratio{_VIEW}", "{{view}} {{feature}}"),),
                ),
            ),
        ),
        (
            "Look-ups by key",
            (
                Panel(
                    "Latency of a look-up: half and 99 %",
                    "s",
                    (
                        (_quantile(0.5, "toque_features_lookup_seconds", by="model"), "{{model}} 50 %"),
                        (_quantile(0.99, "toque_features_lookup_seconds", by="model"), "{{model}} 99 %"),
                    ),
                ),
                Panel(
                    "Rows looked up",
                    "cps",
                    ((_rate("toque_features_lookup_rows_total", by="model"), "{{model}}"),),
                ),
                Panel(
                    "Values that were not found",
                    "cps",
                    ((_rate("toque_features_missing_values_total", by="model"), "{{model}}"),),
                ),
            ),
        ),
    ),
    (("workspace", "toque_feature_rows"), ("view", "toque_feature_rows")),
)

_TRAINING: Final = Dashboard(
    "training",
    "functions and training",
    "What runs, what waits, what failed, and does the loss fall?",
    (
        (
            "Functions",
            (
                Panel(
                    "Runs by outcome",
                    "cps",
                    (
                        (
                            _rate("toque_function_runs_total", by="function, outcome", where=_WORKSPACE),
                            "{{function}} {{outcome}}",
                        ),
                    ),
                ),
                Panel(
                    "Time of a run, 95 %",
                    "s",
                    (
                        (
                            _quantile(0.95, "toque_function_run_seconds", by="function", where=_WORKSPACE),
                            "{{function}}",
                        ),
                    ),
                ),
                Panel(
                    "Time in the queue, 95 %",
                    "s",
                    (
                        (
                            _quantile(0.95, "toque_function_queue_seconds", by="function", where=_WORKSPACE),
                            "{{function}}",
                        ),
                    ),
                ),
                Panel(
                    "Waiting and running",
                    "short",
                    (
                        (f"sum by (workspace) (toque_function_waiting{_WORKSPACE})", "{{workspace}} waiting"),
                        (f"sum by (workspace) (toque_function_workers{_WORKSPACE})", "{{workspace}} running"),
                    ),
                ),
                Panel(
                    "Lateness of schedules, 95 %",
                    "s",
                    (
                        (
                            _quantile(
                                0.95, "toque_schedule_lateness_seconds", by="schedule", where=_WORKSPACE
                            ),
                            "{{schedule}}",
                        ),
                    ),
                ),
                Panel("Dead letters", "short", ((f"toque_dead_letters{_WORKSPACE}", "{{workspace}}"),)),
            ),
        ),
        (
            "Training",
            (
                Panel(
                    "Loss of the last epoch",
                    "none",
                    ((f"toque_training_loss{_WORKSPACE}", "{{experiment}} {{rows}}"),),
                    may_be_empty=True,
                ),
                Panel(
                    "Rows learned from",
                    "cps",
                    (
                        (
                            _rate("toque_training_rows_total", by="experiment", where=_WORKSPACE),
                            "{{experiment}}",
                        ),
                    ),
                    may_be_empty=True,
                ),
                Panel(
                    "Share of the epoch in which no step waited for rows",
                    "percentunit",
                    ((f"toque_training_busy_ratio{_WORKSPACE}", "{{experiment}}"),),
                    may_be_empty=True,
                ),
            ),
        ),
    ),
    (("workspace", "toque_function_runs_total"),),
)

_COSTS: Final = Dashboard(
    "costs",
    "costs",
    "What do functions, the store and each team's experiments use? `toque costs` gives amounts of money.",
    (
        (
            "Use",
            (
                Panel(
                    "Seconds of functions an hour",
                    "s",
                    (
                        (
                            f"sum by (workspace, function) (increase(toque_function_run_seconds_sum{_WORKSPACE}[1h]))",
                            "{{function}}",
                        ),
                    ),
                ),
                Panel(
                    "Requests to the store an hour",
                    "short",
                    (("sum by (operation) (increase(toque_store_requests_total[1h]))", "{{operation}}"),),
                ),
                Panel(
                    "Predictions an hour",
                    "short",
                    (
                        (
                            f"sum by (workspace, model) (increase(toque_predictor_responses_total{_WORKSPACE}[1h]))",
                            "{{model}}",
                        ),
                    ),
                ),
                Panel(
                    "Share of a team's quota that is used",
                    "percentunit",
                    (
                        (
                            f"toque_quota_used{_WORKSPACE} / toque_quota_limit{_WORKSPACE}",
                            "{{team}} {{resource}}",
                        ),
                    ),
                    kind="bargauge",
                    may_be_empty=True,
                ),
                Panel(
                    "Memory of models in pools",
                    "bytes",
                    (("sum by (pool) (toque_pool_bytes)", "{{pool}}"),),
                    may_be_empty=True,
                ),
            ),
        ),
    ),
    (("workspace", "toque_function_runs_total"),),
)

DASHBOARDS: Final = (_PLATFORM, _MODELS, _ROLLOUTS, _FEATURES, _TRAINING, _COSTS)
