"""What a network learns from, as the training loop sees it: numbered rows that become batches, and a loss."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor, nn

Batch = tuple[Tensor, ...]


class Lesson(Protocol):
    """Rows to learn from and rows held out, both numbered from 0."""

    @property
    def train_rows(self) -> int:
        """How many rows are learnt from."""

    @property
    def valid_rows(self) -> int:
        """How many rows are held out."""

    @property
    def units(self) -> dict[str, int]:
        """What a row holds, if its speed is to be told in that too, as in {"tokens": 128}."""

    def train_batch(self, rows: Tensor) -> Batch:
        """The rows with the numbers `rows` (n,), for a step; each tensor has n rows. May draw from torch's random numbers."""

    def valid_batch(self, rows: Tensor) -> Batch:
        """The same of rows held out; always alike."""

    def loss(self, module: nn.Module, batch: Batch, *, reduction: str = "mean") -> Tensor:
        """The loss of the rows of a batch: their mean, or their "sum" (0 if there are none)."""


@runtime_checkable
class Foretold(Protocol):
    """A lesson that likes to know which rows come next, to fetch them while a step is computed."""

    def soon(self, rows: Tensor) -> None:
        """The training rows `rows` (n,) come next; must not wait, nor draw random numbers."""
