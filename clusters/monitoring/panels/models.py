"""The dashboard of models: who answers, how fast, and what goes wrong?"""

from __future__ import annotations

from typing import Final

from toque.clusters.monitoring.panels.panel import (
    ARM,
    ARMS,
    MODEL,
    OF_MODELS,
    WORKSPACE,
    Dashboard,
    Panel,
    quantile,
    rate,
    share,
)

_NO_LANGUAGE_MODEL: Final = "No language model is served."


def _halves(series: str) -> tuple[tuple[str, str], ...]:
    """Queries of the median and the 99th percentile of a histogram, by arm."""
    shown = ((0.5, "50 %"), (0.99, "99 %"))
    return tuple((quantile(q, series, by=ARMS, where=MODEL), f"{ARM} {name}") for q, name in shown)


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
                    _halves("toque_predictor_latency_seconds"),
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
                                where=MODEL[:-1] + ',outcome=~"dropped|failures_dropped"}',
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
                        (
                            rate("toque_pool_loads_total", by="workspace", where=WORKSPACE),
                            "{{workspace}} loads",
                        ),
                        (
                            rate("toque_pool_evictions_total", by="workspace", where=WORKSPACE),
                            "{{workspace}} evictions",
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
        (
            "Language models",
            (
                Panel(
                    "Tokens: of prompts, from the cache, of answers",
                    "cps",
                    (
                        (
                            rate("toque_generative_tokens_total", by="model, kind", where=MODEL),
                            "{{model}} {{kind}}",
                        ),
                    ),
                    _NO_LANGUAGE_MODEL,
                    may_be_empty=True,
                ),
                Panel(
                    "First token: half and 99 %",
                    "s",
                    _halves("toque_generative_first_token_seconds"),
                    _NO_LANGUAGE_MODEL,
                    may_be_empty=True,
                ),
                Panel(
                    "Between two tokens: half and 99 %",
                    "s",
                    _halves("toque_generative_between_tokens_seconds"),
                    _NO_LANGUAGE_MODEL,
                    may_be_empty=True,
                ),
                Panel(
                    "Share of requests whose answer declines",
                    "percentunit",
                    (
                        (
                            share(
                                rate("toque_generative_declined_answers_total", by=ARMS, where=MODEL),
                                rate("toque_predictor_requests_total", by=ARMS, where=MODEL),
                            ),
                            ARM,
                        ),
                    ),
                    "No language model answers, or nothing was asked.",
                    may_be_empty=True,
                ),
                Panel(
                    "Requests and answers in which a guardrail found something",
                    "reqps",
                    (
                        (
                            rate(
                                "toque_generative_guardrail_findings_total",
                                by="model, stage, rule, action",
                                where=MODEL,
                            ),
                            "{{model}} {{stage}} {{rule}}: {{action}}",
                        ),
                    ),
                    "No guardrail found anything.",
                    may_be_empty=True,
                ),
                Panel(
                    "Requests that wait for an engine",
                    "short",
                    (("sum by (tier) (toque_generative_waiting_requests)", "{{tier}}"),),
                    _NO_LANGUAGE_MODEL,
                    may_be_empty=True,
                ),
                Panel(
                    "Engines that run, and those started anew in an hour",
                    "short",
                    (
                        ("sum(toque_generative_engines)", "run"),
                        ("sum(increase(toque_generative_engine_restarts_total[1h]))", "started anew"),
                    ),
                    _NO_LANGUAGE_MODEL,
                    may_be_empty=True,
                ),
            ),
        ),
    ),
    OF_MODELS,
)
