"""Cards of a cluster by node, and the placement of gangs on them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable

from functions.runtime.durable.admission.request import QuotaRequest
from functions.runtime.run.cards import Node

_SLACK = 1e-9


def held_by(node: Node, request: QuotaRequest) -> int:
    """Count the workers of `request` that a node holds when it is empty."""
    return _count(request, node, (node.gpus, node.cpus, node.memory_bytes))


class Room:
    """What is free on each node of a cluster while workers are placed on it.

    Only workers with GPUs are placed; others need no card, and Ray finds their CPUs.
    """

    def __init__(self, nodes: Iterable[Node]) -> None:
        self.nodes = {each.name: each for each in nodes}
        self._free = {name: (each.gpus, each.cpus, each.memory_bytes) for name, each in self.nodes.items()}

    def copy(self) -> Room:
        """Copy the room with what is taken of it."""
        found = Room(())
        found.nodes, found._free = self.nodes, dict(self._free)
        return found

    @property
    def free_gpus(self) -> float:
        """Number of GPUs that are free on all nodes together."""
        return sum(gpus for gpus, _, _ in self._free.values())

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
            best = min(whole, key=lambda name: (self.nodes[name].coming, self._free[name][0], name))
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
        self._change(request, nodes, -1)

    def give_back(self, request: QuotaRequest, nodes: Iterable[str]) -> None:
        """Free what the workers of a request hold."""
        self._change(request, nodes, 1)

    def _change(self, request: QuotaRequest, nodes: Iterable[str], sign: int) -> None:
        gpus, cpus, memory = _each(request)
        for name, count in Counter(nodes).items():
            if name in self._free:
                free = self._free[name]
                step = sign * count
                self._free[name] = (
                    free[0] + step * gpus,
                    free[1] + step * cpus,
                    free[2] + step * memory,
                )


def _each(request: QuotaRequest) -> tuple[float, float, float]:
    count = max(1, request.workers)
    return request.gpus / count, request.cpus / count, request.memory_bytes / count


def _count(request: QuotaRequest, node: Node, free: tuple[float, float, float]) -> int:
    """Count the workers of a request that fit into what is free of a node."""
    unknown = node.coming and node.card is None  # Ray will say, once it is there
    if request.card not in {None, node.card} and not unknown:
        return 0
    shares = [
        have / need for need, have in zip(_each(request), free, strict=True) if need > 0 and have < math.inf
    ]
    return min(request.workers, int(min(shares, default=request.workers) + _SLACK))
