"""A process that works on both stores and may be killed at it: `killed_process.py STORE_URL REDIS_URL WORK [MESSAGES]`.

With MESSAGES it sends that many to Redis, its connection apart, and kills itself before the next.
"""

import itertools
import os
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from redis.connection import AbstractConnection

from toque.featurestore import Entity, FeatureStore, FeatureView, Field, Float64, String, compact
from toque.featurestore.online import Materializer
from toque.registry import open_store

START = datetime(2013, 6, 1, tzinfo=UTC)
NOW = datetime(2013, 7, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
PLANES = [f"N{i}" for i in range(6)]
view = FeatureView(
    "late",
    [Entity("plane")],
    [Field("x", Float64), Field("s", String)],
    ttl=timedelta(days=90),
    description="delays",
)


def row(plane: str, event: int, created: int, x: float | None, s: str | None = "a") -> dict[str, Any]:
    """A row whose times are minutes after the start."""
    times = {"event_timestamp": START + event * MINUTE, "created_timestamp": START + created * MINUTE}
    return {"plane": plane, "x": x, "s": s} | times


def window(fs: FeatureStore) -> None:
    """Materialize rows from the second day on."""
    Materializer(fs.offline, fs.online, rows_at_once=5).window(view, start=START + 1440 * MINUTE, end=NOW)


def incremental(fs: FeatureStore) -> None:
    """Materialize new rows incrementally."""
    Materializer(fs.offline, fs.online, rows_at_once=5).incremental(view, end=NOW)


def push(fs: FeatureStore) -> None:
    """Push late rows, corrections of the same event time and a tie, in three batches to both stores."""
    fs.push(view, [row("N0", 9000, 9000, 1.0), row("N1", 10, 9000, 2.0)])
    fs.push(view, [row("N0", 9000, 9001, 3.0), row("N2", 9000, 9001, 4.0)])
    fs.push(view, [row("N0", 9000, 9001, None, "b"), row("N2", 8000, 9999, 5.0)])


def _compact(fs: FeatureStore) -> None:
    compact(fs, view.name)


WORK: dict[str, Callable[[FeatureStore], None]] = {
    "window": window,
    "incremental": incremental,
    "push": push,
    "compact": _compact,
}


def main(store_url: str, redis_url: str, work: str, messages: str = "") -> None:
    """Run the named work, and die after a number of Redis messages if one is given."""
    fs = FeatureStore(open_store(store_url), redis_url, clock=lambda: NOW)
    fs.get_feature_view(view.name)
    if messages:
        fs.online.client.ping()
        _die_after(int(messages))
    WORK[work](fs)


def _die_after(messages: int) -> None:
    send, count = AbstractConnection.send_packed_command, itertools.count(1)

    def counted(*given: Any, **named: Any) -> Any:
        if next(count) > messages:
            os.kill(os.getpid(), signal.SIGKILL)
        return send(*given, **named)

    AbstractConnection.send_packed_command = counted  # type: ignore[method-assign]


if __name__ == "__main__":
    main(*sys.argv[1:])
