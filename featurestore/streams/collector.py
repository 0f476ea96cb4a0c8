"""Pause of the garbage collector while a consumer takes a step: tens of thousands of lists and tuples, of which none is in a cycle."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Collect no cycles within the block, in any thread of the process; the thread that paused the collector resumes it.

    Otherwise it goes through what was just read again and again, which takes as long as reading it from Redis.
    """
    paused = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if paused:
            gc.enable()
