"""Heartbeat of a retrain, which may train for days: by its silence, not its length, it counts as dead."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from datetime import datetime, timedelta

from toque.functions.retraining.policy import RetrainingPolicy, Running
from toque.functions.runtime.clock import Clock
from toque.functions.runtime.context import context
from toque.functions.runtime.durable.heartbeat import repeated
from toque.registry.errors import Unavailable

_EVERY = timedelta(minutes=1)
_TIMES_WITHIN = 4  # of `lost_after`, so that it outlasts heartbeats that fail


def heartbeats(
    model: str, running: Running, policy: RetrainingPolicy, clock: Clock
) -> AbstractContextManager[None]:
    """Say within the block that a retrain goes on. clock: the wall's."""
    store, every = context().store, min(_EVERY, policy.lost_after / _TIMES_WITHIN)

    def write() -> None:
        beat = {"number": running.number, "wall": running.wall.isoformat(), "at": clock().isoformat()}
        store.put(_key(model), json.dumps(beat).encode())

    return repeated(
        write, every_s=every.total_seconds(), name=f"retrain-{model}-{running.number}", tolerated=Unavailable
    )


def last_seen(model: str, running: Running | None) -> datetime | None:
    """Find the wall time of the last heartbeat of a retrain since it was last begun; None before its first, or if none runs."""
    found = None if running is None else context().store.find(_key(model))
    if found is None or running is None:
        return None
    beat = json.loads(found)
    own = (beat["number"], beat["wall"]) == (running.number, running.wall.isoformat())
    return datetime.fromisoformat(beat["at"]) if own else None


def _key(model: str) -> str:
    return f"retraining/{model}/lease.json"
