"""Prometheus series of commands to Redis, over all clients of a process."""

from __future__ import annotations

from typing import Any

from prometheus_client import Counter, Histogram

__all__ = ["FAILURES", "SECONDS", "is_timed"]

SECONDS = Histogram(
    "toque_redis_command_seconds",
    "Seconds of a command or pipeline to Redis that was answered, its retries not included.",
    buckets=(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0),
)
FAILURES = Counter(
    "toque_redis_failures",
    "Commands to Redis that failed, by error and by whether they were sent again.",
    ("error", "retried"),
)


def is_timed(do: Any) -> bool:
    """Whether a command's time tells how fast Redis is: that of a subscriber tells how long nothing came."""
    return not str(getattr(do, "__qualname__", "")).startswith("PubSub")
