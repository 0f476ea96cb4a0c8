"""Runs of retrains: submitted once, however many inspections find one due, and known to live by their heartbeat.

A retrain may train for days: by its silence, not its length, it counts as dead.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from itertools import count
from typing import Any

from toque.functions.monitoring import Alarm
from toque.functions.retraining.policy import RetrainingPolicy, RetrainState, Running
from toque.functions.runtime.clock import Clock
from toque.functions.runtime.context import context
from toque.functions.runtime.durable.heartbeat import repeated
from toque.functions.runtime.durable.invocation import ledger_of
from toque.functions.runtime.durable.ledger import invocation_id
from toque.functions.runtime.errors import KeyConflict
from toque.functions.runtime.function import Function
from toque.registry.errors import Unavailable

_BEAT_EVERY = timedelta(minutes=1)
_TIMES_WITHIN = 4  # of `lost_after`, so that it outlasts heartbeats that fail


def heartbeats(
    model: str, running: Running, policy: RetrainingPolicy, clock: Clock
) -> AbstractContextManager[None]:
    """Say within the block that a retrain goes on. clock: the wall's."""
    store, every = context().store, min(_BEAT_EVERY, policy.lost_after / _TIMES_WITHIN)

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


def submit_once(
    function: Function[[Alarm], Any], alarm: Alarm, *, state: RetrainState, inspection: str
) -> str:
    """Submit the retrain of an alarm, unless one that inspections submitted has not ended; returns the invocation of either.

    function: the one that retrains. state: of the model's retrains. inspection: invocation of the caller, which may run twice.
    """
    # The key says which retrain of the model it would be, and how many submissions for it ended before it began: deferred by
    # the policy, cancelled or dead. It names no alarm: one retrain answers all that stand, and a policy words its own anew.
    last = state.finished[-1].number if state.finished else None
    ledger = ledger_of(context())
    for ended in count():
        key = f"{alarm.model} after retrain {last}, {ended} ended"
        invocation = invocation_id(function.name, key)
        found = next(ledger.find_all([invocation]), None)
        if found is None or not found.ended:
            break
        if found.parent == inspection:
            return invocation
    try:
        function.submit(alarm, key=key)
    except KeyConflict:
        # It waits for another alarm, or for this one in other words; its submitter may have died before its note to executors.
        ledger.notify(invocation)
    return invocation
