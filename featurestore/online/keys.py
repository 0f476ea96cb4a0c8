"""Redis keys of the rows of entities: `toque:{project}:{view}:{value|value}`.

Values are in the order of the view's join keys: strings with `%` and `|` percent-encoded, integers in decimal,
booleans as 0 and 1. Every view's rows are separate keys, so each lies in one slot of a Redis Cluster.
"""

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import pyarrow as pa

from toque.featurestore.definitions.dtypes import DType, FeatureType
from toque.featurestore.definitions.views import FeatureView
from toque.featurestore.errors import InvalidRows

NULL_KEY = b"toque:none"  # read where a join key is null; never written


def prefix(project: str, view: str) -> str:
    """Prefix of every row key of a view."""
    return f"toque:{project}:{view}:"


def row_keys(project: str, view: FeatureView, rows: pa.Table) -> list[bytes]:
    """Build the keys of stored rows, whose columns have the view's types."""
    start = prefix(project, view.stored_as)
    columns = [_texts(key.dtype, rows.column(key.name).to_pylist()) for key in view.join_keys]
    if len(columns) == 1:
        return [(start + text).encode() for text in columns[0]]
    if not columns:
        return [start.encode()] * rows.num_rows
    return [(start + "|".join(texts)).encode() for texts in zip(*columns, strict=True)]


def _texts(dtype: FeatureType, values: list[Any]) -> list[str]:
    if dtype is DType.STRING:
        return [_escape(value) for value in values]
    return [str(int(value)) for value in values]


def _escape(value: str) -> str:
    if "%" in value or "|" in value:
        return value.replace("%", "%25").replace("|", "%7C")
    return value


class RequestKeys:
    """Builds the keys for rows of requests.

    columns: of the request, one for each join key of the view, in order.
    """

    def __init__(self, project: str, view: FeatureView, columns: Sequence[str]) -> None:
        self._prefix = prefix(project, view.stored_as)
        self._view = view.name
        self._columns = tuple(zip(columns, (key.dtype for key in view.join_keys), strict=True))

    def of(self, entity_rows: Sequence[Mapping[str, Any]]) -> list[bytes]:
        """Build one key a row; `NULL_KEY` where a value is None.

        Raises: InvalidRows for a column that is missing or of another type.
        """
        return [self._key(number, row) for number, row in enumerate(entity_rows)]

    def _key(self, number: int, row: Mapping[str, Any]) -> bytes:
        parts: list[str] = []
        for column, dtype in self._columns:
            if column not in row:
                msg = f"entity row {number}: join key {column!r} of view {self._view!r} is missing; got {sorted(row)}"
                raise InvalidRows(msg)
            value = row[column]
            if value is None:
                return NULL_KEY
            parts.append(self._text(number, column, dtype, value))
        return (self._prefix + "|".join(parts)).encode()

    def _text(self, number: int, column: str, dtype: FeatureType, value: Any) -> str:
        if dtype is DType.STRING:
            if isinstance(value, str):
                return _escape(value)
        elif dtype is DType.BOOL:
            if value in {True, False}:
                return str(int(value))
        elif isinstance(value, Integral) and not isinstance(value, bool):
            return str(int(value))
        msg = (
            f"entity row {number}: join key {column!r} of view {self._view!r} must be {dtype}, got {value!r}"
        )
        raise InvalidRows(msg)
