"""Times as tables store them: UTC to the microsecond, at every depth."""

from __future__ import annotations

from typing import Final

import pyarrow as pa

from toque.registry.errors import InvalidInput

STORED_TIME: Final = pa.timestamp("us", "UTC")


def with_stored_times(data: pa.Table, name: str) -> pa.Table:
    """Cast timestamp columns of any unit and timezone to microseconds in UTC, the only ones that every Delta reader opens.

    Raises: InvalidInput for a time without a timezone, parts of a microsecond, or a time inside a list or struct that is
    not timestamp('us', 'UTC') already.
    """
    for index, field in enumerate(data.schema):
        if not pa.types.is_timestamp(field.type):
            _check_nested(field.type, name, field.name)
        elif field.type != STORED_TIME:
            column = _stored_time(data.column(index), name, field)
            data = data.set_column(index, pa.field(field.name, STORED_TIME, field.nullable), column)
    return data


def _stored_time(column: pa.ChunkedArray, name: str, field: pa.Field) -> pa.ChunkedArray:
    if field.type.tz is None:
        raise InvalidInput(
            f"table {name}: column {field.name!r} is {field.type} without a timezone; "
            "cast it to timestamp('us', 'UTC')"
        )
    try:
        return column.cast(STORED_TIME)
    except pa.ArrowInvalid as error:
        raise InvalidInput(
            f"table {name}: column {field.name!r} is {field.type} with times that microseconds cannot hold ({error}); "
            "round them to timestamp('us', 'UTC')"
        ) from error


def _check_nested(kind: pa.DataType, name: str, column: str) -> None:
    for index in range(kind.num_fields):
        inner = kind.field(index).type
        if pa.types.is_timestamp(inner) and inner != STORED_TIME:
            raise InvalidInput(
                f"table {name}: column {column!r} has times of type {inner} inside it; cast them to timestamp('us', 'UTC')"
            )
        _check_nested(inner, name, column)
