"""The dashboard of models: who answers, how fast, and what goes wrong?"""

from __future__ import annotations

from typing import Final

from clusters.monitoring.panels.panel import (
    ARM,
    ARMS,
    MODEL,
    OF_MODELS,
    RATE,
    Dashboard,
    Panel,
    quantile,
    rate,
    share,
)

MODELS: Final = Dashboard(
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
                    ((rate("toque_predictor_requests_total", by=ARMS, where=MODEL), ARM),),
                ),
                Panel(
                    "Share of errors",
                    "percentunit",
                    (
                        (
                            share(
                                rate(
                                    "toque_predictor_responses_total",
                                    by="workspace, model",
                                    where=MODEL[:-1] + ',status=~"5.."}',
                                ),
                                rate("toque_predictor_responses_total", by="workspace, model", where=MODEL),
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
                            rate(
                                "toque_predictor_errors_total", by="model, version, arm, class", where=MODEL
                            ),
                            f"{ARM} {{{{class}}}}",
                        ),
                    ),
                    may_be_empty=True,
                ),
                Panel(
                    "Latency: half and 99 %",
                    "s",
                    (
                        (
                            quantile(0.5, "toque_predictor_latency_seconds", by=ARMS, where=MODEL),
                            f"{ARM} 50 %",
                        ),
                        (
                            quantile(0.99, "toque_predictor_latency_seconds", by=ARMS, where=MODEL),
                            f"{ARM} 99 %",
                        ),
                    ),
                ),
                Panel(
                    "Answers with a value that is no finite number",
                    "reqps",
                    ((rate("toque_predictor_missing_answers_total", by=ARMS, where=MODEL), ARM),),
                ),
                Panel(
                    "Predictions that were not logged",
                    "reqps",
                    (
                        (
                            rate(
                                "toque_predictor_logged_total",
                                by="model, outcome",
                                where=MODEL[:-1] + ',outcome!="written"}',
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
                        (f"sum by (model) (toque_predictor_in_flight{MODEL})", "{{model}} in flight"),
                        (f"sum by (model) (toque_predictor_queued{MODEL})", "{{model}} queued"),
                    ),
                ),
                Panel(
                    "Rows in a batch",
                    "short",
                    (
                        (
                            share(
                                rate("toque_predictor_batch_rows_total", by="model", where=MODEL),
                                rate("toque_predictor_batches_total", by="model", where=MODEL),
                            ),
                            "{{model}}",
                        ),
                    ),
                ),
                Panel(
                    "Versions that can answer, over all replicas",
                    "short",
                    ((f"sum by (model) (toque_predictor_loaded_versions{MODEL})", "{{model}}"),),
                ),
                Panel(
                    "Loads of versions",
                    "cps",
                    (
                        (
                            rate("toque_predictor_loads_total", by="model, outcome", where=MODEL),
                            "{{model}} {{outcome}}",
                        ),
                    ),
                ),
                Panel(
                    "Models that pools load and evict",
                    "cps",
                    (
                        ("sum by (pool) (rate(toque_pool_loads_total" + RATE + "))", "{{pool}} loads"),
                        (
                            "sum by (pool) (rate(toque_pool_evictions_total" + RATE + "))",
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
                            rate("toque_predictor_indirect_requests_total", by="model", where=MODEL),
                            "{{model}}",
                        ),
                    ),
                    may_be_empty=True,
                ),
            ),
        ),
    ),
    OF_MODELS,
)
