"""On-demand views: a vectorised function that runs on columns of training rows and of requests alike."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import polars as pl
import pyarrow as pa

from toque.featurestore.definitions.casting import cast_column
from toque.featurestore.definitions.casting.composites import column_of_values
from toque.featurestore.definitions.dtypes import DType, FeatureType, List, Map, Vector
from toque.featurestore.definitions.fields import Field, RequestSource
from toque.featurestore.definitions.on_demand_inputs import Array, Inputs, objects_of
from toque.featurestore.definitions.views import FeatureView, Form, OnDemandFeatureView, Projection, Transform
from toque.featurestore.errors import InvalidRows

Column: TypeAlias = Array | pl.Series
_FLOATS: Mapping[FeatureType, Any] = {DType.FLOAT64: np.float64, DType.FLOAT32: np.float32}


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
    for field in view.schema:
        if field.name not in made:
            raise InvalidRows(f"{where} did not return {field.name!r}; it returned {sorted(made)}")
        column = _computed(field, made[field.name])
        expected = (rows, field.dtype.length) if isinstance(field.dtype, Vector) else (rows,)
        if column.shape != expected:
            raise InvalidRows(f"{where}: {field.name!r} has shape {column.shape}, expected {expected}")
        results[field.name] = column
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
