"""Computed features: on-demand views and views derived from the rows of others.

An on-demand view is a vectorised function that runs on columns of training rows and of requests alike; a derived one
is kept by the same refresh as the views that it is computed from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
import polars as pl
import pyarrow as pa

from toque.featurestore.definitions.casting import cast_column, column_of_values
from toque.featurestore.definitions.code import code_digest
from toque.featurestore.definitions.dtypes import DType, FeatureType, List, Map, Vector
from toque.featurestore.definitions.encoding import vectors_of
from toque.featurestore.definitions.fields import Field, RequestSource, refuse_doubles
from toque.featurestore.definitions.views import (
    FeatureView,
    Form,
    OnDemandFeatureView,
    Projection,
    Transform,
    projection,
)
from toque.featurestore.errors import InvalidDefinition, InvalidRows
from toque.registry.code_digest import reference
from toque.registry.times import epoch_us

Array = np.ndarray[Any, Any]
Column: TypeAlias = Array | pl.Series
Compute = Callable[[pl.DataFrame], pl.DataFrame]
_FLOATS: Mapping[FeatureType, Any] = {DType.FLOAT64: np.float64, DType.FLOAT32: np.float32}


@dataclass(frozen=True, slots=True)
class Derived:
    """Rows of a view from the rows of other stored views with the same join keys, which may be derived themselves.

    inputs: views or projections of them. schema: the features that are computed.
    transform: a frame in, with a row for each moment at which one of the inputs changed and the columns of all of them as they
        were then (null where there was no row within its ttl), and a frame out with the features, row by row.
    A row's event time is that of its latest input, and it became known when the last of them did.
    code, reference: digest of the function's text and where to import it from; derived from it by default.
    Raises: InvalidDefinition.
    """

    inputs: Sequence[FeatureView | Projection]
    schema: Sequence[Field]
    transform: Compute | None = field(compare=False)
    code: str = ""
    reference: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", tuple(projection(each) for each in self.inputs))
        object.__setattr__(self, "schema", tuple(self.schema))
        if not self.inputs or not self.schema:
            raise InvalidDefinition("Derived needs views to compute from, and a schema")
        for each in self.projections:
            if not isinstance(each.view, FeatureView):
                raise InvalidDefinition(
                    f"Derived: {each.view.name!r} is computed on demand and has no rows; compute from its sources instead"
                )
        refuse_doubles("Derived: columns of its inputs (rename with view.with_name)", self.columns)
        if self.transform is not None:
            object.__setattr__(self, "code", self.code or code_digest(self.transform))
            object.__setattr__(self, "reference", self.reference or reference(self.transform))

    @property
    def projections(self) -> tuple[Projection, ...]:
        """Inputs, each with the features that are read."""
        return tuple(each for each in self.inputs if isinstance(each, Projection))

    @property
    def columns(self) -> list[str]:
        """Names of the columns that the transform gets."""
        return [name for each in self.projections for name in each.columns]

    @property
    def fields(self) -> tuple[Field, ...]:
        """Features that the transform computes."""
        return tuple(self.schema)

    def describe(self) -> dict[str, Any]:
        """Describe the computation as JSON, its input views with it."""
        return {
            "type": "derived",
            "inputs": [each.describe() | {"definition": each.view.semantics()} for each in self.projections],
            "schema": [each.describe() for each in self.schema],
            "code": self.code,
            "reference": self.reference,
        }


def on_demand_feature_view(
    *,
    sources: Sequence[FeatureView | Projection | RequestSource],
    schema: Sequence[Field],
    name: str = "",
    tags: Mapping[str, str] | None = None,
    owner: str = "",
    form: Form = "numpy",
) -> Callable[[Transform], OnDemandFeatureView]:
    """Declare a function as an on-demand view, under its own name unless another is given."""

    def declare(transform: Transform) -> OnDemandFeatureView:
        return OnDemandFeatureView(
            name or getattr(transform, "__name__", ""),
            sources,
            schema,
            transform,
            tags=tags or {},
            owner=owner,
            form=form,
        )

    return declare


def compute(view: OnDemandFeatureView, inputs: Inputs, *, rows: int) -> dict[str, Column]:
    """Compute the view's features for `rows` rows.

    Raises: InvalidRows if the function raises, or does not return every feature of its schema, one value a row.
    """
    where = f"on-demand feature view {view.name!r}"
    given: Any = inputs.polars(view.inputs) if view.form == "polars" else inputs.numpy(view.inputs)
    try:
        made = view.transform(given)
    except Exception as error:  # a user's function may raise anything
        raise InvalidRows(f"{where} fails on its inputs: {type(error).__name__}: {error}") from error
    if view.form == "polars":
        return _series_of(where, view, made, rows)
    results: dict[str, Column] = {}
    for declared in view.schema:
        if declared.name not in made:
            raise InvalidRows(f"{where} did not return {declared.name!r}; it returned {sorted(made)}")
        column = _computed(declared, made[declared.name])
        expected = (rows, declared.dtype.length) if isinstance(declared.dtype, Vector) else (rows,)
        if column.shape != expected:
            raise InvalidRows(f"{where}: {declared.name!r} has shape {column.shape}, expected {expected}")
        results[declared.name] = column
    return results


def _series_of(where: str, view: OnDemandFeatureView, made: Any, rows: int) -> dict[str, Column]:
    """Columns of the frame that a transform returned. Raises: InvalidRows."""
    if not isinstance(made, pl.DataFrame):
        raise InvalidRows(
            f"{where} returned {type(made).__name__}; with form='polars' it returns a polars.DataFrame"
        )
    missing = [name for name in view.features if name not in made.columns]
    if missing:
        raise InvalidRows(f"{where} did not return {missing[0]!r}; it returned {sorted(made.columns)}")
    if made.height != rows:
        raise InvalidRows(f"{where} returned {made.height} rows for {rows}")
    return {name: made.get_column(name) for name in view.features}


def _computed(field: Field, made: Any) -> Array:
    """Column of what a transform returned; values that are sequences or mappings stay whole."""
    if isinstance(field.dtype, List | Map) and not isinstance(made, np.ndarray):
        return objects_of(list(made))
    return np.asarray(made)


def to_arrow(field: Field, column: Column) -> pa.Array:
    """Convert a computed column to its field's type; NaN, NaT and None are null.

    Raises: InvalidRows if a value does not fit the type.
    """
    if isinstance(column, pl.Series):
        whole = column.fill_nan(None) if column.dtype.is_float() else column
        if field.dtype is DType.FLOAT32 and whole.dtype == pl.Float64:
            whole = whole.cast(pl.Float32)  # what overflows is infinite, as in an array: nobody sent it
        where = f"on-demand feature {field.name!r}"
        return cast_column(where, field, pa.chunked_array([whole.to_arrow()])).combine_chunks()
    if not isinstance(field.dtype, DType):
        return _composite(field, column)
    try:
        if column.dtype.kind == "f":
            nulls = np.isnan(column)
            return pa.array(np.where(nulls, 0, column), mask=nulls).cast(field.dtype.arrow)
        if field.dtype is DType.UNIX_TIMESTAMP:
            return pa.array(column.astype("datetime64[us]")).cast(field.dtype.arrow)
        return pa.array(column).cast(field.dtype.arrow)
    except pa.ArrowInvalid as error:
        raise InvalidRows(f"on-demand feature {field.name!r} does not fit {field.dtype}: {error}") from error


def _composite(field: Field, column: Array) -> pa.Array:
    """Convert computed vectors, lists, maps or decimals. Raises: InvalidRows."""
    where = f"on-demand feature {field.name!r}"
    if isinstance(field.dtype, Vector):
        values: list[Any] = [None if np.isnan(row).all() else row for row in column]
    elif column.dtype.kind == "f":
        values = [None if np.isnan(value) else value for value in column.tolist()]
    else:
        values = column.tolist()
    try:
        given = pa.chunked_array([column_of_values(values)])
    except (pa.ArrowException, OverflowError) as error:
        raise InvalidRows(f"{where} cannot be {field.dtype}: {error}") from error
    return cast_column(where, field, given).combine_chunks()


def to_python(field: Field, column: Column) -> list[Any]:
    """Convert a computed column to Python values of its field's type, None where null."""
    if isinstance(column, np.ndarray) and column.dtype.kind == "f" and field.dtype in _FLOATS:
        column = column.astype(_FLOATS[field.dtype])  # the bits that a training set has
        return [None if value != value else value for value in column.tolist()]  # noqa: PLR0124  # NaN
    values: list[Any] = to_arrow(field, column).to_pylist(maps_as_pydicts="strict")
    return values


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
        return {name: arrow_declared(self.dtypes[name], self.table.column(name)) for name in names}

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
        return {name: declared(self.dtypes[name], self.values[name]) for name in names}

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


def declared(dtype: FeatureType, values: Sequence[Any]) -> Array:
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


def arrow_declared(dtype: FeatureType, column: pa.ChunkedArray) -> Array:
    """Convert an Arrow column to the form that transforms get."""
    if isinstance(dtype, Vector):
        vectors: Array = vectors_of(column, dtype.length)
        if column.null_count:
            vectors = np.where(column.is_null().to_numpy()[:, None], np.float32("nan"), vectors)
        return vectors
    if dtype is DType.STRING or not isinstance(dtype, DType):
        return declared(dtype, column.to_pylist(maps_as_pydicts="strict"))
    if dtype is DType.UNIX_TIMESTAMP:
        times: Array = (
            column.cast(pa.int64()).fill_null(np.iinfo(np.int64).min).to_numpy().astype("datetime64[us]")
        )
        return times
    floats: Array = column.cast(pa.float64(), safe=False).fill_null(float("nan")).to_numpy()
    return floats
