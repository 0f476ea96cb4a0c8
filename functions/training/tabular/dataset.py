"""Tables as tensors for training and scoring, and the split into training and validation rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from functions.model_formats.matrices import (
    binary_labels,
    category_matrix,
    class_labels,
    named_column,
    number_labels,
    numeric_matrix,
)
from functions.training.errors import TrainingDataError
from functions.training.params import Split, Task

TIME_COLUMN = "event_timestamp"
_DAY_US = 86_400_000_000
_Mask = npt.NDArray[np.bool_]


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
    """Split a table into row numbers for training and for validation.

    by: "days" holds out whole days (UTC), drawn with the seed over the whole time range, so that the newest rows are
    learnt from too and no day has rows on both sides; "time" holds out the last part of the time range; "random" holds
    out single rows.
    Raises: TrainingDataError if either part would be empty, or there is no time to split by.
    """
    held_out = _SPLITS[by](table, valid_fraction, np.random.default_rng(seed))
    train, valid = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    if train.size == 0 or valid.size == 0:
        raise TrainingDataError(
            f"splitting {table.num_rows} rows by {by} with valid_fraction={valid_fraction} leaves {train.size} rows to "
            f"train and {valid.size} to validate: give more rows, another fraction, or split by 'random'"
        )
    return torch.from_numpy(train), torch.from_numpy(valid)


def _last_part(table: pa.Table, fraction: float, _: np.random.Generator) -> _Mask:
    times = _times(table)
    late: _Mask = times > np.quantile(times, 1.0 - fraction, method="lower")
    return late


def _whole_days(table: pa.Table, fraction: float, generator: np.random.Generator) -> _Mask:
    days, day_of_row = np.unique(_times(table) // _DAY_US, return_inverse=True)
    chosen: _Mask = generator.permutation(len(days)) < max(1, round(len(days) * fraction))
    return chosen[day_of_row]


def _some_rows(table: pa.Table, fraction: float, generator: np.random.Generator) -> _Mask:
    chosen: _Mask = generator.permutation(table.num_rows) < max(1, round(table.num_rows * fraction))
    return chosen


_SPLITS = {"time": _last_part, "days": _whole_days, "random": _some_rows}


def _times(table: pa.Table) -> npt.NDArray[np.int64]:
    times = named_column(table, TIME_COLUMN).cast(pa.timestamp("us", "UTC"))
    micros: npt.NDArray[np.int64] = times.cast(pa.int64()).to_numpy()
    return micros
