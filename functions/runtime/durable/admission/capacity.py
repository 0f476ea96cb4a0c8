"""Cards of a cluster by node, and the placement of gangs on them: whole GPUs, or parts of one GPU each, as Ray gives them out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from toque.functions.runtime.cards.node import Node
from toque.functions.runtime.cards.slices import is_slice, share_of
from toque.functions.runtime.durable.admission.request import QuotaRequest

_SLACK = 1e-9


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
