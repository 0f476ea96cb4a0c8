"""Labels of a training set summed up in one pass: what the target of a training needs to know of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from toque.functions.model_formats.matrices import binary_labels, class_labels, named_column, number_labels
from toque.functions.training.errors import TrainingDataError
from toque.functions.training.params import Task
from toque.functions.training.streamed_splits import HeldOut
from toque.functions.training.tabular.dataset import TabularData
from toque.functions.training.tabular.target import Regression, Target, target_of

_FEW_VALUES = 1_001  # of which more are no classes


@dataclass(slots=True)
class _Part:
    """Labels of the rows to learn from, or of those held out. values: the distinct ones, of numbers the least and greatest."""

    rows: int = 0
    values: pa.Array | None = None
    total: float = 0.0
    squares: float = 0.0

    def add(self, column: pa.ChunkedArray, *, numbers: bool, origin: float) -> None:
        """Count more labels; numbers are summed up as differences from `origin`."""
        if not len(column):
            return
        self.rows += len(column)
        if numbers:
            found = column.cast(pa.float64()).to_numpy()
            self.total += float((found - origin).sum())
            self.squares += float(((found - origin) ** 2).sum())
            new = pa.array([found.min(), found.max()])
        else:
            new = pc.unique(column.combine_chunks())
        self.values = new if self.values is None else pc.unique(pa.concat_arrays([self.values, new]))
        if numbers:
            self.values = pa.array([pc.min(self.values).as_py(), pc.max(self.values).as_py()])


@dataclass(slots=True)
class LabelSummary:
    """Summary of the labels of the rows to learn from and of those held out. classes: names, if there are several."""

    label: str
    task: Task
    classes: tuple[str, ...] = ()
    _parts: dict[bool, _Part] = field(default_factory=lambda: {False: _Part(), True: _Part()})
    _origin: float = 0.0

    @classmethod
    def of(cls, rows: Iterator[pa.Table], held_out: HeldOut, *, label: str, task: Task) -> Self:
        """Sum up the labels of batches of rows.

        Raises: TrainingDataError for a label that does not fit the task, or if nothing is left to learn from or to hold out.
        """
        summary, first = cls(label, task), 0
        for part in rows:
            summary._add(part, held_out(part, first), first=first)
            first += part.num_rows
        if not first:
            raise TrainingDataError("the table has no rows: there is nothing to learn from")
        if not summary.rows_train or not summary.rows_valid:
            raise TrainingDataError(
                f"splitting {first} rows leaves {summary.rows_train} to train and {summary.rows_valid} to validate: give more "
                "rows, another fraction, or split by 'random'"
            )
        if task == "multiclass":
            summary.classes = class_labels(summary._distinct(), label)[0]
        return summary

    @property
    def rows_train(self) -> int:
        """Number of rows to learn from."""
        return self._parts[False].rows

    @property
    def rows_valid(self) -> int:
        """Number of rows held out."""
        return self._parts[True].rows

    def target(self) -> Target:
        """Make the target of the task. Raises: TrainingDataError if a part has too few classes or values."""
        train, valid = (
            TabularData(torch.empty(0), torch.empty(0), torch.tensor(self._coded(part.values)), self.classes)
            for part in self._parts.values()
        )
        target = target_of(self.task, train, valid)
        if not isinstance(target, Regression):
            return target
        part = self._parts[False]
        mean = part.total / part.rows
        return Regression(self._origin + mean, float(np.sqrt(max(part.squares / part.rows - mean**2, 0.0))))

    def values(self, rows: pa.Table) -> pa.Array:
        """Labels of some rows as numbers: 0 and 1; indices into `classes`; or numbers."""
        return pa.array(self._coded(named_column(rows, self.label).combine_chunks()))

    def _coded(self, column: pa.Array) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
        table = pa.table({self.label: column})
        if self.task == "binary":
            return binary_labels(table, self.label)
        if self.task == "regression":
            return number_labels(table, self.label)
        index = pc.index_in(table.column(0).cast(pa.string()).combine_chunks(), pa.array(self.classes))
        return np.asarray(index.to_numpy(zero_copy_only=False), dtype=np.int64)

    def _add(
        self, rows: pa.Table, mask: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], *, first: int
    ) -> None:
        column = named_column(rows, self.label)
        numbers = self.task == "regression"
        if self.task == "binary":
            binary_labels(rows, self.label)  # checked batch by batch, as all else that can be wrong with one
        elif numbers:
            found = number_labels(rows, self.label)
            self._origin = float(found[0]) if not first else self._origin
        elif column.null_count:
            raise TrainingDataError(
                f"label column {self.label!r} has {column.null_count} nulls: leave those rows out"
            )
        for valid, part in self._parts.items():
            part.add(column.filter(pa.array(mask == valid)), numbers=numbers, origin=self._origin)
            if part.values is not None and len(part.values) > _FEW_VALUES:
                class_labels(pa.table({self.label: part.values}), self.label)  # which says what is wrong

    def _distinct(self) -> pa.Table:
        found = [part.values for part in self._parts.values() if part.values is not None]
        return pa.table({self.label: pc.unique(pa.concat_arrays(found))})
