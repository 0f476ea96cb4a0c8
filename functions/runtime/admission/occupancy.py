"""What the running experiments occupy: of quotas, this month's budgets and cards; and what a request would exceed.

Gangs are placed on cards as Ray gives them out: whole GPUs, or parts of one GPU each.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, NamedTuple

from toque.functions.runtime.admission.request import (
    EVERYONE,
    SLACK,
    YIELD_S,
    Quota,
    QuotaRequest,
    Quotas,
)
from toque.functions.runtime.cards import Node, is_slice, share_of
from toque.functions.runtime.receipt import Prices

Owner = tuple[str, str]  # workspace and team
_KINDS = ("cpus", "gpus", "at_once")
_NO_QUOTA = Quota()
_SLACK = 1e-9


@dataclass(frozen=True, slots=True)
class Spent:
    """CPU and GPU seconds that a team's experiments have used this month, those that run now left out."""

    cpu_s: float = 0.0
    gpu_s: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.cpu_s + other.cpu_s, self.gpu_s + other.gpu_s)

    def of(self, budget: str, prices: Prices | None) -> float:
        """Convert to the unit of a budget: hours of GPUs, or money at `prices`, 0 without them."""
        if budget == "gpu_hours":
            return self.gpu_s / 3600
        return 0.0 if prices is None else prices.money(cpu_s=self.cpu_s, gpu_s=self.gpu_s)


@dataclass(frozen=True, slots=True)
class Shares:
    """What teams may have: quotas by workspace and team, what is spent of this month's budgets, and prices for those in money.

    allotments: what the platform allots whole workspaces: limits, and the weight of each among all.
    """

    quotas: Mapping[str, Quotas] = field(default_factory=dict)
    spent: Mapping[Owner, Spent] = field(default_factory=dict)
    prices: Prices | None = None
    allotments: Mapping[str, Quota] = field(default_factory=dict)

    def allotment(self, workspace: str) -> Quota:
        """What the platform allots a workspace; no limits and a weight of 1 unless an admin of all workspaces says otherwise."""
        return self.allotments.get(workspace, _NO_QUOTA)

    def quota(self, workspace: str, team: str) -> Quota:
        """Quota of a team; one without limits if there is none."""
        return self.quotas.get(workspace, {}).get(team, _NO_QUOTA)


class Blocked(NamedTuple):
    """Why a request cannot start: its team's quota, that of everyone in its workspace, a budget, cards, or nodes that nobody has."""

    by: Literal["team", "everyone", "budget", "cards", "nodes"]
    reason: str


class Occupancy:
    """Occupied quotas, budgets and cards, while runs are added and removed.

    capacity: nodes of the cluster; None where nobody knows them, and cards then block nothing.
    """

    def __init__(
        self,
        running: Iterable[QuotaRequest],
        capacity: Collection[Node] | None,
        shares: Shares,
        now: datetime,
    ) -> None:
        self.running: dict[str, QuotaRequest] = {}
        self.room = None if capacity is None else Room(capacity)
        self.shares, self.now, self.changes = shares, now, 0
        self._committed: dict[tuple[str, str, str], float] = {}
        self._committed_at = -1
        self._nodes: dict[str, tuple[str, ...]] = {}
        self._sums: dict[Owner, dict[str, float]] = {}
        for each in sorted(running, key=lambda run: (not run.nodes, -run.gpus, run.invocation)):
            found = each.nodes or (self.room.find(each) if self.room else ()) or ()
            self.add(each, found)

    def copy(self) -> Occupancy:
        """Copy it, to see what would be if other runs came or went."""
        found = Occupancy((), None, self.shares, self.now)
        found.running, found.room = dict(self.running), self.room and self.room.copy()
        found._nodes = dict(self._nodes)
        found._sums = {owner: dict(sums) for owner, sums in self._sums.items()}
        return found

    def nodes_of(self, invocation: str) -> tuple[str, ...]:
        """Nodes on which the workers of a run are counted."""
        return self._nodes[invocation]

    def add(self, run: QuotaRequest, nodes: tuple[str, ...]) -> None:
        """Add a run whose workers are on `nodes`."""
        self.running[run.invocation], self._nodes[run.invocation] = run, nodes
        self._count(run, 1)
        if self.room is not None:
            self.room.take(run, nodes)

    def remove(self, invocation: str) -> None:
        """Remove a run that ended, or would have."""
        run = self.running.pop(invocation)
        self._count(run, -1)
        nodes = self._nodes.pop(invocation)
        if self.room is not None:
            self.room.give_back(run, nodes)

    def _count(self, run: QuotaRequest, sign: int) -> None:
        self.changes += 1
        for team in (run.team, EVERYONE):
            sums = self._sums.setdefault((run.workspace, team), dict.fromkeys(_KINDS, 0.0))
            for kind in _KINDS:
                sums[kind] += sign * getattr(run, kind)

    def occupied(self, workspace: str, team: str) -> Mapping[str, float]:
        """Sum what a team, or everyone of a workspace, occupies."""
        return self._sums.get((workspace, team), dict.fromkeys(_KINDS, 0.0))

    def find(self, request: QuotaRequest) -> tuple[str, ...] | None:
        """Find nodes for a request's workers: none where the nodes are not known, None without room."""
        return () if self.room is None else self.room.find(request)

    def blocked(self, request: QuotaRequest) -> Blocked | None:
        """Find what keeps a request from starting; None if it may."""
        return (
            self._over_limit(request)
            or self._over_budget(request)
            or (None if self.find(request) is not None else self._no_cards(request))
        )

    def _over_limit(self, request: QuotaRequest) -> Blocked | None:
        workspace, shares = request.workspace, self.shares
        bounds: tuple[tuple[str, Quota, Blocked], ...] = (
            (
                request.team,
                shares.quota(workspace, request.team),
                Blocked("team", f"room in the quota of its team {request.team!r}"),
            ),
            (
                EVERYONE,
                shares.quota(workspace, EVERYONE),
                Blocked("everyone", "room in the quota of everyone"),
            ),
            (
                EVERYONE,
                shares.allotment(workspace),
                Blocked("everyone", "room in what the platform allots its workspace"),
            ),
        )
        for team, quota, blocked in bounds:
            occupied = self.occupied(workspace, team)
            for kind, limit in quota.limits():
                if occupied[kind] + getattr(request, kind) > limit + SLACK:
                    return blocked
        return None

    def _over_budget(self, request: QuotaRequest) -> Blocked | None:
        for team in (request.team, EVERYONE):
            for name, limit in self.shares.quota(request.workspace, team).budgets():
                if (
                    self.committed(request.workspace, team, name) + self._promise(request, name)
                    > limit + SLACK
                ):
                    who = "everyone has" if team == EVERYONE else f"its team {team!r} has"
                    return Blocked("budget", f"next month: {who} used {name}={limit:g} of this one")
        return None

    def committed(self, workspace: str, team: str, budget: str) -> float:
        """Sum what a team has spent of a budget, what its runs have used so far, and what they will use for certain."""
        if self._committed_at != self.changes:  # hundreds may wait for the end of one budget
            self._committed, self._committed_at = {}, self.changes
        key = workspace, team, budget
        if key not in self._committed:
            spent = sum(
                each.of(budget, self.shares.prices)
                for owner, each in self.shares.spent.items()
                if owner[0] == workspace and team in {owner[1], EVERYONE}
            )
            runs = [
                run
                for run in self.running.values()
                if run.workspace == workspace and team in {run.team, EVERYONE}
            ]
            used = sum(self._used(run, budget) + self._promise(run, budget) for run in runs)
            self._committed[key] = spent + used
        return self._committed[key]

    def _used(self, run: QuotaRequest, budget: str) -> float:
        seconds = max(0.0, (self.now - (run.started_at or self.now)).total_seconds())
        return Spent(run.cpus * seconds, run.gpus * seconds).of(budget, self.shares.prices)

    def _promise(self, run: QuotaRequest, budget: str) -> float:
        """What a run uses from now on even if it is asked to yield; of one that does not yield, up to its limit, if it has one."""
        end = run.end(self.now)
        seconds = 0.0 if end is None else (end - self.now).total_seconds()
        if run.preemptible:
            seconds = YIELD_S if end is None else min(seconds, YIELD_S)
        return Spent(run.cpus * seconds, run.gpus * seconds).of(budget, self.shares.prices)

    def _no_cards(self, request: QuotaRequest) -> Blocked:
        room = self.room
        assert room is not None  # noqa: S101 - who calls has looked
        kind = f" ({request.card})" if request.card else ""
        needed = f"{request.workers} × {request.gpus / share_of(request.card) / max(1, request.workers):g} GPU{kind}"
        if sum(held_by(node, request) for node in room.nodes.values()) < request.workers:
            return Blocked("nodes", f"nodes with {needed}: none are there, or may be started")
        return Blocked("cards", f"cards: it needs {needed}, and {room.free_gpus:.4g} are free")


def held_by(node: Node, request: QuotaRequest) -> int:
    """Count the workers of `request` that a node holds when it is empty."""
    return _count(request, node, _Free.of(node))


@dataclass(frozen=True, slots=True)
class _Free:
    """What is free on a node: of each of its GPUs, CPUs and memory."""

    gpus: tuple[float, ...]
    cpus: float
    memory_bytes: float

    @classmethod
    def of(cls, node: Node) -> _Free:
        return cls(node.units, node.cpus, node.memory_bytes)

    def without(self, taken: Iterable[tuple[int, float]], cpus: float, memory_bytes: float) -> _Free:
        """What is free once amounts of GPUs by number, CPUs and memory are taken; given back, if they are negative."""
        gpus = list(self.gpus)
        for number, amount in taken:
            gpus[number] -= amount
        return _Free(tuple(gpus), self.cpus - cpus, self.memory_bytes - memory_bytes)

    def pick(self, amount: float, unit: float) -> list[tuple[int, float]]:
        """Choose GPUs for one worker: the fullest that holds a part, or the freest ones; more than is free if it must be."""
        order = sorted(range(len(self.gpus)), key=lambda number: (-self.gpus[number], number))
        if amount < unit - _SLACK:
            fitting = [number for number in order if self.gpus[number] >= amount - _SLACK]
            return [(each, amount) for each in (fitting[-1:] or order[:1])]
        return [(each, unit) for each in order[: round(amount / unit)]]


class Room:
    """What is free on each node of a cluster while workers are placed on it.

    Only workers with GPUs are placed; others need no card, and Ray finds their CPUs.
    """

    def __init__(self, nodes: Iterable[Node]) -> None:
        self.nodes = {each.name: each for each in nodes}
        self._free = {name: _Free.of(each) for name, each in self.nodes.items()}
        self._taken: dict[tuple[str, str], tuple[tuple[int, float], ...]] = {}  # by invocation and node

    def copy(self) -> Room:
        """Copy the room with what is taken of it."""
        found = Room(())
        found.nodes, found._free, found._taken = self.nodes, dict(self._free), dict(self._taken)
        return found

    @property
    def free_gpus(self) -> float:
        """Number of cards that are free on all nodes together."""
        return sum(sum(each.gpus) for each in self._free.values())

    def find(self, request: QuotaRequest, *, avoid: Collection[str] = ()) -> tuple[str, ...] | None:
        """Find a node for each worker of a request: the fullest one that holds all, or else as few as possible; None without room.

        avoid: names of nodes that are left alone.
        """
        if request.gpus <= 0:
            return ()
        held = {
            name: count
            for name, free in self._free.items()
            if name not in avoid and (count := _count(request, self.nodes[name], free)) > 0
        }
        whole = [name for name, count in held.items() if count >= request.workers]
        if whole:
            best = min(whole, key=lambda name: (self.nodes[name].coming, sum(self._free[name].gpus), name))
            return (best,) * request.workers
        chosen: list[str] = []
        for name in sorted(held, key=lambda name: (self.nodes[name].coming, -held[name], name)):
            chosen += [name] * min(held[name], request.workers - len(chosen))
        return tuple(chosen) if len(chosen) == request.workers else None

    def holds(self, request: QuotaRequest, nodes: Iterable[str]) -> bool:
        """Whether the workers of a request have room on the nodes that are named for them."""
        return all(
            _count(request, self.nodes[name], self._free[name]) >= count
            for name, count in Counter(nodes).items()
        )

    def take(self, request: QuotaRequest, nodes: Iterable[str]) -> None:
        """Place the workers of a request on nodes, one on each that is named; unknown ones are left out."""
        gpus, cpus, memory = _each(request)
        for name, count in Counter(nodes).items():
            if name not in self._free:
                continue
            free, taken = self._free[name], []
            for _ in range(count):
                picked = free.pick(gpus, share_of(self.nodes[name].card)) if gpus > 0 else []
                free = free.without(picked, cpus, memory)
                taken += picked
            self._free[name], self._taken[request.invocation, name] = free, tuple(taken)

    def give_back(self, request: QuotaRequest, nodes: Iterable[str]) -> None:
        """Free what the workers of a request hold."""
        _, cpus, memory = _each(request)
        for name, count in Counter(nodes).items():
            if name in self._free:
                taken = self._taken.pop((request.invocation, name))
                given = [(number, -amount) for number, amount in taken]
                self._free[name] = self._free[name].without(given, -cpus * count, -memory * count)


def _each(request: QuotaRequest) -> tuple[float, float, float]:
    count = max(1, request.workers)
    return request.gpus / count, request.cpus / count, request.memory_bytes / count


def _count(request: QuotaRequest, node: Node, free: _Free) -> int:
    """Count the workers of a request that fit into what is free of a node."""
    if not _suits(request, node):
        return 0
    gpus, cpus, memory = _each(request)
    counts = [request.workers]
    if gpus > 0:
        counts.append(_held_by_gpus(gpus, share_of(node.card), free.gpus))
    for need, have in ((cpus, free.cpus), (memory, free.memory_bytes)):
        if need > 0 and have < math.inf:
            counts.append(int(have / need + _SLACK))
    return min(counts)


def _suits(request: QuotaRequest, node: Node) -> bool:
    """Whether a request may have GPUs of a node's type; who asks for any gets no slices."""
    if request.card is None:
        return not is_slice(node.card)
    if node.coming and node.card is None:  # Ray will say, once it is there
        return not is_slice(request.card)
    return request.card == node.card


def _held_by_gpus(amount: float, unit: float, free: tuple[float, ...]) -> int:
    """Count the workers that free GPUs hold: each has a part of one, or whole ones."""
    if amount < unit - _SLACK:
        return sum(int(each / amount + _SLACK) for each in free if each > 0)
    return int(sum(each >= unit - _SLACK for each in free) * unit / amount + _SLACK)
