"""Submission of a model's retrain by its inspections: one waits at a time, however many of them find it due."""

from __future__ import annotations

from itertools import count
from typing import Any

from toque.functions.monitoring import Alarm
from toque.functions.retraining.policy import RetrainState
from toque.functions.runtime.context import context
from toque.functions.runtime.durable.invocation import ledger_of
from toque.functions.runtime.durable.ledger import invocation_id
from toque.functions.runtime.errors import KeyConflict
from toque.functions.runtime.function import Function

__all__ = ["submit_once"]


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
