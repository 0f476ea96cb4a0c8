"""Sources of a stream: one set, or a mixture of several, each an endless sequence of samples cut into epochs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from toque.functions.training_data.cache import ShardCache
from toque.functions.training_data.errors import SampleSetError
from toque.functions.training_data.formats import Values
from toque.functions.training_data.mixture import Shares
from toque.functions.training_data.order import EpochOrder, Numbers
from toque.functions.training_data.rows import OpenSet, SampleRows

_KEPT_EPOCHS = 2  # orders: of the epoch that is read, and of the one that is fetched ahead


class SampleSource(Protocol):
    """Endless sequence of samples, of which any stretch can be asked for: place N is the N-th sample since the start."""

    @property
    def epoch_rows(self) -> int:
        """Number of samples of an epoch."""

    def stretch(self, start: int, stop: int) -> Numbers:
        """Numbers of the samples at the places `start` to `stop` (exclusive)."""

    def take(self, numbers: Numbers) -> dict[str, Values]:
        """Read samples by their numbers, in the given order, by field."""

    def fetch(self, numbers: Numbers) -> None:
        """Begin to fetch what these samples need; does not wait."""

    def close(self) -> None:
        """Let go of all that is open."""


class SetSource:
    """One set, epoch after epoch, each shuffled anew."""

    def __init__(self, opened: OpenSet, cache: ShardCache | None = None) -> None:
        self._rows = SampleRows(opened, cache)
        self._orders: dict[int, EpochOrder] = {}

    @property
    def epoch_rows(self) -> int:
        """Samples of an epoch: all of the set."""
        return len(self._rows)

    def stretch(self, start: int, stop: int) -> Numbers:
        """Numbers of the samples at the places `start` to `stop` (exclusive)."""
        found = [np.empty(0, dtype=np.int64)]
        while start < stop:
            epoch, place = divmod(start, self.epoch_rows)
            until = min(self.epoch_rows, place + stop - start)
            found.append(self._order(epoch).stretch(place, until))
            start += until - place
        return np.concatenate(found)

    def take(self, numbers: Numbers) -> dict[str, Values]:
        """Read samples by their numbers, in the given order, by field."""
        return self._rows.take(numbers)

    def fetch(self, numbers: Numbers) -> None:
        """Begin to fetch the shards of these samples; does not wait."""
        self._rows.fetch(numbers)

    def close(self) -> None:
        """Close all shards that are open."""
        self._rows.close()

    def _order(self, epoch: int) -> EpochOrder:
        order = self._orders.get(epoch)
        if order is None:
            order = self._rows.set.order(epoch)
            kept = dict(list(self._orders.items())[1 - _KEPT_EPOCHS :])
            self._orders = kept | {epoch: order}
        return order


class Mixture:
    """Several sets of the same fields in given shares; each goes through epochs of its own.

    sets, weights: of each set its share, in any unit; epoch_rows: by default as many as all sets have together.
    """

    def __init__(
        self,
        sets: Sequence[OpenSet],
        weights: Sequence[float],
        *,
        seed: int = 0,
        epoch_rows: int | None = None,
        cache: ShardCache | None = None,
    ) -> None:
        if len(sets) != len(weights):
            raise SampleSetError(
                f"{len(sets)} sets with {len(weights)} weights: give one weight for each set"
            )
        different = {opened.index.columns for opened in sets}
        if len(different) > 1:
            raise SampleSetError(f"the sets of a mixture must have the same fields; got {sorted(different)}")
        self._shares = Shares(weights, seed=seed)
        self._sources = [SetSource(opened, cache) for opened in sets]
        self._starts = np.cumsum([0, *(source.epoch_rows for source in self._sources)])
        self._epoch_rows = epoch_rows or int(self._starts[-1])

    @property
    def epoch_rows(self) -> int:
        """Number of samples of an epoch."""
        return self._epoch_rows

    def stretch(self, start: int, stop: int) -> Numbers:
        """Numbers of the samples at the places `start` to `stop` (exclusive), counted through all sets."""
        sets, before = self._shares.stretch(start, stop)
        numbers = np.empty(len(sets), dtype=np.int64)
        for each, source in enumerate(self._sources):
            own = np.flatnonzero(sets == each)
            if len(own):
                first, last = int(before[own[0]]), int(before[own[-1]])  # they come in order
                found = source.stretch(first, last + 1)
                numbers[own] = found[before[own] - first] + self._starts[each]
        return numbers

    def take(self, numbers: Numbers) -> dict[str, Values]:
        """Read samples by their numbers, in the given order, by field."""
        sets = np.searchsorted(self._starts, numbers, side="right") - 1
        found: dict[str, Values] = {}
        for each in np.unique(sets).tolist() or [0]:  # no samples have their fields too
            own = np.flatnonzero(sets == each)
            for name, values in self._sources[each].take(numbers[own] - self._starts[each]).items():
                if name not in found:
                    found[name] = np.empty((len(numbers), *values.shape[1:]), dtype=values.dtype)
                found[name][own] = values
        return found

    def fetch(self, numbers: Numbers) -> None:
        """Begin to fetch the shards of these samples; does not wait."""
        sets = np.searchsorted(self._starts, numbers, side="right") - 1
        for each in np.unique(sets).tolist():
            self._sources[each].fetch(numbers[sets == each] - self._starts[each])

    def close(self) -> None:
        """Close all shards that are open."""
        for source in self._sources:
            source.close()
