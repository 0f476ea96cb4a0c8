"""Mixture of several sets in given shares: which sample of which set stands at each place of an endless sequence.

The sequence is cut into rounds. Up to the end of each round every set has had its share of the places, to one sample; within
a round the sets come in an order that is drawn. Each set goes through its own epochs, one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import numpy as np
import numpy.typing as npt

from toque.functions.training_data.order import Numbers, drawn

_LEAST_PLACES = 4  # of the smallest set in a round, at least two, so that rounding never takes a place back
_ROUND = 1_024


class Shares:
    """Places of the sets in a mixture's sequence. weights: of each set, above 0, in any unit."""

    def __init__(self, weights: Sequence[float], *, seed: int) -> None:
        if not weights or not all(0 < weight < float("inf") for weight in weights):
            raise ValueError(f"weights={list(weights)} of a mixture must be numbers above 0")
        total = float(sum(weights))
        self._bounds = np.cumsum([0.0, *(weight / total for weight in weights)])
        self._bounds[-1] = 1.0
        self._round = max(_ROUND, ceil(_LEAST_PLACES * total / min(weights)))
        self._seed = seed

    def stretch(self, start: int, stop: int) -> tuple[Numbers, Numbers]:
        """Set at each place from `start` to `stop` (exclusive), and how many samples of that set came before."""
        sets, before = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
        for number in range(start // self._round, -(-stop // self._round)):
            first = number * self._round
            own, earlier = self._of_round(number)
            within = slice(max(start - first, 0), max(min(stop - first, self._round), 0))
            sets.append(own[within])
            before.append(earlier[within])
        return np.concatenate(sets), np.concatenate(before)

    def _of_round(self, number: int) -> tuple[Numbers, Numbers]:
        earlier, later = self._counts(number), self._counts(number + 1)
        sets = np.repeat(np.arange(len(earlier)), later - earlier)[drawn(self._round, self._seed, number)]
        before = np.empty_like(sets)
        for each, count in enumerate(earlier):
            own = sets == each
            before[own] = count + np.arange(int(own.sum()))
        return sets, before

    def _counts(self, rounds: int) -> npt.NDArray[np.int64]:
        """Samples of each set in the first `rounds` rounds."""
        return np.diff(np.floor(self._bounds * (rounds * self._round) + 0.5)).astype(np.int64)
