"""Encoded rows of a table as a learning task: batches of numbers, gaps, categories and labels, and the target's loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from toque.functions.training.loop.task import Batch, CountedRows, Order, epoch_seed, uniform_order
from toque.functions.training.tabular.preprocessing import EncodedRows
from toque.functions.training.tabular.target import Target


class RowSource(Protocol):
    """Source of encoded rows, in memory or in a file."""

    def __len__(self) -> int: ...

    def take(self, rows: Tensor) -> EncodedRows:
        """Read the given rows, in the given order."""

    def prefetch(self, rows: Tensor) -> None:
        """Begin to fetch the given rows, which will be read soon."""


@dataclass(frozen=True, slots=True)
class LabelledRows:
    """Encoded rows with their labels (rows,), coded by the target."""

    rows: RowSource
    label: Tensor

    def __len__(self) -> int:
        return self.label.shape[0]

    def batch(self, rows: Tensor) -> tuple[EncodedRows, Tensor]:
        """Read the given rows and their labels."""
        return self.rows.take(rows), self.label[rows]

    def prefetch(self, rows: Tensor) -> None:
        """Begin to fetch the given rows, which will be read soon."""
        self.rows.prefetch(rows)

    def order(self, seed: int, epoch: int) -> Order:
        """Order of the rows in an epoch: drawn uniformly."""
        return uniform_order(len(self), epoch_seed(seed, epoch))


class Examples(Protocol):
    """Rows to learn from with their labels, in memory, in a file or in shards."""

    def __len__(self) -> int: ...

    @property
    def rows(self) -> RowSource:
        """Encoded rows without their labels."""

    @property
    def label(self) -> Tensor:
        """Labels (rows,), coded by the target."""

    def batch(self, rows: Tensor) -> tuple[EncodedRows, Tensor]:
        """Read the given rows and their labels."""

    def prefetch(self, rows: Tensor) -> None:
        """Begin to fetch the given rows, which will be read soon."""

    def order(self, seed: int, epoch: int) -> Order:
        """Order in which the rows are learnt from in an epoch."""


@dataclass(frozen=True, slots=True)
class TabularTask(CountedRows):
    """Learning task on a table.

    offset: (columns,) code of each column's unknown category; unknown_rate: share of categories hidden in a step.
    """

    train: Examples
    valid: Examples
    target: Target
    offset: Tensor
    unknown_rate: float

    @property
    def units(self) -> dict[str, int]:
        """Return no units, since speed is reported in rows."""
        return {}

    def train_batch(self, rows: Tensor) -> Batch:
        """Batch of numbers, missing flags, categories (some of them hidden) and labels."""
        taken, label = self.train.batch(rows)
        return taken.numeric, taken.missing, self._hide_some(taken.category), label

    def prefetch(self, rows: Tensor) -> None:
        """Begin to fetch the training rows of a step to come."""
        self.train.prefetch(rows)

    def order(self, seed: int, epoch: int) -> Order:
        """Order of the training rows in an epoch."""
        return self.train.order(seed, epoch)

    def valid_batch(self, rows: Tensor) -> Batch:
        """Batch of numbers, missing flags, categories and labels."""
        taken, label = self.valid.batch(rows)
        return taken.numeric, taken.missing, taken.category, label

    def loss(self, module: nn.Module, batch: Batch, *, reduction: str = "mean") -> Tensor:
        """Loss of a batch as the target defines it."""
        *inputs, label = batch
        return self.target.loss(module(*inputs), label, reduction=reduction)

    def _hide_some(self, category: Tensor) -> Tensor:
        if self.unknown_rate == 0.0:
            return category
        hidden = torch.rand(category.shape) < self.unknown_rate
        return torch.where(hidden, self.offset, category)
