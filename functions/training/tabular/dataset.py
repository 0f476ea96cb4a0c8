"""Tables as tensors for training and scoring, and the split into training and validation rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from toque.functions.model_formats.matrices import (
    binary_labels,
    category_matrix,
    class_labels,
    number_labels,
    numeric_matrix,
)
from toque.functions.training.errors import TrainingDataError
from toque.functions.training.params import Task
from toque.functions.training.splits import Split, held_out_rows


@dataclass(frozen=True, slots=True)
class TabularData:
    """Raw rows of a data set, as tensors.

    numeric: (rows, features) float32, NaN where missing; categorical: (rows, columns) int64 hashes, 0 where missing;
    label: (rows,) float32 of 0 and 1; of several classes int64, indices into `classes`; of numbers float64.
    """

    numeric: Tensor
    categorical: Tensor
    label: Tensor
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.label.shape[0]

    def take(self, rows: Tensor) -> TabularData:
        """Select the given rows, in the given order."""
        return TabularData(self.numeric[rows], self.categorical[rows], self.label[rows], self.classes)


def require_both_classes(label: Tensor, where: str) -> None:
    """Check that `label` (rows,) holds both classes; `where` names the rows in the error. Raises: TrainingDataError."""
    positives = int(label.sum())
    if positives in {0, len(label)}:
        raise TrainingDataError(
            f"{where} has one class only ({positives} of {len(label)} rows are positive): nothing can be learnt "
            "from it; widen the time range or check the label"
        )


def tabular_data(
    table: pa.Table, *, numeric: Sequence[str], categorical: Sequence[str], label: str, task: Task = "binary"
) -> TabularData:
    """Read the named columns of a table of examples.

    Raises: TrainingDataError if the table is empty, a column is absent or of the wrong kind, or the label has one
    class only.
    """
    if table.num_rows == 0:
        raise TrainingDataError("the table has no rows: there is nothing to learn from")
    if not numeric and not categorical:
        raise TrainingDataError("no feature columns were named: name some as numeric or categorical")
    classes, labels = labels_of(table, label, task)
    return TabularData(
        torch.from_numpy(numeric_matrix(table, numeric)),
        torch.from_numpy(category_matrix(table, categorical)),
        labels,
        classes,
    )


def labels_of(table: pa.Table, label: str, task: Task) -> tuple[tuple[str, ...], Tensor]:
    """Names of the classes, if there are any, and the label column as in `TabularData`. Raises: TrainingDataError."""
    if task == "multiclass":
        classes, indices = class_labels(table, label)
        return classes, torch.from_numpy(indices)
    if task == "regression":
        return (), torch.tensor(number_labels(table, label))
    labels = torch.tensor(binary_labels(table, label))
    require_both_classes(labels, f"label column {label!r}")
    return (), labels


def split_rows(table: pa.Table, *, valid_fraction: float, by: Split, seed: int) -> tuple[Tensor, Tensor]:
    """Split a table into row numbers for training and for validation, as `held_out_rows` chooses them.

    Raises: TrainingDataError if either part would be empty, or there is no time to split by.
    """
    held_out = held_out_rows(table, valid_fraction=valid_fraction, by=by, seed=seed)
    return torch.from_numpy(np.flatnonzero(~held_out)), torch.from_numpy(np.flatnonzero(held_out))
