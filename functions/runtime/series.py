"""Prometheus series of functions: their runs, the durable ones among them, and schedules."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

__all__ = [
    "DEAD_LETTERS",
    "LATENESS",
    "LOST",
    "PREEMPTIONS",
    "QUEUE_SECONDS",
    "RETRIES",
    "RUNS",
    "RUN_SECONDS",
    "SKIPPED",
    "WAITING",
    "WORKERS",
    "count_retries",
]

_FUNCTION = ("workspace", "function")
_BUCKETS_S = (0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 6 * 3600.0)

RUNS = Counter("toque_function_runs", "Runs of functions that ended, by outcome.", (*_FUNCTION, "outcome"))
RUN_SECONDS = Histogram("toque_function_run_seconds", "Seconds of a run.", _FUNCTION, buckets=_BUCKETS_S)
QUEUE_SECONDS = Histogram(
    "toque_function_queue_seconds",
    "Seconds that a durable invocation waited since it was due, until a worker claimed it.",
    _FUNCTION,
    buckets=_BUCKETS_S,
)
RETRIES = Counter("toque_function_retries", "Runs that failed and are tried again.", _FUNCTION)
PREEMPTIONS = Counter(
    "toque_function_preemptions",
    "Durable runs that were asked to yield to others, or to a budget's end.",
    _FUNCTION,
)
LOST = Counter("toque_function_lost_workers", "Durable runs whose worker vanished.", _FUNCTION)
DEAD_LETTERS = Counter("toque_function_dead_letters", "Durable invocations that were given up.", _FUNCTION)
WAITING = Gauge(
    "toque_function_waiting",
    "Durable invocations that are due and have no worker or slot.",
    ("workspace",),
    multiprocess_mode="livesum",
)
WORKERS = Gauge(
    "toque_function_workers",
    "Workers that run durable invocations now.",
    ("workspace",),
    multiprocess_mode="livesum",
)
LATENESS = Histogram(
    "toque_schedule_lateness_seconds",
    "Seconds from a schedule's tick until it fired.",
    ("workspace", "schedule"),
    buckets=(0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 1800.0, 3600.0, 86_400.0),
)
SKIPPED = Counter(
    "toque_schedule_skipped_ticks",
    "Ticks that were not fired: missed, or their last run was not over.",
    ("workspace", "schedule"),
)


def count_retries(workspace: str, function: str, count: int) -> None:
    """Count runs that were tried again. A body that Ray's workers get calls it, since a series cannot be pickled."""
    if count:
        RETRIES.labels(workspace, function).inc(count)
