"""On-demand views: a vectorised function that runs on columns of training rows and of requests alike."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from featurestore.definitions.dtypes import DType
from featurestore.definitions.encoding import to_microseconds
from featurestore.definitions.fields import Field, RequestSource
from featurestore.definitions.views import FeatureView, OnDemandFeatureView, Projection, Transform
from featurestore.errors import InvalidRows

Array = np.ndarray[Any, Any]


def on_demand_feature_view(
    *,
    sources: Sequence[FeatureView | Projection | RequestSource],
    schema: Sequence[Field],
    name: str = "",
    tags: Mapping[str, str] | None = None,
    owner: str = "",
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
        )

    return declare


def compute(view: OnDemandFeatureView, inputs: Mapping[str, Array], *, rows: int) -> dict[str, Array]:
    """Compute the view's features from its input columns, each of length `rows`, in the forms `column_of` makes.

    Raises: InvalidRows if the function raises, or does not return every feature of its schema, one value a row.
    """
    where = f"on-demand feature view {view.name!r}"
    try:
        made = view.transform(inputs)
    except Exception as error:  # a user's function may raise anything
        raise InvalidRows(f"{where} fails on its inputs: {type(error).__name__}: {error}") from error
    results: dict[str, Array] = {}
    for field in view.schema:
        if field.name not in made:
            raise InvalidRows(f"{where} did not return {field.name!r}; it returned {sorted(made)}")
        column = np.asarray(made[field.name])
        if column.shape != (rows,):
            raise InvalidRows(f"{where}: {field.name!r} has shape {column.shape}, expected ({rows},)")
        results[field.name] = column
    return results


def column_of(dtype: DType, values: Sequence[Any]) -> Array:
    """Convert Python values (None for null) to the form that transforms get: see `OnDemandFeatureView`."""
    if dtype is DType.STRING:
        column = np.empty(len(values), dtype=object)
        column[:] = values
        return column
    if dtype is DType.UNIX_TIMESTAMP:
        micros = [None if v is None else to_microseconds(v) for v in values]
        return np.array(["NaT" if m is None else m for m in micros], dtype="datetime64[us]")
    return np.array([np.nan if v is None else v for v in values], dtype=np.float64)


def arrow_column_of(dtype: DType, column: pa.ChunkedArray) -> Array:
    """Convert an Arrow column to the form that transforms get."""
    if dtype is DType.STRING:
        return column_of(dtype, column.to_pylist())
    if dtype is DType.UNIX_TIMESTAMP:
        times: Array = (
            column.cast(pa.int64()).fill_null(np.iinfo(np.int64).min).to_numpy().astype("datetime64[us]")
        )
        return times
    floats: Array = column.cast(pa.float64(), safe=False).fill_null(float("nan")).to_numpy()
    return floats


def to_arrow(field: Field, column: Array) -> pa.Array:
    """Convert a computed column to its field's type; NaN, NaT and None are null.

    Raises: InvalidRows if a value does not fit the type.
    """
    try:
        if column.dtype.kind == "f":
            nulls = np.isnan(column)
            return pa.array(np.where(nulls, 0, column), mask=nulls).cast(field.dtype.arrow)
        if field.dtype is DType.UNIX_TIMESTAMP:
            return pa.array(column.astype("datetime64[us]")).cast(field.dtype.arrow)
        return pa.array(column).cast(field.dtype.arrow)
    except pa.ArrowInvalid as error:
        raise InvalidRows(f"on-demand feature {field.name!r} does not fit {field.dtype}: {error}") from error


def to_python(field: Field, column: Array) -> list[Any]:
    """Convert a computed column to Python values of its field's type, None where null."""
    if column.dtype.kind == "f" and field.dtype in {DType.FLOAT64, DType.FLOAT32}:
        return [None if value != value else value for value in column.tolist()]  # noqa: PLR0124  # NaN
    values: list[Any] = to_arrow(field, column).to_pylist()
    return values
