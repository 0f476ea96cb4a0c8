"""Preemption of a run: it is asked to yield by an entry of its invocation, saves its state, and waits in the queue again."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from toque.functions.runtime.context import Context
from toque.functions.runtime.durable.ledger import FollowedRecord, Ledger
from toque.functions.runtime.durable.record import Record
from toque.functions.runtime.durable.workflow import current_run
from toque.functions.runtime.errors import FunctionError
from toque.registry.errors import Unavailable

_READ_EVERY_S = 5.0


def preempted() -> bool:
    """Whether the durable run of this process is asked to yield; False outside of one.

    It costs nothing: ask as often as you like. A run that is asked saves its state and raises `Preempted`; one that does not
    is killed after 45 s, and runs again later.
    """
    run = current_run()
    return run is not None and run.followed.record.preempting is not None


def notice_of(used: Context) -> Callable[[], bool]:
    """Make what a worker in another process asks to know whether its run is to yield; it reads the store every five seconds."""
    if used.invocation is None:
        return lambda: False
    invocation, ledger = used.invocation, Ledger(used.store, actor=used.actor)
    followed: FollowedRecord | None = None
    read_at = float("-inf")

    def asked() -> bool:
        nonlocal followed, read_at
        if time.monotonic() - read_at > _READ_EVERY_S:
            read_at = time.monotonic()
            with suppress(Unavailable, FunctionError):
                followed = followed or ledger.follow(invocation)
                followed.refresh()
        return followed is not None and followed.record.preempting is not None

    return asked


def ask_to_yield(followed: FollowedRecord, reason: str) -> bool:
    """Ask a run to yield, unless it was asked already; returns whether it was asked now."""
    return followed.append(lambda record: _asking(record, reason))


def _asking(record: Record, reason: str) -> dict[str, Any] | None:
    if record.status != "running" or record.preempting is not None:
        return None
    return {"kind": "preempting", "reason": reason}
