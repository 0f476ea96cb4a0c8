"""Successive halving without waiting: of the trials that have come to a rung, the best quarter goes on to the next.

Rungs stand at 1, 4, 16, … epochs. A trial rests at each until it is among the best quarter of those that have come so far, or
so many are better that it never will be. Whoever is free takes the one that can go on from the highest rung, and begins a new
one if there is none: some go on that would not have been chosen in the end, but nobody waits for the slowest.

Source: Li et al., A System for Massively Parallel Hyperparameter Tuning, 2020, algorithm 2, of a known number of trials.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

FACTOR = 4  # as in the paper; load.benchmarks.sweeps has what it loses


class Rungs:
    """Which of `count` trials trains next; trials are numbers from 0.

    losses: what trials have reported already, one an epoch; over: those that will not train again.
    """

    def __init__(self, count: int, losses: Mapping[int, Sequence[float]], over: Collection[int]) -> None:
        self._count = count
        self._losses = {number: list(told) for number, told in losses.items()}
        self._over, self._training = set(over), set[int]()

    @property
    def under_way(self) -> bool:
        """Whether any trains."""
        return bool(self._training)

    @property
    def best(self) -> dict[int, float]:
        """The lowest loss of each so far."""
        return {number: min(told) for number, told in self._losses.items() if told}

    def next(self) -> tuple[int, int, int] | None:
        """One that trains from now on, since and until how many epochs; None if there is none, or none until another rests."""
        for choose in (self._cut_off, self._promoted, self._new, self._best_of_few):
            number = choose()
            if number is not None:
                self._training.add(number)
                since = len(self._losses.get(number, ()))
                return number, since, rung_after(since)
        return None

    def told(self, number: int, loss: float) -> None:
        """It has trained one epoch more."""
        self._losses.setdefault(number, []).append(loss)

    def rested(self, number: int) -> list[int]:
        """It has come to its rung. Returns those that will not train again, since too many are better."""
        self._training.discard(number)
        hopeless = []
        for rung in reversed(self._reached()):
            below = (each for each in range(self._count) if len(self._losses.get(each, ())) < rung)
            ranked = self._ranked(rung)
            most = len(ranked) + sum(each not in self._over for each in below)
            beaten = [each for each in ranked[max(1, most // FACTOR) :] if self._rests_at(each, rung)]
            self._over.update(beaten)
            hopeless += beaten
        return hopeless

    def ended(self, number: int) -> None:
        """It has trained to its end."""
        self._training.discard(number)
        self._over.add(number)

    def failed(self, number: int) -> None:
        """It has failed: what it reported does not count."""
        self.ended(number)
        self._losses.pop(number, None)

    def _cut_off(self) -> int | None:
        """One that was interrupted between two rungs."""
        between = [
            number
            for number, told in self._losses.items()
            if rung_after(len(told) - 1) != len(told) and self._rests_at(number, len(told))
        ]
        return min(between, default=None)

    def _promoted(self) -> int | None:
        """The best one of the highest rung where one of the best quarter rests."""
        for rung in self._reached():
            ranked = self._ranked(rung)
            for number in ranked[: len(ranked) // FACTOR]:
                if self._rests_at(number, rung):
                    return number
        return None

    def _new(self) -> int | None:
        """The first that has not begun."""
        begun = self._losses.keys() | self._training | self._over
        return next((number for number in range(self._count) if number not in begun), None)

    def _best_of_few(self) -> int | None:
        """The best of the highest rung, to which fewer than four have come and nobody else will."""
        reached = self._reached()
        if self._training or not reached:
            return None
        best = self._ranked(reached[0])[0]
        return best if self._rests_at(best, reached[0]) else None

    def _reached(self) -> list[int]:
        """The rungs to which any has come, the highest first."""
        longest = max(map(len, self._losses.values()), default=0)
        rungs = [1]
        while rungs[-1] * FACTOR <= longest:
            rungs.append(rungs[-1] * FACTOR)
        return rungs[::-1] if longest else []

    def _ranked(self, rung: int) -> list[int]:
        """Those that have come to a rung, the lowest loss there first."""
        came = ((told[rung - 1], number) for number, told in self._losses.items() if len(told) >= rung)
        return [number for _, number in sorted(came)]

    def _rests_at(self, number: int, epochs: int) -> bool:
        gone = number in self._training or number in self._over
        return not gone and len(self._losses[number]) == epochs


def rung_after(epochs: int) -> int:
    """The first rung above so many epochs."""
    rung = 1
    while rung <= epochs:
        rung *= FACTOR
    return rung
