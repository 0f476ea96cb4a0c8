"""Rule of the queue of experiments: a pure decision over the waiting ones, the running ones, the cards and the shares of teams.

The workspace with the smaller share of the cards for its weight goes first; in it the higher priority, which says nothing to other
workspaces; among equals the team with the smaller dominant share for its weight, and in a team the earlier one. One that is blocked holds back those after it that want the same room, but for backfill: an experiment
starts in a gap if it has declared that it ends before the blocked one could begin, or yields when asked. Experiments that yield
are preempted for a higher priority of their workspace, for the one that they were filled in before, and when their team's budget ends.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import MAXYEAR, datetime, timedelta

from toque.functions.runtime.admission.occupancy import Blocked, Occupancy, Shares, held_by
from toque.functions.runtime.admission.request import (
    EVERYONE,
    YIELD_S,
    QuotaRequest,
    blocking_quota,
    exceeded_limit,
    why_unsatisfiable,
)
from toque.functions.runtime.cards import Node

__all__ = ["Decision", "admission_order", "blocking_quota", "next_look", "schedule", "why_unsatisfiable"]

_ROUNDING = 1e-6  # of a budget: what cards use in the microsecond to which times are rounded is less


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of the queue now.

    start: in order, each with the nodes of its workers, if the nodes are known; preempt: running invocations that are asked to
    yield, and for what; wait: what each other waiting invocation waits for.
    """

    start: tuple[QuotaRequest, ...] = ()
    preempt: Mapping[str, str] = field(default_factory=dict)
    wait: Mapping[str, str] = field(default_factory=dict)


def schedule(
    waiting: Iterable[QuotaRequest],
    running: Iterable[QuotaRequest],
    capacity: Collection[Node] | None,
    shares: Shares,
    now: datetime,
) -> Decision:
    """Decide which waiting experiments start, which running ones yield, and why the others wait.

    capacity: nodes with cards, those included that the autoscaler may start; None: not known, so that quotas alone decide. A
    request that alone exceeds a quota waits, and holds nobody back.
    """
    found = _Round(Occupancy(running, capacity, shares, now))
    found.end_budgets()
    for request in _in_order(waiting, found.now_held):
        found.consider(request)
    return Decision(tuple(found.start), found.preempt, found.wait)


def admission_order(
    running: Sequence[QuotaRequest], waiting: Iterable[QuotaRequest], shares: Shares, now: datetime
) -> list[QuotaRequest]:
    """Sort the waiting requests in the order in which they would begin if there were room."""
    held = Occupancy(running, None, shares, now)
    found = []
    for each in _in_order(waiting, held):
        held.add(each, ())
        found.append(each)
    return found


def next_look(running: Iterable[QuotaRequest], shares: Shares, now: datetime) -> datetime | None:
    """Find when the rule has to look again although nothing has changed: when a budget ends at the rate of now; None if none does."""
    held = Occupancy(running, None, shares, now)
    looks = []
    for (workspace, team), name, limit in _budgets(held):
        later = Occupancy(held.running.values(), None, shares, now + timedelta(hours=1))
        rate = later.committed(workspace, team, name) - held.committed(workspace, team, name)
        if rate > _ROUNDING:
            looks.append(
                now + timedelta(hours=max(0.0, limit - held.committed(workspace, team, name)) / rate)
            )
    return min(looks, default=None)


def _budgets(held: Occupancy) -> Iterator[tuple[tuple[str, str], str, float]]:
    """Yield the budgets of which somebody who runs takes: owner, name and value."""
    owners = {owner for run in held.running.values() for owner in (run.owner, (run.workspace, EVERYONE))}
    for workspace, team in sorted(owners):
        for name, limit in held.shares.quota(workspace, team).budgets():
            yield (workspace, team), name, limit


def _in_order(waiting: Iterable[QuotaRequest], held: Occupancy) -> Iterator[QuotaRequest]:
    """Yield the waiting requests by the rule's order; shares follow what the caller adds to `held` meanwhile."""
    workspaces: dict[str, dict[tuple[int, str], list[QuotaRequest]]] = {}
    turns: dict[
        str, list[datetime]
    ] = {}  # a workspace's turns come by the times of its requests; a priority says whose each is
    for each in sorted(waiting, key=lambda request: (request.at, request.invocation), reverse=True):
        workspaces.setdefault(each.workspace, {}).setdefault((each.priority, each.team), []).append(each)
        turns.setdefault(each.workspace, []).append(each.at)
    shares: dict[tuple[str, str], tuple[float, float]] = {}
    known_at = -1
    while workspaces:
        if known_at != held.changes:
            known_at = held.changes
            shares = {
                (name, team): _shares(held, name, team)
                for name, queues in workspaces.items()
                for _, team in queues
            }
        name = min(
            workspaces,
            key=lambda name: (shares[name, next(iter(workspaces[name]))[1]][0], turns[name][-1], name),
        )
        turns[name].pop()
        queues = workspaces[name]
        key = min(queues, key=lambda key: (-key[0], shares[name, key[1]][1], *_first(queues[key])))
        yield queues[key].pop()
        if not queues[key]:
            del queues[key]
        if not queues:
            del workspaces[name]


def _first(queue: list[QuotaRequest]) -> tuple[datetime, str]:
    return queue[-1].at, queue[-1].invocation


def _shares(held: Occupancy, workspace: str, team: str) -> tuple[float, float]:
    """Shares that a workspace has of the cluster's cards, and a team of its workspace, each for its weight."""
    shares, everyone = held.shares, held.shares.quota(workspace, EVERYONE)
    cards = sum(node.gpus for node in held.room.nodes.values()) if held.room else 0.0
    own, all_of_it = held.occupied(workspace, team), held.occupied(workspace, EVERYONE)
    limits = dict(everyone.limits())
    if cards:
        limits.setdefault("gpus", cards)
    dominant = max((own[name] / limit for name, limit in limits.items() if limit), default=0.0)
    of_cards = all_of_it["gpus"] / cards if cards else 0.0
    return of_cards / shares.allotment(workspace).share, dominant / shares.quota(workspace, team).share


@dataclass(slots=True)
class _Head:
    """Blocked request for which room is kept.

    begins: when it has room for certain, as far as limits were declared; beside: what still runs then; soon: whether runs that
    yield already make the room.
    """

    request: QuotaRequest
    blocked: Blocked
    begins: datetime
    beside: Occupancy
    soon: bool
    nodes: frozenset[str]

    def competes(self, other: QuotaRequest) -> bool:
        """Whether another request wants the room that this one waits for."""
        if self.blocked.by == "team":
            return other.owner == self.request.owner
        if self.blocked.by == "everyone":
            return other.workspace == self.request.workspace
        return other.gpus > 0


class _Round:
    """One decision while it is made: what is held now, and what will be once those that yield have left."""

    def __init__(self, held: Occupancy) -> None:
        self.now_held, self.now = held, held.now
        self.later = held.copy()  # without those that yield, and with those for which they do
        for each in [run for run in held.running.values() if run.yielding]:
            self.later.remove(each.invocation)
        self.start: list[QuotaRequest] = []
        self.preempt: dict[str, str] = {}
        self.wait: dict[str, str] = {}
        self._heads: list[_Head] = []

    def end_budgets(self) -> None:
        """Preempt the runs that a budget no longer pays for."""
        for (workspace, team), name, limit in list(_budgets(self.now_held)):
            if self.now_held.committed(workspace, team, name) < limit - _ROUNDING:
                continue
            for run in list(self.later.running.values()):
                if run.preemptible and run.workspace == workspace and team in {run.team, EVERYONE}:
                    self._ask(run, f"the end of the budget {name}={limit:g} of {team!r}")

    def consider(self, request: QuotaRequest) -> None:
        """Start a request, make room for it, or let it wait."""
        shares = self.now_held.shares
        if why_unsatisfiable(request, shares.quotas.get(request.workspace, {})) is not None:
            self.wait[request.invocation] = "a larger quota"
            return
        if exceeded_limit(request, (), shares.allotment(request.workspace)) is not None:
            self.wait[request.invocation] = (
                "a larger allotment of its workspace, which an admin of all workspaces sets"
            )
            return
        blocked = self.now_held.blocked(request)
        rivals = [head for head in self._heads if head.competes(request)]
        if blocked is None:
            if not rivals:
                self._begin(request, self.now_held.find(request) or (), backfilled=False)
            elif not self._fill_in(request, rivals):
                self.wait[request.invocation] = f"its turn, behind {rivals[0].request.invocation}"
            return
        self.wait[request.invocation] = blocked.reason
        kept = any(head.blocked.by == blocked.by and not head.soon for head in rivals)
        if blocked.by not in {"budget", "nodes"} and not kept:  # room is kept for the first alone
            self._block(request, blocked)

    def _begin(self, request: QuotaRequest, nodes: tuple[str, ...], *, backfilled: bool) -> None:
        started = replace(request, nodes=nodes, started_at=self.now, backfilled=backfilled)
        self.start.append(started)
        self.now_held.add(started, nodes)
        self.later.add(started, nodes)

    def _fill_in(self, request: QuotaRequest, rivals: list[_Head]) -> bool:
        """Start a request before blocked ones if none of them begins later for it."""
        if (nodes := self._elsewhere(request, rivals)) is not None:
            self._begin(request, nodes, backfilled=False)
            return True
        soon = any(head.soon for head in rivals)
        if (nodes := self._nodes_beside(request) if soon else self.now_held.find(request)) is None:
            return False
        ends = request.end(self.now) or self._never
        certain = all(ends <= head.begins < self._never or _fits_beside(head, request) for head in rivals)
        if not certain and (soon or not request.preemptible):
            return False
        self._begin(request, nodes, backfilled=not certain)
        for head in rivals:
            if certain and ends > head.begins and head.beside is not self.later:
                head.beside.add(self.start[-1], nodes)
        return True

    def _elsewhere(self, request: QuotaRequest, rivals: list[_Head]) -> tuple[str, ...] | None:
        """Find nodes that no blocked request could use; None if there are none, or something else than cards blocks."""
        if self.now_held.room is None or any(head.blocked.by != "cards" for head in rivals):
            return None
        return self.now_held.room.find(request, avoid=set().union(*(head.nodes for head in rivals)))

    def _nodes_beside(self, request: QuotaRequest) -> tuple[str, ...] | None:
        """Find nodes that are free now, and will be once those that yield have made room."""
        if self.later.blocked(request) is not None:
            return None
        for nodes in (self.later.find(request), self.now_held.find(request)):
            if nodes is not None and all(
                held.room is None or held.room.holds(request, nodes) for held in (self.now_held, self.later)
            ):
                return nodes
        return None

    def _block(self, request: QuotaRequest, blocked: Blocked) -> None:
        """Keep room for a blocked request: that of runs that yield, or what is left when others have ended."""
        soon = self.later.blocked(request) is None or self._preempt_for(request)
        room = self.now_held.room
        able = [] if room is None else [node.name for node in room.nodes.values() if held_by(node, request)]
        if soon:
            self.later.add(request, self.later.find(request) or ())
            self.wait[request.invocation] = "runs that save their state for it"
            begins, beside = self.now + timedelta(seconds=YIELD_S), self.later
        else:
            begins, beside = self._begins(request)
        self._heads.append(_Head(request, blocked, begins, beside, soon, frozenset(able)))

    def _begins(self, request: QuotaRequest) -> tuple[datetime, Occupancy]:
        """Find when a request has room for certain, and what still runs then."""
        beside = self.later.copy()
        ends = {run.invocation: run.end(self.now) or self._never for run in beside.running.values()}
        for name in sorted(ends, key=lambda each: (ends[each], each)):
            if ends[name] == self._never:
                break
            beside.remove(name)
            if beside.blocked(request) is None:
                return ends[name], beside
        return self._never, beside

    def _preempt_for(self, request: QuotaRequest) -> bool:
        """Ask runs to yield that are less urgent than a blocked request, if that makes room for it."""
        trial, victims = self.later.copy(), []
        just_begun = {run.invocation for run in self.start}
        for run in sorted(trial.running.values(), key=lambda run: (run.priority, *_newest(run))):
            of_ours = run.workspace == request.workspace
            filled_in = run.backfilled and (run.priority == request.priority or not of_ours)
            if run.invocation in just_begun or run.started_at is None or not run.preemptible:
                continue
            if (of_ours and run.priority < request.priority) or filled_in:
                trial.remove(run.invocation)
                victims.append(run)
                if trial.blocked(request) is None:
                    break
        else:
            return False
        for run in victims[-2::-1]:  # those that are not needed for it go on
            trial.add(run, self.later.nodes_of(run.invocation))
            if trial.blocked(request) is None:
                victims.remove(run)
            else:
                trial.remove(run.invocation)
        for run in victims:
            self._ask(run, f"{request.invocation}, which goes before it")
        return True

    def _ask(self, run: QuotaRequest, reason: str) -> None:
        self.preempt[run.invocation] = reason
        self.later.remove(run.invocation)

    @property
    def _never(self) -> datetime:
        return datetime.max.replace(tzinfo=self.now.tzinfo)


def _newest(run: QuotaRequest) -> tuple[float, str]:
    return -(run.started_at or run.at).timestamp(), run.invocation


def _fits_beside(head: _Head, request: QuotaRequest) -> bool:
    """Whether a blocked request still has room when it begins, with another one beside it."""
    if head.begins.year == MAXYEAR:
        return False
    trial = head.beside.copy()
    if head.request.invocation not in trial.running:
        trial.add(head.request, trial.find(head.request) or ())
    return trial.blocked(request) is None
