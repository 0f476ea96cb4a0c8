"""Quota slots of experiments: one journal of what each holds, for all functions that declare a demand.

The worker that runs acquires and releases a slot like those of `max_concurrency`; a killed worker's slot is free again as
soon as the ledger shows it. The waiting experiments are in the ledger, which every executor reads: so the order is decided
anew each time, and a waiting experiment holds nothing.
The leading ticker's executors, one a workspace, share a board, so that one decision is about the whole cluster. An executor of
another process sees its own workspace alone: quotas hold there too, but shares between workspaces and priorities do not.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from toque.functions.runtime import catalog
from toque.functions.runtime.admission.occupancy import Shares, Spent
from toque.functions.runtime.admission.request import (
    EVERYONE,
    MAX_SHARE,
    Quota,
    QuotaRequest,
    blocking_quota,
    pieces_of,
    team_of,
    why_unsatisfiable,
)
from toque.functions.runtime.admission.rule import schedule
from toque.functions.runtime.cards import Node
from toque.functions.runtime.context import Context
from toque.functions.runtime.declaration import Demand
from toque.functions.runtime.durable.concurrency import ConcurrencySlots, SlotHolders
from toque.functions.runtime.durable.costs import Spending
from toque.functions.runtime.durable.heartbeat import last_beat, usage_of
from toque.functions.runtime.durable.ledger import FollowedRecord, Ledger
from toque.functions.runtime.durable.record import Record
from toque.functions.runtime.errors import DeclarationError, FunctionError, OverQuota
from toque.functions.runtime.receipt import Prices, Usage
from toque.functions.runtime.run.declared import DeclaredFunction
from toque.registry.access import DEFAULT_WORKSPACE, Access
from toque.registry.journal.entry import Entry
from toque.registry.journal.fold import Fold
from toque.registry.journal.journal import Journal
from toque.registry.store.object_store import ObjectStore
from toque.registry.times import from_text, to_text, utc_now

JOURNAL = "places"
_LOOK_S = 30.0  # at most, from one decision to the next while experiments run and none waits
_VALID_S = 60.0  # of what is posted on a board: longer than an executor with runs and nothing that waits goes without posting


@dataclass(frozen=True, slots=True)
class Admissions:
    """What becomes of a workspace's experiments now.

    refused: final entries of those that exceed a quota even alone; start: those that begin, in order, and whether they fill a gap
    before one that waits for room; preempt: those that are asked to yield, and for what.
    """

    refused: dict[str, dict[str, Any]]
    start: dict[str, bool]
    preempt: dict[str, str]


class QuotaSlots(ConcurrencySlots):
    """Slots of all experiments in a ledger's store, limited by the quotas of teams. workspace: of the store."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        workspace: str = DEFAULT_WORKSPACE,
        board: Board | None = None,
        prices: Prices | None = None,
        allotment: Callable[[], Quota] = Quota,
    ) -> None:
        """allotment: finds what the platform allots the workspace."""
        super().__init__(ledger, JOURNAL, limit=0)
        self._allotment = allotment
        self._quotas = quotas_in(ledger.store, ledger.actor)
        self._spending = Spending(ledger.store, actor=ledger.actor)
        self._workspace, self._board, self._prices = workspace, board or Board(), prices
        self._known: dict[str, tuple[Record, Demand]] = {}
        self._foreign: set[str] = set()
        self._nodes: dict[str, str] = {}
        self._looked_at = float("-inf")
        self._posted_running = 0

    @classmethod
    def of(cls, function: DeclaredFunction, ledger: Ledger) -> Self | None:
        """Open the slots that a function's runs take; None if it declares no demand."""
        return cls(ledger) if function.demand else None

    def needs_quota(self, followed: FollowedRecord) -> bool:
        """Whether the function of an invocation declares a demand."""
        function = catalog.find(followed.record.reference)
        return function is not None and function.demand is not None

    def idle(self, *, running: int) -> bool:
        """Whether nothing that runs, nor any other workspace, needs a decision now although nothing waits here.

        running: number of experiments that run, as far as the caller knows. It makes no request.
        """
        if not running and not self._posted_running:
            return True
        return time.monotonic() - self._looked_at < _LOOK_S and not self._board.others_wait(self._workspace)

    def admit(
        self,
        waiting: Mapping[str, FollowedRecord],
        *,
        started: Iterable[str],
        yielding: Collection[str] = (),
        capacity: Collection[Node] | None = None,
    ) -> Admissions:
        """Choose the waiting invocations that begin now and the running ones that yield, and end those that exceed a quota even alone.

        started: invocations whose workers have started and may not have acquired their slots yet; yielding: those that were
        asked to yield; capacity: nodes of the cluster, None if they are not known.
        """
        self._looked_at = time.monotonic()
        self._quotas.refresh()
        holders = self._running_requests()
        requests, refused = self._requests(waiting)
        starting = [self._request(*self._known[each]) for each in started if each in self._known]
        holding = {each.invocation for each in holders}
        running = [*holders, *(each for each in starting if each.invocation not in holding)]
        kept = {*waiting, *started, *holding}
        self._known = {each: known for each, known in self._known.items() if each in kept}
        running = [replace(each, yielding=each.invocation in yielding) for each in running]
        self._posted_running = len(running)
        self._board.post(self._workspace, Posted(tuple(requests.values()), tuple(running), self._shares()))
        whole = self._board.whole()
        decision = schedule(whole.waiting, whole.running, capacity, whole.shares, self.ledger.clock())
        start = {
            each.invocation: each.backfilled for each in decision.start if each.workspace == self._workspace
        }
        asked = {each.invocation for each in running}
        return Admissions(
            refused, start, {name: why for name, why in decision.preempt.items() if name in asked}
        )

    def _requests(
        self, waiting: Mapping[str, FollowedRecord]
    ) -> tuple[dict[str, QuotaRequest], dict[str, dict[str, Any]]]:
        """Make the requests of waiting invocations, and final entries of those that can never run."""
        requests: dict[str, QuotaRequest] = {}
        refused: dict[str, dict[str, Any]] = {}
        for each, followed in waiting.items():
            try:
                request = self._request(followed.record)
            except DeclarationError as error:
                refused[each] = refused_entry(error)
                continue
            why = why_unsatisfiable(request, self._quotas.state)
            if why is None:
                requests[each] = request
            else:
                refused[each] = refused_entry(OverQuota(why))
        return requests, refused

    def _shares(self) -> Shares:
        """What the teams of this workspace may have; what they spent is read only if a quota has a budget."""
        quotas = self._quotas.state
        budgeted = any(True for quota in quotas.values() for _ in quota.budgets())
        spent = self._spending.of_month(self.ledger.clock()) if budgeted else {}
        return Shares(
            {self._workspace: quotas},
            {(self._workspace, team): each for team, each in spent.items()},
            self._prices,
            {self._workspace: self._allotment()},
        )

    def posted(self, records: Iterable[Record]) -> Posted:
        """Describe the queue from the records of experiments that have not ended, for a reader who decides nothing."""
        self._quotas.refresh()
        holders = {each.invocation: each for each in self._running_requests()}
        running, waiting = [], []
        for record in records:
            request = self._request(record)
            if record.status == "running":
                held = holders.get(record.id, replace(request, started_at=record.started_at))
                running.append(replace(held, at=record.submitted_at, yielding=record.preempting is not None))
            else:
                waiting.append(request)
        return Posted(tuple(waiting), tuple(running), self._shares())

    def acquire_for(self, record: Record, worker: str, *, backfilled: bool = False) -> bool:
        """Acquire the slot of an invocation, if its quotas have room.

        backfilled: whether it fills a gap before one that waits for room.
        """
        self._quotas.refresh()
        request = self._request(record)
        held = {name: getattr(request, name) for name in ("team", "cpus", "gpus", "priority")}
        if backfilled:
            held["backfilled"] = True  # left out else, as older releases know no such field
        if not self._has_room(
            self._fold.refresh(), held | {"invocation": record.id, "at": to_text(utc_now())}
        ):
            for stale in self._stale(self._fold.state):
                self.release(stale)
        return self.acquire(worker, record.id, held)

    def release(self, worker: str, usage: Usage | None = None) -> None:
        """Release the slot of a worker, if it holds one, and count what it used for its team's budgets.

        usage: as the worker measured it; None: what its last heartbeat said.
        """
        held = self._fold.refresh().get(worker)
        if held is None:
            return
        usage = usage or usage_of(last_beat(self.ledger.store, held["invocation"]), worker)
        if usage is not None:
            self._spending.add(worker, held["team"], usage)
        super().release(worker)

    def usage(self) -> list[tuple[str, str, float, float | None]]:
        """List what the running experiments of each team occupy, and may: team, resource, used, limit (None: none)."""
        quotas, running = (
            self._quotas.refresh(),
            [_plain_request(each) for each in self._fold.refresh().values()],
        )
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

    def spent(self) -> list[tuple[str, str, float, float]]:
        """List the budgets of this month: team, budget, spent by attempts that have ended, limit."""
        quotas, found = self._quotas.refresh(), []
        shares = self._shares()
        for team, quota in sorted(quotas.items()):
            of_team = [each for (_, name), each in shares.spent.items() if team in {name, EVERYONE}]
            total = sum(of_team, Spent())
            found += [(team, name, total.of(name, self._prices), limit) for name, limit in quota.budgets()]
        return found

    def _running_requests(self) -> list[QuotaRequest]:
        """List the requests that hold slots, after releasing those of killed workers a few times within a lease."""
        holders, now = self._fold.refresh(), time.monotonic()
        if now - self._checked_at > self.ledger.lease_s / 3:
            self._checked_at = now
            for worker in self._stale(holders):
                self.release(worker)
        self._nodes = {worker: node for worker, node in self._nodes.items() if worker in self._fold.state}
        return [self._held_request(worker, each) for worker, each in self._fold.state.items()]

    def _held_request(self, worker: str, held: Mapping[str, Any]) -> QuotaRequest:
        """Make the request of one that holds a slot; what the slot does not say, its record does, which is read once."""
        request = replace(_plain_request(held), workspace=self._workspace)
        if request.invocation in self._foreign:
            return request
        if request.invocation not in self._known:
            try:
                record = self.ledger.read(request.invocation)
                self._known[record.id] = record, demand_of(record, self.ledger)
            except FunctionError:  # it was deleted, or its function is not declared here
                self._foreign.add(request.invocation)
                return request
        demand = self._known[request.invocation][1]
        return replace(
            request,
            workers=pieces_of(demand),
            card=demand.card,
            memory_bytes=demand.memory_bytes,
            limit_s=demand.limit_s,
            preemptible=demand.preemptible,
            nodes=self._own_node(worker, request.invocation) if demand.gpus and demand.workers == 1 else (),
        )

    def _own_node(self, worker: str, invocation: str) -> tuple[str, ...]:
        """Node of a run that holds its cards itself, once it has claimed its invocation."""
        if worker not in self._nodes:
            record = self.ledger.read(invocation)
            if record.worker != worker or record.node is None:
                return ()
            self._nodes[worker] = record.node
        return (self._nodes[worker],)

    def _request(self, record: Record, demand: Demand | None = None) -> QuotaRequest:
        if record.id not in self._known:
            self._known[record.id] = record, demand_of(record, self.ledger)
        team = team_of(record.caller, self._quotas.state)
        demand = demand or self._known[record.id][1]
        return QuotaRequest.of(record.id, team, demand, record.submitted_at, workspace=self._workspace)

    def _has_room(self, holders: SlotHolders, request: Mapping[str, Any]) -> bool:
        running = [_plain_request(each) for each in holders.values()]
        return blocking_quota(_plain_request(request), running, self._quotas.state) is None


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
    return Fold(
        Journal(store, "quotas", actor=actor),
        {},
        _fold_entry,
        encode=lambda quotas: {team: quota.stored() for team, quota in quotas.items()},
        decode=lambda stored: {team: _stored_quota(quota) for team, quota in stored.items()},
    )


def refused_entry(error: FunctionError) -> dict[str, Any]:
    """Build the entry of an invocation that ends without an attempt."""
    failure = {"type": type(error).__name__, "message": str(error)}
    return {"kind": "dead", "lost": True, "failure": failure}


def allotment_in(used: Context) -> Callable[[], Quota]:
    """Return what finds the allotment of a context's workspace; it reads the access list at most once a second.

    Admins of all workspaces alone write it there. It raises Unavailable if the list was never read and cannot be.
    """
    access = Access(used.in_workspace(DEFAULT_WORKSPACE).store, actor=used.actor)

    def find() -> Quota:
        workspace = access.find_workspace(used.workspace)
        return Quota() if workspace is None else Quota(**workspace.queue.model_dump())

    return find


@dataclass(frozen=True, slots=True)
class Posted:
    """What the queue of one workspace looks like: who waits, who runs, and the shares of its teams."""

    waiting: tuple[QuotaRequest, ...] = ()
    running: tuple[QuotaRequest, ...] = ()
    shares: Shares = field(default_factory=Shares)


class Board:
    """Queues of the workspaces of one platform, as they were posted within the last seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._posted: dict[str, tuple[float, Posted]] = {}
        self._clock, self._lock = clock, threading.Lock()

    def post(self, workspace: str, posted: Posted) -> None:
        """Replace what is posted of a workspace."""
        with self._lock:
            self._posted[workspace] = self._clock(), posted

    def others_wait(self, workspace: str) -> bool:
        """Whether anything waits in another workspace."""
        return any(each.waiting for name, each in self._recent().items() if name != workspace)

    def whole(self) -> Posted:
        """All workspaces as one queue."""
        recent = self._recent().values()
        shares = Shares()
        for each in recent:
            shares = replace(
                shares,
                quotas={**shares.quotas, **each.shares.quotas},
                spent={**shares.spent, **each.shares.spent},
                prices=shares.prices or each.shares.prices,
                allotments={**shares.allotments, **each.shares.allotments},
            )
        return Posted(
            tuple(request for each in recent for request in each.waiting),
            tuple(request for each in recent for request in each.running),
            shares,
        )

    def _recent(self) -> dict[str, Posted]:
        with self._lock:
            oldest = self._clock() - _VALID_S
            return {name: each for name, (at, each) in sorted(self._posted.items()) if at >= oldest}


_boards: dict[str, Board] = {}


def board_of(platform_url: str) -> Board:
    """Return this process's board of a platform."""
    return _boards.setdefault(platform_url, Board())


def _fold_entry(quotas: dict[str, Quota], entry: Entry) -> dict[str, Quota]:
    team, quota = entry.body["team"], entry.body["quota"]
    others = {name: quota for name, quota in quotas.items() if name != team}
    return others if quota is None else others | {team: _stored_quota(quota)}


def _stored_quota(fields: Mapping[str, Any]) -> Quota:
    """Read a quota; releases before 0.2 took any share."""
    return Quota.model_validate({**fields, "share": min(fields.get("share", 1.0), MAX_SHARE)})


def _plain_request(held: Mapping[str, Any]) -> QuotaRequest:
    """Make the request of a slot as it is stored."""
    at = from_text(held["at"])
    return QuotaRequest(**{**held, "at": at, "started_at": at})
