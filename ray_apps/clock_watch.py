"""How far this node's clock is from the store's, as a series: leases, schedules and times of rows go by it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from prometheus_client import Gauge

from toque.registry import ObjectStore, RegistryError
from toque.registry.store import clock_skew_s

__all__ = ["measure_clock", "watch_clock"]

EVERY_S = 60.0
_ROUNDED_S = 0.5  # S3 gives times in whole seconds
SKEW = Gauge(
    "toque_clock_skew_seconds",
    "How far this node's clock is at least from the store's: ahead of it, or behind if negative.",
    multiprocess_mode="livemostrecent",
)


def measure_clock(store: ObjectStore, *, clock: Callable[[], float] = time.time) -> float:
    """Measure the least difference that explains the store's answer, in seconds; negative if this clock is behind.

    A slow answer says little. Raises: Unavailable.
    """
    begun = time.monotonic()
    skew_s = clock_skew_s(store, clock=clock)
    return math.copysign(max(0.0, abs(skew_s) - (time.monotonic() - begun) / 2 - _ROUNDED_S), skew_s)


def watch_clock(store: ObjectStore) -> None:
    """Measure from now on once a minute, in a thread, one request each."""

    def run() -> None:
        waiting = threading.Event()
        while True:
            with suppress(RegistryError):
                SKEW.set(measure_clock(store))
            waiting.wait(EVERY_S)

    threading.Thread(target=run, name="clock", daemon=True).start()
