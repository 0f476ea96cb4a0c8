"""Encoded rows of a table as a learning task: batches of numbers, gaps, categories and labels, and the target's loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from functions.training.loop.task import Batch
from functions.training.tabular.preprocessing import Encoded
from functions.training.tabular.target import Target


class Rows(Protocol):
    """Encoded rows, wherever they are."""

    def __len__(self) -> int: ...

    def take(self, rows: Tensor) -> Encoded:
        """The given rows, in the given order."""

    def soon(self, rows: Tensor) -> None:
        """The given rows will be taken soon."""


@dataclass(frozen=True, slots=True)
class Examples:
    """Encoded rows with their labels (rows,), coded by the target."""

    rows: Rows
    label: Tensor

    def __len__(self) -> int:
        return self.label.shape[0]

    def batch(self, rows: Tensor) -> tuple[Encoded, Tensor]:
        """Some of them."""
        return self.rows.take(rows), self.label[rows]


@dataclass(frozen=True, slots=True)
class TabularLesson:
    """Rows of a table. offset: (categories,) what stands for an unknown one; unknown_rate: share of those hidden in a step."""

    train: Examples
    valid: Examples
    target: Target
    offset: Tensor
    unknown_rate: float

    @property
    def train_rows(self) -> int:
        """How many rows are learnt from."""
        return len(self.train)

    @property
    def valid_rows(self) -> int:
        """How many rows are held out."""
        return len(self.valid)

    @property
    def units(self) -> dict[str, int]:
        """A row is a row."""
        return {}

    def train_batch(self, rows: Tensor) -> Batch:
        """Numbers, gaps, categories (some of them hidden) and labels."""
        taken, label = self.train.batch(rows)
        return taken.numeric, taken.missing, self._hide_some(taken.category), label

    def soon(self, rows: Tensor) -> None:
        """Those of a step to come."""
        self.train.rows.soon(rows)

    def valid_batch(self, rows: Tensor) -> Batch:
        """Numbers, gaps, categories and labels."""
        taken, label = self.valid.batch(rows)
        return taken.numeric, taken.missing, taken.category, label

    def loss(self, module: nn.Module, batch: Batch, *, reduction: str = "mean") -> Tensor:
        """The target's."""
        *inputs, label = batch
        return self.target.loss(module(*inputs), label, reduction=reduction)

    def _hide_some(self, category: Tensor) -> Tensor:
        if self.unknown_rate == 0.0:
            return category
        hidden = torch.rand(category.shape) < self.unknown_rate
        return torch.where(hidden, self.offset, category)
