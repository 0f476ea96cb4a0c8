"""Rungs of trials that cannot pause: each compares itself with the others there, and ends or goes on.

The losses lie in the store, since a trial may train in any process of the cluster, and outlive a killed sweep.
Source: Li et al., A System for Massively Parallel Hyperparameter Tuning, 2020, in the variant that stops (its section 3.3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from toque.functions.training.request import LOSS, TrialStopped
from toque.functions.tuning.asha import FACTOR, rung_after
from toque.registry import ObjectStore


@dataclass(frozen=True, slots=True)
class Rungs:
    """Losses of one sweep's trials at its rungs, below `folder` in `store`."""

    store: ObjectStore
    folder: str

    def reach(self, trial: int, rung: int, loss: float) -> str:
        """Record a trial's loss at a rung; returns why it ends there, or nothing if it goes on."""
        place = f"{self.folder}{rung:06d}/"
        self.store.put(f"{place}{trial:06d}", repr(loss).encode())
        others = [float(self.store.get(key)) for key in self.store.list(place)]
        better = sum(each < loss for each in others)
        if not math.isfinite(loss) or (better >= max(1, len(others) // FACTOR) and len(others) >= FACTOR):
            return f"rung {rung}: {better} of {len(others)} trials did better than {loss:.6g}"
        return ""

    def drop(self) -> None:
        """Delete what the trials wrote, once the sweep has ended."""
        for key in list(self.store.list(self.folder)):
            self.store.delete(key)


@dataclass(frozen=True, slots=True)
class RungWatch:
    """Watch of one trial, as `TrainingRequest.report` calls it. The first trial, of the declared parameters, never ends early.

    first: epochs or rounds before which no trial is compared.
    """

    rungs: Rungs
    trial: int
    first: int = 1

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        """Compare the trial with the others if this step is a rung. Raises: TrialStopped."""
        done = step + 1
        if done < self.first or rung_after(step) != done or LOSS not in metrics:
            return
        reason = self.rungs.reach(self.trial, done, metrics[LOSS])
        if reason and self.trial:
            raise TrialStopped(reason)
