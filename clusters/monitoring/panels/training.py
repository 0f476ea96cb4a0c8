"""The dashboard of training: what runs, what waits, what failed, and does the loss fall?"""

from __future__ import annotations

from typing import Final

from toque.clusters.monitoring.panels.panel import WORKSPACE, Dashboard, Panel, quantile, rate

TRAINING: Final = Dashboard(
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
                            rate("toque_function_runs_total", by="function, outcome", where=WORKSPACE),
                            "{{function}} {{outcome}}",
                        ),
                    ),
                ),
                Panel(
                    "Time of a run, 95 %",
                    "s",
                    (
                        (
                            quantile(0.95, "toque_function_run_seconds", by="function", where=WORKSPACE),
                            "{{function}}",
                        ),
                    ),
                ),
                Panel(
                    "Time in the queue, 95 %",
                    "s",
                    (
                        (
                            quantile(0.95, "toque_function_queue_seconds", by="function", where=WORKSPACE),
                            "{{function}}",
                        ),
                    ),
                ),
                Panel(
                    "Waiting and running",
                    "short",
                    (
                        (f"sum by (workspace) (toque_function_waiting{WORKSPACE})", "{{workspace}} waiting"),
                        (f"sum by (workspace) (toque_function_workers{WORKSPACE})", "{{workspace}} running"),
                    ),
                ),
                Panel(
                    "Lateness of schedules, 95 %",
                    "s",
                    (
                        (
                            quantile(0.95, "toque_schedule_lateness_seconds", by="schedule", where=WORKSPACE),
                            "{{schedule}}",
                        ),
                    ),
                ),
                Panel("Dead letters", "short", ((f"toque_dead_letters{WORKSPACE}", "{{workspace}}"),)),
            ),
        ),
        (
            "Training",
            (
                Panel(
                    "Loss of the last epoch",
                    "none",
                    ((f"toque_training_loss{WORKSPACE}", "{{experiment}} {{rows}}"),),
                    may_be_empty=True,
                ),
                Panel(
                    "Rows learned from",
                    "cps",
                    (
                        (
                            rate("toque_training_rows_total", by="experiment", where=WORKSPACE),
                            "{{experiment}}",
                        ),
                    ),
                    may_be_empty=True,
                ),
                Panel(
                    "Share of the epoch in which no step waited for rows",
                    "percentunit",
                    ((f"toque_training_busy_ratio{WORKSPACE}", "{{experiment}}"),),
                    may_be_empty=True,
                ),
            ),
        ),
    ),
    (("workspace", "toque_function_runs_total"),),
)
