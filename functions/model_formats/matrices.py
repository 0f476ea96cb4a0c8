"""Columns of a table as arrays without torch: numbers, hashes of texts, and labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from toque.functions.model_formats.errors import TrainingDataError
from toque.functions.stats import LARGEST
from toque.kernels.hashing import hash_strings

_FEWEST_CLASSES, _MOST_CLASSES = 2, 1_000  # more are ids, not classes


def numeric_matrix(table: pa.Table, columns: Sequence[str]) -> npt.NDArray[Any]:
    """Convert the named columns to (rows, columns) float32; null becomes NaN.

    Raises: TrainingDataError if a column is absent or not a number.
    """
    out = np.empty((table.num_rows, len(columns)), dtype=np.float32)
    for j, name in enumerate(columns):
        column = named_column(table, name)
        if not (_is_number(column.type) or pa.types.is_null(column.type)):
            raise TrainingDataError(
                f"numeric column {name!r} has type {column.type}: cast it to a number or list it as categorical"
            )
        out[:, j] = pc.fill_null(column.cast(pa.float32(), safe=False), np.nan).to_numpy()
    return out


def category_matrix(table: pa.Table, columns: Sequence[str]) -> npt.NDArray[Any]:
    """Convert the named columns to (rows, columns) int64 hashes of their text; null becomes 0.

    Integers are hashed as their decimal digits, booleans as "true" and "false".
    Raises: TrainingDataError if a column is absent or holds fractions or times, which have several texts.
    """
    out = np.empty((table.num_rows, len(columns)), dtype=np.int64)
    for j, name in enumerate(columns):
        out[:, j] = hash_strings(_texts(table, name))
    return out


def text_matrix(table: pa.Table, columns: Sequence[str]) -> npt.NDArray[Any]:
    """Convert the named columns to (rows, columns) objects: texts as `category_matrix` hashes them, None where missing.

    Raises: TrainingDataError as `category_matrix`.
    """
    out = np.empty((table.num_rows, len(columns)), dtype=object)
    for j, name in enumerate(columns):
        out[:, j] = np.array(_texts(table, name).to_pylist(), dtype=object)
    return out


def tensor_array(table: pa.Table, name: str) -> npt.NDArray[Any]:
    """Convert a column of lists of numbers, nested to any depth, to (rows, *shape) float32; null becomes NaN.

    Raises: TrainingDataError if it is absent, no list of numbers, or has rows of several sizes.
    """
    column = named_column(table, name)
    shape = tensor_shape(column, name)
    flat: Any = column.combine_chunks()
    if flat.null_count:
        raise TrainingDataError(f"column {name!r} has {flat.null_count} nulls: leave those rows out")
    while not _is_number(flat.type):
        flat = flat.flatten()
    values = pc.fill_null(flat.cast(pa.float32(), safe=False), np.nan).to_numpy(zero_copy_only=False)
    size = int(np.prod(shape))
    if len(values) != table.num_rows * size:
        raise TrainingDataError(
            f"column {name!r} has {len(values)} numbers in {table.num_rows} rows of {list(shape)}: every row needs the same size"
        )
    matrix: npt.NDArray[Any] = values.reshape(table.num_rows, *shape)
    return matrix


def is_tensor(kind: pa.DataType) -> bool:
    """Whether a column of this type holds lists, as tensors do."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def tensor_shape(column: pa.ChunkedArray, name: str) -> tuple[int, ...]:
    """Shape of a row of a column of lists of numbers, by its first row. Raises: TrainingDataError if it is none."""
    kind, depth = column.type, 0
    while is_tensor(kind):
        kind, depth = kind.value_type, depth + 1
    if depth == 0 or not _is_number(kind) or len(column) == 0 or column[0].as_py() is None:
        raise TrainingDataError(
            f"column {name!r} of type {column.type} with {len(column)} rows is no tensor: want lists of numbers"
        )
    shape, row = [], column[0].as_py()
    for _ in range(depth):
        shape.append(len(row))
        row = row[0] if row else []
    return tuple(shape)


def binary_labels(table: pa.Table, label: str) -> npt.NDArray[np.float32]:
    """Convert the label column to (rows,) float32 of zeros and ones.

    Raises: TrainingDataError if it is absent, has a null, or another value.
    """
    column = _without_nulls(table, label)
    if not _is_number(column.type):
        raise TrainingDataError(
            f"label column {label!r} has type {column.type}, want 0 and 1: for classes set task='multiclass' in params"
        )
    values: npt.NDArray[np.float32] = column.cast(pa.float32(), safe=False).to_numpy()
    found = np.unique(values)
    if not np.isin(found, [0.0, 1.0]).all():
        raise TrainingDataError(
            f"label column {label!r} must hold 0 and 1 only, found {found[:5].tolist()}: for other labels set "
            "task='multiclass' or task='regression' in params"
        )
    return values


def class_labels(table: pa.Table, label: str) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """Convert the label column to class names, sorted (integers by value), and (rows,) indices into them.

    Raises: TrainingDataError if it is absent, has a null, fractions or times, or not 2 to 1,000 classes.
    """
    column = _without_nulls(table, label)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not (
        pa.types.is_integer(column.type)
        or pa.types.is_string(column.type)
        or pa.types.is_large_string(column.type)
    ):
        raise TrainingDataError(
            f"label column {label!r} has type {column.type}: classes are texts or integers; for a number set "
            "task='regression' in params"
        )
    names, indices = np.unique(column.to_numpy(), return_inverse=True)
    if not _FEWEST_CLASSES <= len(names) <= _MOST_CLASSES:
        raise TrainingDataError(
            f"label column {label!r} has {len(names)} classes in {table.num_rows} rows, want {_FEWEST_CLASSES} to "
            f"{_MOST_CLASSES}: check the label"
        )
    return tuple(str(name) for name in names), indices.astype(np.int64)


def label_names(table: pa.Table, label: str) -> tuple[str, ...]:
    """List all names in a label column of lists, sorted. Raises: TrainingDataError if it holds no lists of texts or integers."""
    names = np.unique(_listed_names(table, label).to_numpy(zero_copy_only=False).astype(str))
    if not _FEWEST_CLASSES <= len(names) <= _MOST_CLASSES:
        raise TrainingDataError(
            f"label column {label!r} lists {len(names)} names in {table.num_rows} rows, want {_FEWEST_CLASSES} to "
            f"{_MOST_CLASSES}: check the label"
        )
    return tuple(names.tolist())


def label_flags(table: pa.Table, label: str, names: Sequence[str]) -> npt.NDArray[np.float64]:
    """Convert a label column of lists of names to (rows, names) of 0 and 1.

    Raises: TrainingDataError as `label_names`, and if a name is not among `names`.
    """
    listed = _listed_names(table, label)
    place = pc.index_in(listed, pa.array(names, pa.string()))
    if place.null_count:
        unknown = pc.unique(listed.filter(pc.is_null(place))).to_pylist()
        raise TrainingDataError(
            f"label column {label!r} lists {unknown[:5]}, the version knows {list(names)[:20]}: leave those out or train on them"
        )
    flags = np.zeros((table.num_rows, len(names)))
    rows = pc.list_parent_indices(named_column(table, label).combine_chunks())
    flags[rows.to_numpy(zero_copy_only=False), place.to_numpy(zero_copy_only=False)] = 1.0
    return flags


def _listed_names(table: pa.Table, label: str) -> pa.Array:
    column = _without_nulls(table, label).combine_chunks()
    if not is_tensor(column.type) or not (
        pa.types.is_integer(column.type.value_type)
        or pa.types.is_string(column.type.value_type)
        or pa.types.is_large_string(column.type.value_type)
        or pa.types.is_null(column.type.value_type)
    ):
        raise TrainingDataError(
            f"label column {label!r} has type {column.type}: want a list of class names for each row, perhaps an empty one"
        )
    return pc.list_flatten(column).cast(pa.string())


def number_labels(table: pa.Table, label: str) -> npt.NDArray[np.float64]:
    """Convert the label column to (rows,) float64. Raises: TrainingDataError if it is absent, or not within `LARGEST` everywhere."""
    column = _without_nulls(table, label)
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise TrainingDataError(f"label column {label!r} has type {column.type}: a regression needs a number")
    values: npt.NDArray[np.float64] = column.cast(pa.float64()).to_numpy()
    bad = int((~(np.abs(values) <= LARGEST)).sum())
    if bad:
        raise TrainingDataError(
            f"label column {label!r} has {bad} values in {table.num_rows} rows that are no finite number, or beyond "
            f"{LARGEST:g}, where squares cannot be summed: leave those rows out"
        )
    return values


def count_labels(table: pa.Table, label: str) -> npt.NDArray[np.float64]:
    """Convert the label column to (rows,) float64 of integers from 0 on. Raises: TrainingDataError if it holds others."""
    values = number_labels(table, label)
    strange = (values < 0) | (values != np.floor(values))
    if strange.any():
        raise TrainingDataError(
            f"label column {label!r} holds {np.unique(values[strange])[:5].tolist()} in {int(strange.sum())} of "
            f"{table.num_rows} rows, which are no counts: leave those rows out, or declare outcome='number'"
        )
    return values


def relevance_labels(table: pa.Table, label: str, most: int) -> npt.NDArray[np.float64]:
    """Convert the label column to (rows,) float64 of integers from 0 to `most`. Raises: TrainingDataError if it holds others."""
    values = count_labels(table, label)
    if values.max(initial=0.0) > most:
        raise TrainingDataError(
            f"label column {label!r} holds relevances up to {values.max():g}, want 0 to {most}: use fewer grades"
        )
    return values


def vector_labels(table: pa.Table, label: str) -> npt.NDArray[np.float64]:
    """Convert the label column of lists of numbers to (rows, size) float64.

    Raises: TrainingDataError as `tensor_array`, for lists of lists, and for values that are not finite.
    """
    values = tensor_array(table, label).astype(np.float64)
    if len(values.shape[1:]) != 1 or not np.isfinite(values).all():
        raise TrainingDataError(
            f"label column {label!r} has rows of shape {list(values.shape[1:])} or values that are no finite number: want one list "
            "of finite numbers a row"
        )
    return values


def text_labels(table: pa.Table, label: str) -> npt.NDArray[np.object_]:
    """Convert the label column to texts (rows,). Raises: TrainingDataError for another type, or nulls."""
    column = _without_nulls(table, label)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise TrainingDataError(f"label column {label!r} has type {column.type}: want a text for each row")
    return np.array([*column.to_pylist(), None], dtype=object)[:-1]


def named_column(table: pa.Table, name: str) -> pa.ChunkedArray:
    """Find a column by its name. Raises: TrainingDataError if it is absent."""
    if name not in table.column_names:
        raise TrainingDataError(f"column {name!r} is not in the table, which has {table.column_names}")
    return table.column(name)


def _texts(table: pa.Table, name: str) -> pa.ChunkedArray:
    """Texts of a column of categories. Raises: TrainingDataError for fractions or times, which have several texts."""
    column = named_column(table, name)
    if pa.types.is_floating(column.type) or pa.types.is_temporal(column.type):
        raise TrainingDataError(
            f"categorical column {name!r} has type {column.type}: list it as numeric or store it as text"
        )
    return column.cast(pa.string())


def _without_nulls(table: pa.Table, label: str) -> pa.ChunkedArray:
    column = named_column(table, label)
    if column.null_count:
        raise TrainingDataError(
            f"label column {label!r} has {column.null_count} nulls in {table.num_rows} rows: leave those rows out"
        )
    return column


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))
