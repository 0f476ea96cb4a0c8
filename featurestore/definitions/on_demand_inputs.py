"""Inputs of on-demand views: columns of a training set or of a request, in the form that a transform takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import polars as pl
import pyarrow as pa

from toque.featurestore.definitions.casting import cast_column
from toque.featurestore.definitions.casting.composites import column_of_values
from toque.featurestore.definitions.dtypes import DType, FeatureType, Vector
from toque.featurestore.definitions.encoding import vectors_of
from toque.featurestore.definitions.fields import Field
from toque.registry.times import epoch_us

Array = np.ndarray[Any, Any]


class Inputs(Protocol):
    """Columns that on-demand views compute from, in either form."""

    def numpy(self, names: Iterable[str]) -> dict[str, Array]:
        """Convert some columns to the arrays that transforms get: see `OnDemandFeatureView`."""

    def polars(self, names: Iterable[str]) -> pl.DataFrame:
        """Convert some columns to a frame of exactly their types."""


@dataclass(frozen=True, slots=True)
class TableInputs:
    """Columns of a table, of a training set's rows."""

    table: pa.Table
    dtypes: Mapping[str, FeatureType]

    def numpy(self, names: Iterable[str]) -> dict[str, Array]:
        """Convert some columns to arrays."""
        return {name: arrow_column_of(self.dtypes[name], self.table.column(name)) for name in names}

    def polars(self, names: Iterable[str]) -> pl.DataFrame:
        """Convert some columns to a frame."""
        typed = {name: self.table.column(name).cast(self.dtypes[name].arrow) for name in names}
        return pl.DataFrame(pa.table(typed))

    def take(self, rows: Sequence[int]) -> TableInputs:
        """Select some rows of the table."""
        return TableInputs(self.table.select(list(self.dtypes)).take(list(rows)), self.dtypes)


@dataclass(frozen=True, slots=True)
class ValueInputs:
    """Python values by column, of a request; None is null."""

    values: Mapping[str, Sequence[Any]]
    dtypes: Mapping[str, FeatureType]

    def numpy(self, names: Iterable[str]) -> dict[str, Array]:
        """Convert some columns to arrays."""
        return {name: column_of(self.dtypes[name], self.values[name]) for name in names}

    def polars(self, names: Iterable[str]) -> pl.DataFrame:
        """Convert some columns to a frame."""
        return pl.DataFrame(pa.table({name: self._typed(name, self.dtypes[name]) for name in names}))

    def _typed(self, name: str, dtype: FeatureType) -> pa.Array:
        if isinstance(dtype, DType):
            return pa.array(self.values[name], dtype.arrow)
        given = pa.chunked_array([column_of_values(list(self.values[name]))])
        return cast_column("request", Field(name, dtype), given)


def objects_of(values: Sequence[Any]) -> Array:
    """Array of objects that holds sequences and mappings as they are."""
    column = np.empty(len(values), dtype=object)
    for row, value in enumerate(values):
        column[row] = value
    return column


def column_of(dtype: FeatureType, values: Sequence[Any]) -> Array:
    """Convert Python values (None for null) to the form that transforms get: see `OnDemandFeatureView`."""
    if isinstance(dtype, Vector):
        nothing = [np.nan] * dtype.length
        vectors = np.array([nothing if v is None else v for v in values], dtype=np.float32)
        return vectors.reshape(len(values), dtype.length)
    if dtype is DType.STRING or not isinstance(dtype, DType):
        return objects_of(values)
    if dtype is DType.UNIX_TIMESTAMP:
        micros = [None if v is None else epoch_us(v) for v in values]
        return np.array(["NaT" if m is None else m for m in micros], dtype="datetime64[us]")
    return np.array([np.nan if v is None else v for v in values], dtype=np.float64)


def arrow_column_of(dtype: FeatureType, column: pa.ChunkedArray) -> Array:
    """Convert an Arrow column to the form that transforms get."""
    if isinstance(dtype, Vector):
        vectors: Array = vectors_of(column, dtype.length)
        if column.null_count:
            vectors = np.where(column.is_null().to_numpy()[:, None], np.float32("nan"), vectors)
        return vectors
    if dtype is DType.STRING or not isinstance(dtype, DType):
        return column_of(dtype, column.to_pylist(maps_as_pydicts="strict"))
    if dtype is DType.UNIX_TIMESTAMP:
        times: Array = (
            column.cast(pa.int64()).fill_null(np.iinfo(np.int64).min).to_numpy().astype("datetime64[us]")
        )
        return times
    floats: Array = column.cast(pa.float64(), safe=False).fill_null(float("nan")).to_numpy()
    return floats
