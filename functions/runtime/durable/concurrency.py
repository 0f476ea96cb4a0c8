"""Slots of `max_concurrency` across the cluster: a journal of the workers that hold them.

A worker acquires a slot by compare-and-append, so no two get the last one, and releases it at its end. The
slot of a killed worker is released once the ledger shows that its run has ended, or its lease has expired.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from toque.functions.runtime.durable.heartbeat import lease_left_s
from toque.functions.runtime.durable.ledger import Ledger
from toque.functions.runtime.errors import UnknownInvocation
from toque.functions.runtime.run.declared import DeclaredFunction
from toque.registry.journal import Entry, Fold
from toque.registry.journal.journal import Journal
from toque.registry.times import to_text

REFRESH_S = 0.2
SlotHolders = dict[str, dict[str, Any]]  # worker -> invocation, time, and what it takes of a quota


@dataclass
class ConcurrencySlots:
    """Slots of one function, `limit` in number, shared by all executors."""

    ledger: Ledger
    name: str
    limit: int
    _fold: Fold[SlotHolders] = field(init=False)
    _refreshed_at: float = float("-inf")
    _checked_at: float = float("-inf")
    _seen: dict[str, datetime] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        journal = Journal(self.ledger.store, f"concurrency/{self.name}", actor=self.ledger.actor)
        self._fold = Fold(journal, {}, _fold_entry, encode=dict, decode=dict, carry=True)

    @classmethod
    def of(cls, function: DeclaredFunction, ledger: Ledger) -> ConcurrencySlots | None:
        """Open the slots of a function; None if it declares no limit."""
        if function.max_concurrency is None:
            return None
        digest = hashlib.sha256(function.reference.encode()).hexdigest()[:12]
        return cls(ledger, f"{function.name}-{digest}", function.max_concurrency)

    def acquire(self, worker: str, invocation: str, demand: Mapping[str, Any] | None = None) -> bool:
        """Acquire a slot; returns whether one was free. One read and one write, more reads if all are held."""
        holders = self._fold.refresh()
        request = {"invocation": invocation, "at": to_text(self.ledger.clock())} | dict(demand or {})
        stale = [] if self._has_room(holders, request) else self._stale(holders)

        def decide(holders: SlotHolders) -> dict[str, Any] | None:
            kept = {each: holders[each] for each in holders if each not in stale}
            return {"take": worker, "gone": stale} | request if self._has_room(kept, request) else None

        return self._fold.transact(decide) is not None

    def release(self, worker: str) -> None:
        """Release the slot of a worker, if it holds one."""
        self._fold.transact(lambda holders: {"gone": [worker]} if worker in holders else None)

    def available(self) -> bool:
        """Whether a slot may be free, asked before a worker starts; at most a few reads a second."""
        now = time.monotonic()
        if now - self._refreshed_at > REFRESH_S:
            self._refreshed_at = now
            self._fold.refresh()
        if len(self._fold.state) < self.limit:
            return True
        if now - self._checked_at > self.ledger.lease_s / 3:
            self._checked_at = now
            for worker in self._stale(self._fold.state):
                self.release(worker)
        return len(self._fold.state) < self.limit

    def _has_room(self, holders: SlotHolders, request: Mapping[str, Any]) -> bool:  # noqa: ARG002  # slots are alike here
        return len(holders) < self.limit

    def _stale(self, holders: SlotHolders) -> list[str]:
        self._seen = {worker: at for worker, at in self._seen.items() if worker in holders}
        return [worker for worker, each in holders.items() if not self._still_holds(worker, each)]

    def _still_holds(self, worker: str, held: dict[str, Any]) -> bool:
        now = self.ledger.clock()
        seen = self._seen.setdefault(worker, now)  # by this process's clock: the worker's may differ
        try:
            record = self.ledger.read(held["invocation"])
        except UnknownInvocation:
            return False
        if record.worker != worker:  # it may be about to claim the attempt
            return now < seen + timedelta(seconds=self.ledger.lease_s)
        return record.status == "running" and lease_left_s(self.ledger.store, record) > 0


def _fold_entry(holders: SlotHolders, entry: Entry) -> SlotHolders:
    body = entry.body
    kept = {worker: each for worker, each in holders.items() if worker not in body["gone"]}
    if "take" in body:
        kept[body["take"]] = {name: value for name, value in body.items() if name not in {"take", "gone"}}
    return kept
