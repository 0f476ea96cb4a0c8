"""The dashboard of rollouts: is the new version worse than the old one, right now?"""

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

ROLLOUTS: Final = Dashboard(
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
                            rate("toque_predictor_requests_total", by=ARMS, where=MODEL)
                            + " / on (workspace, model) group_left () "
                            + rate("toque_predictor_requests_total", by="workspace, model", where=MODEL),
                            ARM,
                        ),
                    ),
                ),
                Panel(
                    "Share of failed requests",
                    "percentunit",
                    (
                        (
                            share(
                                rate("toque_predictor_errors_total", by=ARMS, where=MODEL),
                                rate("toque_predictor_requests_total", by=ARMS, where=MODEL),
                            ),
                            ARM,
                        ),
                    ),
                    "Guards of a rollout judge the counts themselves; see docs/rollout.md.",
                    may_be_empty=True,
                ),
                Panel(
                    "Latency, half",
                    "s",
                    ((quantile(0.5, "toque_predictor_latency_seconds", by=ARMS, where=MODEL), ARM),),
                ),
                Panel(
                    "Share of answers that are no finite number",
                    "percentunit",
                    (
                        (
                            share(
                                rate("toque_predictor_missing_answers_total", by=ARMS, where=MODEL),
                                rate("toque_predictor_requests_total", by=ARMS, where=MODEL),
                            ),
                            ARM,
                        ),
                    ),
                ),
                Panel(
                    "Scores of live answers, with their 95 % intervals",
                    "short",
                    tuple(
                        (f"toque_live_score_{part}{MODEL}", f"{ARM} {{{{scorer}}}} {part}")
                        for part in ("mean", "lower", "upper")
                    ),
                    "Of language models whose answers are scored; a guardrail of the rollout may be one of them.",
                    may_be_empty=True,
                ),
                Panel(
                    "Copies for shadows",
                    "reqps",
                    (
                        (
                            rate("toque_predictor_shadows_total", by="model, outcome", where=MODEL),
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
                            rate("toque_labels_received_total", by="workspace", where=WORKSPACE),
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
                            quantile(0.5, "toque_label_delay_seconds", by="workspace", where=WORKSPACE),
                            "{{workspace}}",
                        ),
                    ),
                    may_be_empty=True,
                ),
            ),
        ),
    ),
    OF_MODELS,
)
