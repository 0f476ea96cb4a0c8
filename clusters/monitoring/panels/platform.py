"""The dashboard of the platform: does everything run, and what is close to its bound?"""

from __future__ import annotations

from typing import Final

from toque.clusters.monitoring.panels.panel import Dashboard, Panel, quantile, rate

PLATFORM: Final = Dashboard(
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
                            rate("toque_predictor_responses_total", by="workspace, status"),
                            "{{workspace}} {{status}}",
                        ),
                    ),
                ),
                Panel(
                    "Answers of the gateway",
                    "reqps",
                    ((rate("toque_gateway_requests_total", by="status"), "{{status}}"),),
                ),
                Panel(
                    "Latency of the gateway, 95 %",
                    "s",
                    ((quantile(0.95, "toque_gateway_request_seconds", by="route"), "{{route}}"),),
                ),
                Panel(
                    "Requests that were refused",
                    "reqps",
                    ((rate("toque_access_refusals_total", by="status"), "{{status}}"),),
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
                            rate("toque_store_requests_total", by="operation, outcome"),
                            "{{operation}} {{outcome}}",
                        ),
                    ),
                ),
                Panel(
                    "Latency of the store, 95 %",
                    "s",
                    ((quantile(0.95, "toque_store_request_seconds", by="operation"), "{{operation}}"),),
                ),
                Panel(
                    "Latency of Redis, 99 %",
                    "s",
                    ((quantile(0.99, "toque_redis_command_seconds", by="node"), "{{node}}"),),
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
                    ((rate("toque_redis_failures_total", by="error"), "{{error}}"),),
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
                        (rate("toque_log_written_records_total", by="kind"), "written {{kind}}"),
                        (rate("toque_log_shipped_records_total", by="kind"), "shipped {{kind}}"),
                        (rate("toque_log_drained_records_total", by="kind"), "drained {{kind}}"),
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
                    "Requests traced",
                    "reqps",
                    (
                        (rate("toque_traced_requests_total", by="kept"), "{{kept}}"),
                        (rate("toque_spans_total", by="outcome"), "spans {{outcome}}"),
                    ),
                    "Those `dropped` were beyond the 50 a second that a process keeps. Empty without tracing.",
                    may_be_empty=True,
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
