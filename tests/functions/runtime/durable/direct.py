"""Attempts of durable invocations in the test's own thread, one at a time: what a worker does, without a worker."""

from __future__ import annotations

from typing import Any

from toque.functions import Context
from toque.functions.runtime.durable.attempt import Attempt, run_attempt
from toque.functions.runtime.durable.ledger import Ledger
from toque.functions.runtime.durable.record import Record


def run_once(used: Context, function: Any, invocation: str, *, lease_s: float = 15.0) -> Record:
    """Run one attempt of an invocation, whether it is due or not, and read what became of it."""
    ledger = Ledger(used.store, actor="executor")
    followed = ledger.follow(invocation)
    run_attempt(
        Attempt(function, followed.record, followed.head, used, lease_s, 60.0, sent_at=ledger.clock())
    )
    return ledger.read(invocation)
