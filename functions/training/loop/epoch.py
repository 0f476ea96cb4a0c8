"""One epoch of a training as its run shows it, and whether it was the last one that made sense."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Epoch:
    """Losses and speed of one pass over the training rows; losses a row, of a weighted task a token: nats, or squared deviations for a number.

    units_per_s: speed in the units of a row, such as tokens; busy: share of the time in which no step waited for rows; skipped: steps
    whose gradients were no finite numbers, which changed nothing and whose losses are left out; workers: size of the group at its end.
    """

    number: int
    train_loss: float
    valid_loss: float
    seconds: float
    rows_per_s: float
    units_per_s: dict[str, float] = field(default_factory=dict)
    busy: float = 1.0
    skipped: int = 0
    workers: int = 1


OnEpoch = Callable[[Epoch], None]


def diverged(epoch: Epoch, lr: float) -> str:
    """Say which loss of an epoch is no finite number, and what to do; empty if both are."""
    for name, loss in (("training", epoch.train_loss), ("validation", epoch.valid_loss)):
        if not math.isfinite(loss):
            return not_finite(name, epoch.number, loss, lr)
    return ""


def not_finite(name: str, epoch: int, loss: float, lr: float) -> str:
    """Say that a loss of an epoch is no finite number, and what to do."""
    return (
        f"the {name} loss of epoch {epoch} is {loss}: training stopped and registered nothing; "
        f"lower lr (now {lr}) or look for extreme values in the features"
    )
