"""Learning tasks as the training loop sees them: numbered rows that become batches, and a loss.

Rows of a sharded set of samples are read in the order of the set's shuffle, a step ahead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from toque.functions.training_data.formats import Values
from toque.functions.training_data.order import EpochOrder, Shuffle, ShuffledOrder
from toque.functions.training_data.rows import OpenSet, SampleRows, ShardCache
from toque.functions.training_data.stream import Decode

Batch = tuple[Tensor, ...]
_SEED_STRIDE = 1_000
_AHEAD = 3  # steps that are kept: the one that is computed, those that are read
_FETCHED_AHEAD = 65_536  # places of the order whose shards are fetched
_PIECES = 4  # of a step that is decoded, for each thread
Collate = Callable[[dict[str, Values]], Batch]
"""Makes tensors of the fields of several samples; fixed types, each of as many rows as there are samples."""


class LearningTask(Protocol):
    """Training rows and validation rows, each numbered from 0, with the loss of a batch."""

    @property
    def train_rows(self) -> int:
        """Number of rows that are learnt from."""

    @property
    def valid_rows(self) -> int:
        """Number of rows that are held out for validation."""

    @property
    def units(self) -> Mapping[str, float]:
        """Units in a row, such as {"tokens": 128}, on average, in which speed is reported beside rows; may be empty."""

    def train_batch(self, rows: Tensor) -> Batch:
        """Training rows with the numbers `rows` (n,), as tensors of n rows; may draw torch's random numbers."""

    def valid_batch(self, rows: Tensor) -> Batch:
        """Validation rows with the numbers `rows` (n,); equal numbers always give equal batches."""

    def loss(self, module: nn.Module, batch: Batch, *, reduction: str = "mean") -> Tensor:
        """Loss of a batch, the mean over what counts in it (its rows, unless the task is weighted) or the "sum"."""


class CountedRows:
    """Numbers of rows of a learning task whose `train` and `valid` have a length."""

    __slots__ = ()
    train: Sized
    valid: Sized

    @property
    def train_rows(self) -> int:
        """Number of rows that are learnt from."""
        return len(self.train)

    @property
    def valid_rows(self) -> int:
        """Number of rows that are held out for validation."""
        return len(self.valid)


@runtime_checkable
class WeightedTask(Protocol):
    """Learning task whose rows count unequally, as texts do by their learnt tokens; its "sum" of losses is over all that counts.

    The loss of a step is then that sum over its micro-batches and workers, divided by the weight of all of them.
    """

    def train_weight(self, rows: Tensor) -> int:
        """What the training rows with the numbers `rows` (n,) count for together, the same in every worker."""

    def valid_weight(self) -> int:
        """What all validation rows count for together."""


@runtime_checkable
class PrefetchingTask(Protocol):
    """Learning task that fetches the rows of the next step while a step is computed."""

    def prefetch(self, rows: Tensor) -> None:
        """Begin to fetch the training rows `rows` (n,); must not wait, nor draw random numbers."""


class Order(Protocol):
    """Order of the training rows of an epoch, of which any stretch can be asked for."""

    def __getitem__(self, part: slice, /) -> Tensor:
        """Numbers of the rows at the places of `part`, as many as there are."""


@runtime_checkable
class OrderedTask(Protocol):
    """Learning task that says in what order its training rows are learnt from, as one that reads shards does."""

    def order(self, seed: int, epoch: int) -> Order:
        """Order of the training rows in an epoch, the same in every worker."""


def uniform_order(rows: int, seed: int) -> Order:
    """Order of rows drawn uniformly; equal seeds give equal orders."""
    return torch.randperm(rows, generator=torch.Generator().manual_seed(seed))


def epoch_seed(seed: int, epoch: int) -> int:
    """Seed of an epoch's random numbers, so that no two epochs or seeds share a stream."""
    return seed * _SEED_STRIDE + epoch


@dataclass(frozen=True, slots=True)
class SampleTask(CountedRows):
    """Learning task on sharded sets of samples, for recipes: rows to learn from, rows held out, and the loss of a batch.

    objective: the loss of each row (rows,) of a batch; row_units: units in a row, such as {"tokens": 128}.
    """

    train: SampleReader
    valid: SampleReader
    objective: Callable[[nn.Module, Batch], Tensor]
    row_units: dict[str, int] = field(default_factory=dict)

    @property
    def units(self) -> dict[str, int]:
        """Units in a row, such as tokens."""
        return self.row_units

    def order(self, seed: int, epoch: int) -> Order:
        """Order of the training rows in an epoch."""
        return self.train.order(seed, epoch)

    def prefetch(self, rows: Tensor) -> None:
        """Begin to read the training rows of a step to come."""
        self.train.prefetch(rows)

    def train_batch(self, rows: Tensor) -> Batch:
        """Read training rows as tensors, in order."""
        return self.train.batch(rows)

    def valid_batch(self, rows: Tensor) -> Batch:
        """Read validation rows as tensors, in order."""
        return self.valid.batch(rows)

    def loss(self, module: nn.Module, batch: Batch, *, reduction: str = "mean") -> Tensor:
        """Mean of the rows' losses, or their sum."""
        losses = self.objective(module, batch)
        return losses.mean() if reduction == "mean" else losses.sum()


@dataclass(slots=True)
class _Step:
    """Rows that are read ahead. numbers: of the rows; taken: how many of them were asked for."""

    numbers: Tensor
    parts: list[Future[Batch]]
    taken: int = 0
    whole: Batch | None = field(default=None)

    def part(self, count: int) -> Batch:
        """Return the next `count` rows as tensors."""
        if self.whole is None:
            found = [part.result() for part in self.parts]
            self.whole = found[0] if len(found) == 1 else tuple(map(torch.cat, zip(*found, strict=True)))
        begin, self.taken = self.taken, self.taken + count
        return tuple(tensor[begin : self.taken] for tensor in self.whole)


class SampleReader:
    """Reads numbered rows of a set as tensors, and those of steps to come in threads.

    seed: of the order in each epoch, by default that of the set's shuffle; decode: what is done with the fields before `collate`.
    """

    def __init__(
        self,
        opened: OpenSet,
        collate: Collate,
        *,
        decode: Decode | None = None,
        cache: ShardCache | None = None,
        threads: int = 2,
    ) -> None:
        self._set, self._rows = opened, SampleRows(opened, cache)
        self._collate, self._decode, self._threads = collate, decode, threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="toque-samples")
        self._steps: deque[_Step] = deque(maxlen=_AHEAD)

    def __len__(self) -> int:
        return len(self._rows)

    def order(self, seed: int, epoch: int) -> Order:
        """Order of the rows in an epoch, drawn with the set's shuffle and the training's seed."""
        shuffle = self._set.shuffle or Shuffle(block_rows=1, buffer_rows=1)
        rows = [shard.rows for shard in self._set.index.shards]
        own = Shuffle(seed, shuffle.shards_at_once, shuffle.block_rows, shuffle.buffer_rows)
        return _EpochRows(ShuffledOrder(rows, own, epoch=epoch, group=self._set.group), self._rows)

    def prefetch(self, rows: Tensor) -> None:
        """Begin to read the rows of a step to come; does not wait."""
        if not len(rows):
            return
        pieces = min(len(rows), self._threads * _PIECES) if self._decode else 1
        parts = [self._pool.submit(self._read, part) for part in np.array_split(rows.numpy(), max(pieces, 1))]
        self._steps.append(_Step(rows, parts))

    def batch(self, rows: Tensor) -> Batch:
        """Read rows as tensors, in the given order: those that were read ahead, or at once."""
        for step in self._steps:
            if torch.equal(step.numbers[step.taken : step.taken + len(rows)], rows):
                return step.part(len(rows))
        return self._read(rows.numpy())

    def close(self) -> None:
        """End the threads and close the shards."""
        self._pool.shutdown(cancel_futures=True)
        self._rows.close()

    def _read(self, numbers: Any) -> Batch:
        columns = self._rows.take(numbers)
        return self._collate(columns if self._decode is None else self._decode(columns))


class _EpochRows:
    """Order of an epoch as tensors; asking for a stretch begins to fetch the shards that come after it."""

    def __init__(self, order: EpochOrder, rows: SampleRows) -> None:
        self._order, self._rows = order, rows
        self._fetched = 0

    def __getitem__(self, part: slice, /) -> Tensor:
        start, stop, _ = part.indices(len(self._order))
        if start < len(self._order) and stop + _FETCHED_AHEAD // 2 > self._fetched:
            begin, self._fetched = self._fetched, max(self._fetched, stop) + _FETCHED_AHEAD
            self._rows.fetch(self._order.stretch(begin, self._fetched))
        return torch.from_numpy(self._order.stretch(start, stop))
