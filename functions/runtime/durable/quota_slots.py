"""Quota slots of experiments: one journal of what each holds, for all functions that declare a demand.

The worker that runs acquires and releases a slot like those of `max_concurrency`; a killed worker's slot is
free again as soon as the ledger shows it. The waiting experiments are in the ledger, which every executor
reads: so the order is decided anew each time, and a waiting experiment holds nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, Self

from functions.runtime import catalog
from functions.runtime.declaration import Demand
from functions.runtime.durable.concurrency import ConcurrencySlots, SlotHolders
from functions.runtime.durable.ledger import FollowedRecord, Ledger
from functions.runtime.durable.quota_admission import (
    EVERYONE,
    Quota,
    QuotaRequest,
    admit,
    blocking_quota,
    team_of,
    why_unsatisfiable,
)
from functions.runtime.durable.record import Record
from functions.runtime.errors import DeclarationError, FunctionError, OverQuota
from functions.runtime.run.declared import DeclaredFunction
from registry.journal.entry import Entry
from registry.journal.fold import Fold
from registry.journal.journal import Journal
from registry.store.object_store import ObjectStore
from registry.times import from_text

JOURNAL = "places"


class QuotaSlots(ConcurrencySlots):
    """Slots of all experiments in a ledger's store, limited by the quotas of teams."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(ledger, JOURNAL, limit=0)
        self._quotas = quotas_in(ledger.store, ledger.actor)
        self._known: dict[str, tuple[Record, Demand]] = {}

    @classmethod
    def of(cls, function: DeclaredFunction, ledger: Ledger) -> Self | None:
        """Open the slots that a function's runs take; None if it declares no demand."""
        return cls(ledger) if function.demand else None

    def needs_quota(self, followed: FollowedRecord) -> bool:
        """Whether the function of an invocation declares a demand."""
        function = catalog.find(followed.record.reference)
        return function is not None and function.demand is not None

    def admit(
        self, waiting: Mapping[str, FollowedRecord], *, started: Iterable[str]
    ) -> list[tuple[str, dict[str, Any] | None]]:
        """Choose the waiting invocations that begin now, in order, and end those that exceed a quota even alone.

        Returns: invocation and None, or the final entry of one that exceeds a quota, which come first.

        started: invocations whose workers have started and may not have acquired their slots yet.
        """
        self._quotas.refresh()
        holders = self._running_requests()
        requests: dict[str, QuotaRequest] = {}
        refused: list[tuple[str, dict[str, Any] | None]] = []
        for each, followed in waiting.items():
            try:
                requests[each] = self._request(followed.record)
            except DeclarationError as error:
                refused.append((each, _refused_entry(error)))
                continue
            why = why_unsatisfiable(requests[each], self._quotas.state)
            if why is not None:
                refused.append((each, _refused_entry(OverQuota(why))))
        starting = [self._request(*self._known[each]) for each in started if each in self._known]
        self._known = {each: self._known[each] for each in (*waiting, *started) if each in self._known}
        holding = {each.invocation for each in holders}
        running = [*holders, *(each for each in starting if each.invocation not in holding)]
        chosen = admit(running, requests.values(), self._quotas.state)
        return [*refused, *((each.invocation, None) for each in chosen)]

    def acquire_for(self, record: Record, worker: str) -> bool:
        """Acquire the slot of an invocation, if its quotas have room."""
        self._quotas.refresh()
        request = self._request(record)
        demand = {name: getattr(request, name) for name in ("team", "cpus", "gpus", "priority")}
        return self.acquire(worker, record.id, demand)

    def usage(self) -> list[tuple[str, str, float, float | None]]:
        """List what the running experiments of each team occupy, and may: team, resource, used, limit (None: none)."""
        quotas, running = self._quotas.refresh(), _requests_of(self._fold.refresh())
        found: list[tuple[str, str, float, float | None]] = []
        for team in sorted({*quotas, *(each.team for each in running)}):
            of_team = [each for each in running if team in {each.team, EVERYONE}]
            quota = quotas.get(team, Quota())
            found += [
                (team, "cpus", sum(each.cpus for each in of_team), quota.cpus),
                (team, "gpus", sum(each.gpus for each in of_team), quota.gpus),
                (team, "at_once", float(len(of_team)), quota.at_once),
            ]
        return found

    def _running_requests(self) -> list[QuotaRequest]:
        """List the requests that hold slots, after releasing those of killed workers a few times within a lease."""
        holders, now = self._fold.refresh(), time.monotonic()
        if now - self._checked_at > self.ledger.lease_s / 3:
            self._checked_at = now
            for worker in self._stale(holders):
                self.release(worker)
        return _requests_of(self._fold.state)

    def _request(self, record: Record, demand: Demand | None = None) -> QuotaRequest:
        if record.id not in self._known:
            self._known[record.id] = record, demand_of(record, self.ledger)
        team = team_of(record.caller, self._quotas.state)
        return QuotaRequest.of(record.id, team, demand or self._known[record.id][1], record.submitted_at)

    def _has_room(self, holders: SlotHolders, request: Mapping[str, Any]) -> bool:
        (wanted,) = _requests_of({"": dict(request)})
        return blocking_quota(wanted, _requests_of(holders), self._quotas.state) is None


def demand_of(record: Record, ledger: Ledger) -> Demand:
    """Compute the demand of an invocation; invalid arguments demand nothing, since the run reports them.

    Raises: DeclarationError if the function's demand raises, or returns another type.
    """
    function = catalog.get(record.reference)
    if function.demand is None:
        return Demand()
    try:
        arguments = function.signature.with_defaults(function.signature.load(ledger.arguments(record)))
    except FunctionError:
        return Demand()
    try:
        demand = function.demand(**arguments)
    except Exception as error:
        raise DeclarationError(f"{function.name}: its demand fails on these arguments: {error!r}") from error
    if not isinstance(demand, Demand):
        raise DeclarationError(f"{function.name}: its demand gives {demand!r}, want a Demand")
    return demand


def quotas_in(store: ObjectStore, actor: str) -> Fold[dict[str, Quota]]:
    """Open the quotas in a store, by team."""
    return Fold(Journal(store, "quotas", actor=actor), {}, _fold_entry, encode=_encode, decode=_decode)


def _fold_entry(quotas: dict[str, Quota], entry: Entry) -> dict[str, Quota]:
    team, quota = entry.body["team"], entry.body["quota"]
    others = {name: quota for name, quota in quotas.items() if name != team}
    return others if quota is None else others | {team: Quota.model_validate(quota)}


def _encode(quotas: dict[str, Quota]) -> dict[str, Any]:
    return {team: quota.model_dump(mode="json") for team, quota in quotas.items()}


def _decode(stored: dict[str, Any]) -> dict[str, Quota]:
    return {team: Quota.model_validate(quota) for team, quota in stored.items()}


def _refused_entry(error: FunctionError) -> dict[str, Any]:
    failure = {"type": type(error).__name__, "message": str(error)}
    return {"kind": "dead", "lost": True, "failure": failure}


def _requests_of(holders: SlotHolders) -> list[QuotaRequest]:
    return [QuotaRequest(**(each | {"at": from_text(each["at"])})) for each in holders.values()]
