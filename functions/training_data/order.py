"""Order of the samples of an epoch: shuffled by shards, blocks and a buffer, computed for any stretch of it at any time.

1. The shards are drawn in random order, and put into groups of `shards_at_once`.
2. The shards of a group are cut into blocks of `block_rows` neighbours, and the group's blocks are drawn in random order.
3. Of each stretch of `buffer_rows` the samples are drawn in random order.

So a reader has the shards of a group on its disk, reads blocks from them, and the order depends on the index, `seed` and
`epoch` alone: not on workers, machines or the versions of libraries. How far it is from a uniform permutation is measured by
`batch_variance_ratio`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Protocol

import numpy as np
import numpy.typing as npt
from cachetools import LRUCache, cachedmethod

Numbers = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]
_GROUP_BYTES = 2 << 30
_KEPT = 3  # groups and stretches that are kept, for readers that look ahead
_SHARDS, _BLOCKS, _BUFFER = 1, 2, 3  # what is drawn


class EpochOrder(Protocol):
    """Order of an epoch's samples, of which any stretch can be asked for."""

    def __len__(self) -> int: ...

    def stretch(self, start: int, stop: int) -> Numbers:
        """Numbers of the samples at the places `start` to `stop` (exclusive)."""


@dataclass(frozen=True, slots=True)
class Shuffle:
    """How the samples of an epoch are shuffled.

    shards_at_once: None for as many of the largest as are 2 GiB; block_rows: neighbours that are read together;
    buffer_rows: samples that are drawn among each other.
    """

    seed: int = 0
    shards_at_once: int | None = None
    block_rows: int = 64
    buffer_rows: int = 65_536

    def __post_init__(self) -> None:
        for name in ("shards_at_once", "block_rows", "buffer_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} of a shuffle must be 1 or more")

    def group_size(self, open_bytes: Sequence[int]) -> int:
        """Shards of a group, for shards of these sizes on a reader's disk."""
        most = self.shards_at_once or max(1, _GROUP_BYTES // max([1, *open_bytes]))
        return min(most, len(open_bytes))


@dataclass(frozen=True, slots=True)
class InOrder:
    """Order of samples as they are stored."""

    rows: int

    def __len__(self) -> int:
        return self.rows

    def stretch(self, start: int, stop: int) -> Numbers:
        """Numbers of the samples at the places `start` to `stop` (exclusive)."""
        return np.arange(start, min(stop, self.rows), dtype=np.int64)


class ShuffledOrder:
    """Shuffled order of one epoch, for several threads. rows: of each shard; group: shards that are read at once."""

    def __init__(self, rows: Sequence[int], shuffle: Shuffle, *, epoch: int, group: int) -> None:
        self._starts = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
        self._shuffle, self._epoch = shuffle, epoch
        shards = self._drawn(len(rows), _SHARDS)
        self._groups = [shards[at : at + group] for at in range(0, len(shards), group)]
        sizes = [int(sum(rows[shard] for shard in each)) for each in self._groups]
        self._begins = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._blocks: LRUCache[object, tuple[Numbers, Numbers]] = LRUCache(_KEPT)
        self._stretches: LRUCache[object, Numbers] = LRUCache(_KEPT)
        self._lock = Lock()

    def __len__(self) -> int:
        return int(self._begins[-1])

    def stretch(self, start: int, stop: int) -> Numbers:
        """Numbers of the samples at the places `start` to `stop` (exclusive)."""
        stop, found = min(stop, len(self)), [np.empty(0, dtype=np.int64)]
        while start < stop:
            group = int(np.searchsorted(self._begins, start, side="right")) - 1
            within = start - int(self._begins[group])
            number, skipped = divmod(within, self._shuffle.buffer_rows)
            part = self._buffer(group, number)[skipped : skipped + stop - start]
            found.append(part)
            start += len(part)
        return np.concatenate(found)

    def _drawn(self, count: int, *key: int) -> Numbers:
        return drawn(count, self._shuffle.seed, self._epoch, *key)

    @cachedmethod(lambda self: self._stretches, lock=lambda self: self._lock)
    def _buffer(self, group: int, number: int) -> Numbers:
        """Samples of a stretch of the group's blocks, drawn among each other."""
        starts, ends = self._blocks_of(group)
        first, last = number * self._shuffle.buffer_rows, (number + 1) * self._shuffle.buffer_rows
        low, high = np.searchsorted(ends, [first, last - 1], side="right")
        lengths = np.diff(ends[low : high + 1], prepend=ends[low - 1] if low else 0)
        begins = ends[low : high + 1] - lengths
        places = np.arange(int(begins[0]), int(begins[0] + lengths.sum()))
        samples = np.repeat(starts[low : high + 1] - begins, lengths) + places
        samples = samples[first - int(begins[0]) : last - int(begins[0])]
        return np.asarray(samples[self._drawn(len(samples), _BUFFER, group, number)])

    @cachedmethod(lambda self: self._blocks, lock=lambda self: self._lock)
    def _blocks_of(self, group: int) -> tuple[Numbers, Numbers]:
        """First sample of each block of a group in the order drawn, and how many samples there are up to its end."""
        size, starts, lengths = self._shuffle.block_rows, [], []
        for shard in self._groups[group]:
            first, last = self._starts[shard], self._starts[shard + 1]
            begins = np.arange(first, last, size, dtype=np.int64)
            starts.append(begins)
            lengths.append(np.minimum(begins + size, last) - begins)
        order = self._drawn(sum(map(len, starts)), _BLOCKS, group)
        return np.concatenate(starts)[order], np.cumsum(np.concatenate(lengths)[order])


def drawn(count: int, *key: int) -> Numbers:
    """Permutation (count,) that follows from the integers `key` alone, whatever the versions of libraries."""
    return np.argsort(_words(np.arange(count), *key), kind="stable").astype(np.int64)


def random_shares(numbers: Numbers, *key: int) -> npt.NDArray[np.float64]:
    """Number from 0 to 1 for each of `numbers`, uniform, which follows from it and the integers `key` alone."""
    return np.asarray((_words(numbers, *key) >> np.uint64(11)) * 2.0**-53, dtype=np.float64)


def _words(numbers: Numbers, *key: int) -> _Words:
    state = np.zeros(1, dtype=np.uint64)
    for each in key:
        state = _mixed(state + np.uint64(each % 2**64))
    return _mixed(state + (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))


def _mixed(words: _Words) -> _Words:
    """SplitMix64's finalizer (Steele, Lea, Flood 2014), with a step so that 0 does not stay 0."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: _Words = words ^ (words >> np.uint64(31))
    return mixed


def batch_variance_ratio(order: EpochOrder, batch_rows: int) -> float:
    """Variance of batch means of the samples' stored place, divided by that of batches of a uniform permutation.

    1 is as good as uniform. It is the worst case, a set that is stored sorted by what is learnt: with R, a batch of B samples tells
    as much as B / R samples drawn uniformly.
    """
    count, batches = len(order), len(order) // batch_rows
    places = (order.stretch(at * batch_rows, (at + 1) * batch_rows) for at in range(batches))
    means = np.array([part.mean() for part in places])
    population = (count * count - 1) / 12.0
    uniform = population / batch_rows * (count - batch_rows) / (count - 1)
    return float(((means - (count - 1) / 2.0) ** 2).mean() / uniform)
