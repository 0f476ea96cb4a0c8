"""Learning tasks as the training loop sees them: numbered rows that become batches, and a loss."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

Batch = tuple[Tensor, ...]
_SEED_STRIDE = 1_000


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
