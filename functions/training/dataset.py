"""A table as the tensors that training and scoring take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from functions.training.errors import TrainingDataError
from kernels.hashing import hash_strings

TIME_COLUMN = "event_timestamp"
Split = Literal["days", "time", "random"]
_DAY_US = 86_400_000_000
_Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class TabularData:
    """Raw rows of a data set.

    numeric: (rows, features) float32, NaN where missing; categorical: (rows, columns) int64 hashes, 0 where missing;
    label: (rows,) float32.
    """

    numeric: Tensor
    categorical: Tensor
    label: Tensor

    def __len__(self) -> int:
        return self.label.shape[0]

    def take(self, rows: Tensor) -> TabularData:
        """The given rows, in the given order."""
        return TabularData(self.numeric[rows], self.categorical[rows], self.label[rows])


def numeric_matrix(table: pa.Table, columns: Sequence[str]) -> npt.NDArray[Any]:
    """The named columns as (rows, columns) float32; null becomes NaN.

    Raises: TrainingDataError if a column is absent or not a number.
    """
    out = np.empty((table.num_rows, len(columns)), dtype=np.float32)
    for j, name in enumerate(columns):
        column = _column(table, name)
        if not (
            pa.types.is_integer(column.type)
            or pa.types.is_floating(column.type)
            or pa.types.is_boolean(column.type)
            or pa.types.is_null(column.type)
        ):
            raise TrainingDataError(
                f"numeric column {name!r} has type {column.type}: cast it to a number or list it as categorical"
            )
        out[:, j] = pc.fill_null(column.cast(pa.float32(), safe=False), np.nan).to_numpy()
    return out


def category_matrix(table: pa.Table, columns: Sequence[str]) -> npt.NDArray[Any]:
    """The named columns as (rows, columns) int64 hashes of their text; null becomes 0.

    Integers are hashed as their decimal digits, booleans as "true" and "false".
    Raises: TrainingDataError if a column is absent or holds fractions or times, which have no one text.
    """
    out = np.empty((table.num_rows, len(columns)), dtype=np.int64)
    for j, name in enumerate(columns):
        column = _column(table, name)
        if pa.types.is_floating(column.type) or pa.types.is_temporal(column.type):
            raise TrainingDataError(
                f"categorical column {name!r} has type {column.type}: list it as numeric or store it as text"
            )
        out[:, j] = hash_strings(column.cast(pa.string()))
    return out


def binary_labels(table: pa.Table, label: str) -> npt.NDArray[np.float32]:
    """The label column as (rows,) float32 of zeros and ones.

    Raises: TrainingDataError if it is absent, has a null, or another value.
    """
    column = _column(table, label)
    if column.null_count:
        raise TrainingDataError(
            f"label column {label!r} has {column.null_count} nulls in {table.num_rows} rows: leave those rows out"
        )
    values: npt.NDArray[np.float32] = column.cast(pa.float32()).to_numpy()
    found = np.unique(values)
    if not np.isin(found, [0.0, 1.0]).all():
        raise TrainingDataError(f"label column {label!r} must hold 0 and 1 only, found {found[:5].tolist()}")
    return values


def require_both_classes(label: Tensor, where: str) -> None:
    """Raises: TrainingDataError if `label` (rows,) holds one class only; `where` says of what."""
    positives = int(label.sum())
    if positives in {0, len(label)}:
        raise TrainingDataError(
            f"{where} has one class only ({positives} of {len(label)} rows are positive): nothing can be learnt "
            "from it; widen the time range or check the label"
        )


def tabular_data(
    table: pa.Table, *, numeric: Sequence[str], categorical: Sequence[str], label: str
) -> TabularData:
    """Read the named columns of a table of examples.

    Raises: TrainingDataError if the table is empty, a column is absent or of the wrong kind, or the label has one
    class only.
    """
    if table.num_rows == 0:
        raise TrainingDataError("the table has no rows: there is nothing to learn from")
    if not numeric and not categorical:
        raise TrainingDataError("no feature columns were named: name some as numeric or categorical")
    labels = torch.tensor(binary_labels(table, label))
    require_both_classes(labels, f"label column {label!r}")
    return TabularData(
        torch.from_numpy(numeric_matrix(table, numeric)),
        torch.from_numpy(category_matrix(table, categorical)),
        labels,
    )


def split_rows(table: pa.Table, *, valid_fraction: float, by: Split, seed: int) -> tuple[Tensor, Tensor]:
    """Row numbers for training and for validation.

    by: "days" holds out whole days (UTC), drawn with the seed over the whole time range, so that the newest rows are
    learnt from too and rows of one day do not stand on both sides; "time" holds out the last part of the time range;
    "random" holds out rows.
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
    times = _column(table, TIME_COLUMN).cast(pa.timestamp("us", "UTC"))
    micros: npt.NDArray[np.int64] = times.cast(pa.int64()).to_numpy()
    return micros


def _column(table: pa.Table, name: str) -> pa.ChunkedArray:
    if name not in table.column_names:
        raise TrainingDataError(f"column {name!r} is not in the table, which has {table.column_names}")
    return table.column(name)
