"""The dashboard of costs: what do functions, the store and each team's experiments use? `toque costs` gives amounts of money."""

from __future__ import annotations

from typing import Final

from toque.clusters.monitoring.panels.panel import WORKSPACE, Dashboard, Panel

COSTS: Final = Dashboard(
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
                            f"sum by (workspace, function) (increase(toque_function_run_seconds_sum{WORKSPACE}[1h]))",
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
                            f"sum by (workspace, model) (increase(toque_predictor_responses_total{WORKSPACE}[1h]))",
                            "{{model}}",
                        ),
                    ),
                ),
                Panel(
                    "Share of a team's quota that is used",
                    "percentunit",
                    (
                        (
                            f"toque_quota_used{WORKSPACE} / toque_quota_limit{WORKSPACE}",
                            "{{team}} {{resource}}",
                        ),
                    ),
                    kind="bargauge",
                    may_be_empty=True,
                ),
                Panel(
                    "Share of a team's monthly budget that is spent",
                    "percentunit",
                    (
                        (
                            f"toque_budget_spent{WORKSPACE} / toque_budget_limit{WORKSPACE}",
                            "{{team}} {{budget}}",
                        ),
                    ),
                    kind="bargauge",
                    may_be_empty=True,
                ),
                Panel(
                    "Memory of models in pools",
                    "bytes",
                    ((f"sum by (workspace) (toque_pool_bytes{WORKSPACE})", "{{workspace}}"),),
                    may_be_empty=True,
                ),
            ),
        ),
    ),
    (("workspace", "toque_function_runs_total"),),
)
