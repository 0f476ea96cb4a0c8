"""Filters of a vector search by the other columns of a view: equality, sets, ranges.

`{"lang": "de", "year": {"ge": 2020, "lt": 2024}, "kind": ["a", "b"], "gone": None}`: a row must meet all; None asks for a null.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from toque.featurestore.definitions.casting import cast_column
from toque.featurestore.definitions.casting.composites import column_of_values
from toque.featurestore.definitions.dtypes import Decimal, DType
from toque.featurestore.definitions.fields import Field
from toque.featurestore.definitions.views import FeatureView
from toque.featurestore.errors import InvalidRows, UnknownDefinition

Where: TypeAlias = Mapping[str, Any]
Bools = np.ndarray[Any, np.dtype[np.bool_]]
_COMPARE: dict[str, Callable[..., Any]] = {
    "ge": pc.greater_equal,
    "gt": pc.greater,
    "le": pc.less_equal,
    "lt": pc.less,
    "ne": pc.not_equal,
}


@dataclass(frozen=True, slots=True)
class Condition:
    """Condition that rows meet on one column. compare: `eq`, `in`, or a key of a range; values: Arrow values of the column's type."""

    column: str
    compare: str
    values: pa.Array

    def mask(self, rows: pa.Table) -> Bools:
        """Tell which rows meet the condition; a null meets only the one that asks for it."""
        column = rows.column(self.column)
        if self.compare == "eq" and self.values.null_count:
            met = column.is_null()
        elif self.compare in {"eq", "in"}:
            met = pc.is_in(column, value_set=self.values, skip_nulls=True)
        else:
            met = pc.fill_null(_COMPARE[self.compare](column, self.values[0]), False)
        mask: Bools = met.to_numpy()
        return mask


def conditions_of(view: FeatureView, where: Where) -> tuple[Condition, ...]:
    """Check a filter and type its values by the view.

    Raises: UnknownDefinition for a column that the view has not; InvalidRows for a value that does not fit.
    """
    fields = {f.name: f for f in (*view.join_keys, *view.schema)}
    found: list[Condition] = []
    for name, wanted in where.items():
        if name not in fields:
            raise UnknownDefinition(
                f"feature view {view.name!r}: where names {name!r}; it has {list(fields)}"
            )
        field = fields[name]
        if not isinstance(field.dtype, DType | Decimal):
            raise InvalidRows(
                f"feature view {view.name!r}: where takes scalars and decimals, and {name!r} is {field.dtype}; leave it out"
            )
        found += _of_column(f"feature view {view.name!r}: where", field, wanted)
    return tuple(found)


def mask_of(conditions: Sequence[Condition], rows: pa.Table) -> Bools:
    """Tell which rows meet all conditions."""
    mask = np.ones(rows.num_rows, dtype=np.bool_)
    for condition in conditions:
        mask &= condition.mask(rows)
    return mask


def _of_column(where: str, field: Field, wanted: Any) -> list[Condition]:
    if isinstance(wanted, Mapping):
        unknown = sorted(set(wanted) - _COMPARE.keys())
        if unknown or not wanted:
            raise InvalidRows(
                f"{where}: column {field.name!r} compares by {unknown or 'nothing'}; use {', '.join(_COMPARE)}"
            )
        bounds = [Condition(field.name, how, _typed(where, field, [value])) for how, value in wanted.items()]
        for bound in bounds:
            if bound.values.null_count:
                raise InvalidRows(
                    f"{where}: column {field.name!r}: {bound.compare} null finds no row; leave it out"
                )
        return bounds
    if isinstance(wanted, list | tuple | set | frozenset):
        return [Condition(field.name, "in", _typed(where, field, list(wanted)))]
    return [Condition(field.name, "eq", _typed(where, field, [wanted]))]


def _typed(where: str, field: Field, values: Sequence[Any]) -> pa.Array:
    try:
        given = pa.chunked_array([column_of_values(values)])
    except (pa.ArrowException, OverflowError) as error:
        msg = f"{where}: column {field.name!r} is {field.dtype}, got {values!r:.80}: {error}; give values of its type"
        raise InvalidRows(msg) from error
    typed = cast_column(where, field, given).combine_chunks()
    return typed if isinstance(typed, pa.Array) else pa.array([], field.dtype.arrow)
