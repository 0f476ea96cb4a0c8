"""What is seen of a process: its Prometheus series. Begun once, at the entry of each process.

Rooms declare their series with prometheus_client; until `keep_series` they stay in the process's memory. The room knows
nothing of what is counted.
"""

from __future__ import annotations

from toque.clusters.telemetry.metrics.exposition import (
    keep_series,
    listen,
    node_metrics,
    parse,
    publish,
    render,
    together,
    withdraw,
)
from toque.clusters.telemetry.metrics.flushing import (
    OTHER,
    Bounded,
    Durations,
    Rising,
    add_counts,
    flush_now,
    flush_regularly,
    observe_all,
)
from toque.clusters.telemetry.metrics.values import PREFIX, folder_of_process

__all__ = [
    "OTHER",
    "PREFIX",
    "Bounded",
    "Durations",
    "Rising",
    "add_counts",
    "flush_now",
    "flush_regularly",
    "folder_of_process",
    "keep_series",
    "listen",
    "node_metrics",
    "observe_all",
    "parse",
    "publish",
    "render",
    "together",
    "withdraw",
]
