"""Workers that a training may ask for: how many, with which CPUs and GPUs; known without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from toque.functions.runtime.cards.slices import is_slice
from toque.functions.runtime.declaration import Demand
from toque.functions.runtime.environments import Environment
from toque.functions.training.errors import TrainingError

Sharding = Literal["replicate", "shard"]
SlowPolicy = Literal["name", "leave"]


@dataclass(frozen=True, slots=True)
class Workers:
    """Number of workers, CPUs and GPUs of each, and whether each holds the whole model ("replicate") or a shard.

    card: type of the GPUs as Ray names it, None for any whole ones; slices of a card, as in "H100-1g.10gb", take one worker.
    Without GPUs a worker computes on its CPUs. least: fewest workers that go on where there is no room for `count`, until there is;
    None: always `count`. tensor: how many workers split each layer of a sharded model among them, and so take the same rows.
    slow: whether one that is slow is named, or left, so that others go on away from its node.
    Raises: TrainingError if several are asked to work on slices, `least` is not between 1 and `count`, `tensor` does not fit, or slow
    ones are to be left and all have to stay.
    """

    count: int = 1
    cpus_each: float = 1.0
    gpus_each: float = 0.0
    sharding: Sharding = "replicate"
    card: str | None = None
    least: int | None = None
    tensor: int = 1
    slow: SlowPolicy = "name"

    def __post_init__(self) -> None:
        if self.least is not None and not 1 <= self.least <= self.count:
            raise TrainingError(
                f"min_workers={self.least} and num_workers={self.count}: give 1 to {self.count}, or null"
            )
        if self.slow == "leave" and self.least is None:
            raise TrainingError(
                f"slow_workers='leave' with num_workers={self.count}: give min_workers, the fewest that go on without the slow ones"
            )
        if self.count > 1 and is_slice(self.card):
            raise TrainingError(
                f"card={self.card!r} with num_workers={self.count}: slices of a card cannot work together; ask for "
                "num_workers=1, or for whole cards"
            )
        if self.tensor != 1:
            self._check_tensor()

    def _check_tensor(self) -> None:
        given = f"tensor={self.tensor} with num_workers={self.count}"
        if self.tensor < 1 or self.count % self.tensor:
            raise TrainingError(
                f"{given}: the workers that split a layer are a divisor of all; give one, or 1"
            )
        if self.sharding != "shard":
            raise TrainingError(
                f"{given} and sharding={self.sharding!r}: layers are split with sharding='shard'"
            )
        if self.least is not None:
            raise TrainingError(
                f"{given} and min_workers={self.least}: layers are split by a fixed number of workers; leave it out"
            )

    @property
    def threads(self) -> int:
        """Number of threads that a worker may use."""
        return max(1, int(self.cpus_each))

    @property
    def device(self) -> str:
        """Kind of device that a worker computes on."""
        return "cuda" if self.gpus_each > 0 else "cpu"


def workers_demand(
    num_workers: int,
    worker_cpus: float,
    worker_gpus: float,
    priority: int,
    card: str | None,
    limit_s: float | None,
    environment: Environment | None,
    **_: Any,
) -> Demand:
    """Demand of a function that trains with so many workers, which goes on from its checkpoint when it is preempted."""
    return Demand(
        cpus=max(1.0, num_workers * worker_cpus),
        gpus=num_workers * worker_gpus,
        priority=priority,
        workers=num_workers,
        card=card,
        limit_s=limit_s,
        preemptible=True,
        environment=environment,
    )
