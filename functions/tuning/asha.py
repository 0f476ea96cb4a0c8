"""Asynchronous successive halving (ASHA): of the trials that have reached a rung, the best quarter goes on.

Rungs stand at 1, 4, 16, … epochs. A trial pauses at each until it is among the best quarter of the trials that have reached
the rung so far, or until so many are better that it never will be. A free worker resumes the trial that can be promoted from
the highest rung, or begins a new one: some are promoted that would not have been in the end, but no worker waits for the
slowest trial.
Trials that cannot pause compare themselves with the others at a rung, and end or go on. Their losses lie in the store, since a trial
may train in any process of the cluster, and outlive a killed sweep.

Source: Li et al., A System for Massively Parallel Hyperparameter Tuning, 2020, algorithm 2, of a known number of trials, and the
variant that stops (its section 3.3).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from toque.functions.training.request import LOSS, TrialStopped
from toque.registry import ObjectStore

FACTOR = 4  # as in the paper; toque.load.benchmarks.training.sweeps has what it loses


class AshaScheduler:
    """Decides which of `count` trials trains next; trials are numbers from 0.

    losses: losses that trials have reported already, one an epoch; over: trials that will not train again.
    """

    def __init__(self, count: int, losses: Mapping[int, Sequence[float]], over: Collection[int]) -> None:
        self._count = count
        self._losses = {number: list(reported) for number, reported in losses.items()}
        self._over, self._training = set(over), set[int]()

    @property
    def training(self) -> bool:
        """Whether any trial is training now."""
        return bool(self._training)

    @property
    def best(self) -> dict[int, float]:
        """Lowest loss of each trial so far, by number."""
        return {number: min(losses) for number, losses in self._losses.items() if losses}

    def next(self) -> tuple[int, int, int] | None:
        """Choose a trial to train now: its number, the epochs it has, and the epochs to train to.

        Returns: None if every trial is over, or all that are left wait for another to pause.
        """
        for choose in (self._interrupted, self._promoted, self._new, self._best_of_few):
            number = choose()
            if number is not None:
                self._training.add(number)
                since = len(self._losses.get(number, ()))
                return number, since, rung_after(since)
        return None

    def report(self, number: int, loss: float) -> None:
        """Record the loss of one more epoch of a trial."""
        self._losses.setdefault(number, []).append(loss)

    def pause(self, number: int) -> list[int]:
        """Record that a trial has reached its rung; returns the trials that can no longer be promoted."""
        self._training.discard(number)
        hopeless = []
        for rung in reversed(self._reached()):
            below = (each for each in range(self._count) if len(self._losses.get(each, ())) < rung)
            ranked = self._ranked(rung)
            most = len(ranked) + sum(each not in self._over for each in below)
            beaten = [each for each in ranked[max(1, most // FACTOR) :] if self._paused_at(each, rung)]
            self._over.update(beaten)
            hopeless += beaten
        return hopeless

    def complete(self, number: int) -> None:
        """Record that a trial has trained to its end."""
        self._training.discard(number)
        self._over.add(number)

    def fail(self, number: int) -> None:
        """Record that a trial has failed: its reports do not count."""
        self.complete(number)
        self._losses.pop(number, None)

    def _interrupted(self) -> int | None:
        """First trial that was interrupted between two rungs."""
        between = [
            number
            for number, losses in self._losses.items()
            if rung_after(len(losses) - 1) != len(losses) and self._paused_at(number, len(losses))
        ]
        return min(between, default=None)

    def _promoted(self) -> int | None:
        """Best trial of the highest rung where one of the best quarter is paused."""
        for rung in self._reached():
            ranked = self._ranked(rung)
            for number in ranked[: len(ranked) // FACTOR]:
                if self._paused_at(number, rung):
                    return number
        return None

    def _new(self) -> int | None:
        """First trial that has not begun."""
        begun = self._losses.keys() | self._training | self._over
        return next((number for number in range(self._count) if number not in begun), None)

    def _best_of_few(self) -> int | None:
        """Best trial of the highest rung, if no trial is left to bring that rung to four."""
        reached = self._reached()
        if self._training or not reached:
            return None
        best = self._ranked(reached[0])[0]
        return best if self._paused_at(best, reached[0]) else None

    def _reached(self) -> list[int]:
        """Rungs that any trial has reached, the highest first."""
        longest = max(map(len, self._losses.values()), default=0)
        rungs = [1]
        while rungs[-1] * FACTOR <= longest:
            rungs.append(rungs[-1] * FACTOR)
        return rungs[::-1] if longest else []

    def _ranked(self, rung: int) -> list[int]:
        """Trials that have reached a rung, the lowest loss there first."""
        reached = (
            (losses[rung - 1], number) for number, losses in self._losses.items() if len(losses) >= rung
        )
        return [number for _, number in sorted(reached)]

    def _paused_at(self, number: int, epochs: int) -> bool:
        active = number in self._training or number in self._over
        return not active and len(self._losses[number]) == epochs


def rung_after(epochs: int) -> int:
    """First rung above a number of epochs."""
    rung = 1
    while rung <= epochs:
        rung *= FACTOR
    return rung


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
