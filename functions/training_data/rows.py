"""Samples of a set by their numbers, read from the shards that this process has open, with others fetched through the cache."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from cachetools import LRUCache

from toque.functions.training_data.cache import CachedShard, ShardCache
from toque.functions.training_data.formats import Values
from toque.functions.training_data.index import SetIndex, SetRef, read_index
from toque.functions.training_data.order import EpochOrder, InOrder, Numbers, Shuffle, ShuffledOrder
from toque.registry import ObjectStore

_FETCHERS = 4


@dataclass(frozen=True, slots=True)
class OpenSet:
    """A set of the store that can be read. shuffle: of its epochs; None for the order in which it is stored."""

    store: ObjectStore
    ref: SetRef
    index: SetIndex
    shuffle: Shuffle | None = Shuffle()  # noqa: RUF009 - frozen

    @classmethod
    def of(cls, store: ObjectStore, ref: SetRef, *, shuffle: Shuffle | None = Shuffle()) -> OpenSet:  # noqa: B008 - frozen
        """Open a set by its name and version. Raises: SampleSetError if there is none."""
        return cls(store, ref, read_index(store, ref), shuffle)

    @property
    def group(self) -> int:
        """Number of shards that are read at once."""
        sizes = [shard.open_bytes for shard in self.index.shards]
        return 1 if self.shuffle is None else self.shuffle.group_size(sizes)

    def order(self, epoch: int) -> EpochOrder:
        """Order of the samples of an epoch, from 0."""
        if self.shuffle is None:
            return InOrder(self.index.rows)
        rows = [shard.rows for shard in self.index.shards]
        return ShuffledOrder(rows, self.shuffle, epoch=epoch, group=self.group)


class SampleRows:
    """Reader of one set's samples by number. It may be used from several threads."""

    def __init__(self, opened: OpenSet, cache: ShardCache | None = None) -> None:
        self.set = opened
        self._cache = cache or ShardCache()
        self._starts = np.array(opened.index.starts, dtype=np.int64)
        self._open = _OpenShards(2 * opened.group + 1)  # a group, and the one that is fetched ahead
        self._lock = threading.Lock()
        self._fetchers = ThreadPoolExecutor(_FETCHERS, thread_name_prefix="toque-shards")

    def __len__(self) -> int:
        return int(self._starts[-1])

    def take(self, numbers: Numbers) -> dict[str, Values]:
        """Read the samples with these numbers, in this order, by field."""
        shards = np.searchsorted(self._starts, numbers, side="right") - 1
        found: dict[str, Values] = {}
        for shard in np.unique(shards).tolist() or [0]:  # no samples have their fields too
            places = np.flatnonzero(shards == shard)
            # Ascending, so that a mapped file is read forwards.
            places = places[np.argsort(numbers[places], kind="stable")]
            part = self._opened(shard).result().shard.take(numbers[places] - self._starts[shard])
            for name, values in part.items():
                if name not in found:
                    found[name] = np.empty((len(numbers), *values.shape[1:]), dtype=values.dtype)
                found[name][places] = values
        return found

    def fetch(self, numbers: Numbers) -> None:
        """Begin to fetch the shards of these samples, in this order, as many as a group has; does not wait."""
        shards = np.searchsorted(self._starts, numbers, side="right") - 1
        for shard in list(dict.fromkeys(shards.tolist()))[: self.set.group]:
            self._opened(shard)

    def close(self) -> None:
        """Close all shards, so that they may be evicted."""
        self._fetchers.shutdown(cancel_futures=True)
        with self._lock:
            while self._open:
                self._open.popitem()

    def _opened(self, shard: int) -> Future[CachedShard]:
        with self._lock:
            if shard not in self._open or _failed(self._open[shard]):
                index = self.set.index
                self._open[shard] = self._fetchers.submit(
                    self._cache.open, self.set.store, index.format, index.shards[shard]
                )
            return self._open[shard]


class _OpenShards(LRUCache[int, Future[CachedShard]]):
    """Shards by number, closed when they are evicted."""

    def popitem(self) -> tuple[int, Future[CachedShard]]:
        shard, opened = super().popitem()
        _closed(opened)
        return shard, opened


def _failed(opened: Future[CachedShard]) -> bool:
    return opened.done() and not opened.cancelled() and opened.exception() is not None


def _closed(opened: Future[CachedShard]) -> None:
    def close(done: Future[Any]) -> None:
        if not done.cancelled() and done.exception() is None:
            done.result().close()

    opened.add_done_callback(close)
