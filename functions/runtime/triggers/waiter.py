"""Workflows that wait for an event: a journal of the waiters, and waking them when the event comes.

A waiting workflow is suspended and holds no worker. Each process that delivers events sends the workflow the
first one that matches, as a signal. Two processes may send it, which gives the same value.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from toque.functions.runtime.context import Context, context
from toque.functions.runtime.declaration import OnEvent
from toque.functions.runtime.durable.invocation import ledger_of
from toque.functions.runtime.durable.patience import with_patience
from toque.functions.runtime.durable.record import ENDED
from toque.functions.runtime.durable.workflow import require_run, wait_for
from toque.functions.runtime.errors import UnknownInvocation
from toque.functions.runtime.triggers.topic import first_since, topic_of
from toque.registry.journal import Entry, Fold
from toque.registry.journal.journal import Journal

PATH = "event-waiters"
CHECK_ENDED_S = 60.0

Waiters = dict[str, dict[str, Any]]


def wait_for_event(
    topic: str, *, where: Mapping[str, Any] | None = None, timeout_s: float | None = None
) -> dict[str, Any]:
    """Wait for the first event of `topic` since this workflow was submitted, and return its payload.

    where: payload fields that must be equal to these values.
    Raises: TimeoutError after timeout_s; FunctionError outside a durable run.
    """
    run, used = require_run("wait_for_event"), context()
    condition = {"topic": topic, "where": dict(OnEvent(topic, where=where or {}).where)}
    name = f"{run.id}/{run.position}"

    def first_event() -> int:
        journal, submitted_at = run.followed.journal, run.followed.record.submitted_at
        # The clocks of publisher and submitter may differ; the store has one.
        stored_at = journal.store.find_modified_at(journal.key(0)) or submitted_at
        return first_since(topic_of(used, topic), stored_at, by_clock=submitted_at)

    first = run.step("event_since", condition, lambda: with_patience(first_event))
    signal = f"event {run.position} {topic}"
    if signal not in run.followed.record.signals:
        body = {"wait": name, "invocation": run.id, "signal": signal, "since": first} | condition
        with_patience(lambda: _waiters(used).transact(lambda waiting: None if name in waiting else body))
    found: dict[str, Any] = wait_for(signal, timeout_s=timeout_s)
    return found


def wake_waiters(used: Context) -> int:
    """Send waiting workflows the events that have come; returns how many were woken; one read if none waits."""
    key = (used.store_url, used.actor)
    if key not in _wakers:
        _wakers[key] = _Waker(used)
    return _wakers[key].wake()


@dataclass
class _Waker:
    """Reader of the topics that workflows wait on, in this process."""

    used: Context
    _fold: Fold[Waiters] = field(init=False)
    _next: dict[str, int] = field(default_factory=dict)  # waiter -> number of the event to read next
    _checked_at: float = 0.0

    def __post_init__(self) -> None:
        self._fold = _waiters(self.used)

    def wake(self) -> int:
        waiting = self._fold.refresh()
        if waiting and time.monotonic() - self._checked_at > CHECK_ENDED_S:
            self._checked_at = time.monotonic()
            self._remove_ended(waiting)
        topics = {each["topic"] for each in waiting.values()}
        return sum(self._read(topic, waiting) for topic in topics)

    def _read(self, topic: str, waiting: Waiters) -> int:
        """Read the new events of a topic for all its waiters; returns how many were woken."""
        waiters = {name: each for name, each in waiting.items() if each["topic"] == topic}
        positions = {name: self._next.get(name, int(each["since"])) for name, each in waiters.items()}
        woken: set[str] = set()
        journal = Journal(self.used.store, f"events/{topic}", actor=self.used.actor)
        for entry in journal.entries(min(positions.values())):
            for name, each in waiters.items():
                if name not in woken and entry.number >= positions[name] and _matches(each, entry):
                    with suppress(UnknownInvocation):  # deleted meanwhile
                        ledger_of(self.used).signal(each["invocation"], each["signal"], entry.body["payload"])
                    self._remove(name)
                    woken.add(name)
                self._next[name] = entry.number + 1
        return len(woken)

    def _remove_ended(self, waiting: Waiters) -> None:
        """Remove waiters whose workflow has ended or no longer waits for the signal."""
        for name, each in list(waiting.items()):
            record = next(
                ledger_of(self.used).find_all([each["invocation"]]), None
            )  # None: deleted meanwhile
            if (
                record is None
                or record.status in ENDED
                or (record.status == "waiting" and record.waits_for != each["signal"])
            ):
                self._remove(name)

    def _remove(self, name: str) -> None:
        self._fold.transact(lambda waiting: {"done": name} if name in waiting else None)
        self._next.pop(name, None)


_wakers: dict[tuple[str, str], _Waker] = {}


def _matches(waiter: Mapping[str, Any], entry: Entry) -> bool:
    return OnEvent(waiter["topic"], where=waiter["where"]).matches(entry.body["payload"])


def _waiters(used: Context) -> Fold[Waiters]:
    journal = Journal(used.store, PATH, actor=used.actor)
    return Fold(journal, {}, _fold_entry, encode=dict, decode=dict)


def _fold_entry(waiting: Waiters, entry: Entry) -> Waiters:
    if "wait" in entry.body:
        return waiting | {entry.body["wait"]: entry.body}
    return {name: each for name, each in waiting.items() if name != entry.body["done"]}
