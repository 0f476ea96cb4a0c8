"""Nodes of a cluster by the cards that they have, as the queue of experiments counts them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from toque.functions.runtime.cards.slices import share_of


@dataclass(frozen=True, slots=True)
class Node:
    """Node by what it has in total.

    name: address of its raylet, as records of runs have it; gpus: in cards, of which a slice is a part; card: type of its GPUs,
    None if it is not known; coming: it is not there, and the autoscaler may start it.
    """

    name: str
    gpus: float
    card: str | None = None
    cpus: float = math.inf
    memory_bytes: float = math.inf
    coming: bool = False

    @property
    def units(self) -> tuple[float, ...]:
        """Part of a card that each GPU of the node is: 1 of a card, 1/7 of a small slice."""
        each = share_of(self.card)
        return (each,) * round(self.gpus / each)
