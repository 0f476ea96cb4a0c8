"""Expectations that rows of a view must meet to be written: ranges, shares of nulls, freshness.

A batch that does not meet them is refused whole, so that neither store ever has part of it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from toque.featurestore.definitions.fields import EVENT_TIMESTAMP, Field
from toque.featurestore.errors import InvalidDefinition, UnexpectedRows
from toque.registry.times import MICROSECOND


@dataclass(frozen=True, slots=True)
class InRange:
    """Expectation that every value of a numeric column, except nulls, lies in `[least, most]`; NaN does not.

    Raises: InvalidDefinition if there is no bound or the bounds are crossed.
    """

    column: str
    least: float | None = None
    most: float | None = None

    def __post_init__(self) -> None:
        if self.least is None and self.most is None:
            raise InvalidDefinition(f"InRange({self.column!r}) has no bound; give least, most or both")
        if self.least is not None and self.most is not None and not self.least <= self.most:
            raise InvalidDefinition(f"InRange({self.column!r}): least {self.least} is above most {self.most}")

    def describe(self) -> dict[str, Any]:
        """Describe the expectation as JSON."""
        return {"type": "in_range", "column": self.column, "least": self.least, "most": self.most}

    def check(self, where: str, rows: pa.Table) -> None:
        """Check that all values are in the range. Raises: UnexpectedRows naming the first that is not."""
        column = rows.column(self.column)
        outside = self.outside(column)
        count = pc.sum(outside).as_py()
        if count:
            row = pc.index(outside, True).as_py()
            msg = (
                f"{where}: column {self.column!r} is {column[row].as_py()!r} in row {row}, outside "
                f"[{self.least}, {self.most}], as are {count} of {rows.num_rows} rows; correct or leave out these rows, "
                "or widen the view's InRange"
            )
            raise UnexpectedRows(msg)

    def outside(self, column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
        """Find the values of a numeric column that lie out of the range, NaN among them; false where null."""
        inside = pc.is_valid(column)
        if self.least is not None:
            inside = pc.and_kleene(inside, _meets(column, self.least, least=True))
        if self.most is not None:
            inside = pc.and_kleene(inside, _meets(column, self.most, least=False))
        return pc.and_(pc.is_valid(column), pc.invert(pc.fill_null(inside, False)))


def _meets(column: pa.ChunkedArray | pa.Array, bound: float, *, least: bool) -> Any:
    """Compare a column with a bound in the column's own type: as float64, 2^53 + 1 would be 2^53."""
    compare = pc.greater_equal if least else pc.less_equal
    if pa.types.is_floating(column.type):
        return compare(column.cast(pa.float64()), _float_within(bound, least=least))
    if bound in (math.inf, -math.inf):
        return pa.scalar((bound < 0) is least)
    scale = column.type.scale if pa.types.is_decimal(column.type) else 0
    steps = Fraction(str(bound)) * 10**scale  # 0.1 is a tenth
    unscaled = math.ceil(steps) if least else math.floor(steps)
    lowest, highest = _unscaled_span(column.type)
    if not lowest <= unscaled <= highest:
        return pa.scalar((unscaled < lowest) is least)
    value = Decimal(f"{unscaled}e{-scale}") if pa.types.is_decimal(column.type) else unscaled
    return compare(column, pa.scalar(value, column.type))


def _float_within(bound: float, *, least: bool) -> float:
    """Round a bound to the nearest float64 within it; an integer need not be one."""
    try:
        value = float(bound)
    except OverflowError:
        value = math.inf if bound > 0 else -math.inf
    beyond = value < bound if least else value > bound
    return math.nextafter(value, math.inf if least else -math.inf) if beyond else value


def _unscaled_span(kind: pa.DataType) -> tuple[int, int]:
    """Least and greatest number of a signed integer type, or of a decimal's digits without their point."""
    if pa.types.is_decimal(kind):
        return 1 - 10**kind.precision, 10**kind.precision - 1
    return -(2 ** (kind.bit_width - 1)), 2 ** (kind.bit_width - 1) - 1


@dataclass(frozen=True, slots=True)
class NullShare:
    """Expectation that at most this share of a batch's rows has no value (null or NaN) in a column.

    min_rows: smaller batches are not checked, because one row says little about a share.
    Raises: InvalidDefinition if `most` is not from 0 to 1.
    """

    column: str
    most: float
    min_rows: int = 20

    def __post_init__(self) -> None:
        if not 0 <= self.most <= 1:
            raise InvalidDefinition(f"NullShare({self.column!r}): most is a share of 0 to 1, got {self.most}")

    def describe(self) -> dict[str, Any]:
        """Describe the expectation as JSON."""
        return {"type": "null_share", "column": self.column, "most": self.most, "min_rows": self.min_rows}

    def check(self, where: str, rows: pa.Table) -> None:
        """Check the share of nulls in a batch. Raises: UnexpectedRows with the actual share."""
        if rows.num_rows < self.min_rows:
            return
        share = missing(rows.column(self.column)) / rows.num_rows
        if share > self.most:
            msg = (
                f"{where}: column {self.column!r} is null in {share:.1%} of {rows.num_rows} rows, more than "
                f"{self.most:.1%}; find out what stopped filling it, or raise the view's NullShare"
            )
            raise UnexpectedRows(msg)


@dataclass(frozen=True, slots=True)
class Freshness:
    """Expectation that after each write the view's newest row, new or stored before, is at most `most` old.

    To fill in history, write the newest rows first or along with it.
    Raises: InvalidDefinition if `most` is not positive.
    """

    most: timedelta

    def __post_init__(self) -> None:
        if self.most <= timedelta(0):
            raise InvalidDefinition(f"Freshness: most must be positive, got {self.most}")

    def describe(self) -> dict[str, Any]:
        """Describe the expectation as JSON."""
        return {"type": "freshness", "most_us": self.most // MICROSECOND}

    def check(self, where: str, rows: pa.Table, *, newest: datetime | None, now: datetime) -> None:
        """Check the age of the newest row. newest: time of the newest stored row. Raises: UnexpectedRows if it is too old."""
        given = pc.max(rows.column(EVENT_TIMESTAMP)).as_py()
        times = [time for time in (given, newest) if time is not None]
        if times and now - max(times) > self.most:
            msg = (
                f"{where}: column {EVENT_TIMESTAMP!r} ends at {max(times).isoformat()}, {now - max(times)} ago, more than "
                f"{self.most}; write the newest rows first, or raise the view's Freshness"
            )
            raise UnexpectedRows(msg)


Expectation: TypeAlias = InRange | NullShare | Freshness


def missing(column: pa.ChunkedArray) -> int:
    """Count the values that are null or NaN."""
    if pa.types.is_floating(column.type):
        return int(pc.sum(pc.is_null(column, nan_is_null=True)).as_py() or 0)
    return int(column.null_count)


def refuse_unknown(where: str, expectations: tuple[Expectation, ...], fields: Mapping[str, Field]) -> None:
    """Check that expectations name existing columns, and ranges numeric ones.

    Raises: InvalidDefinition.
    """
    for each in expectations:
        if isinstance(each, Freshness):
            continue
        if each.column not in fields:
            raise InvalidDefinition(f"{where} expects something of {each.column!r}; it has {list(fields)}")
        dtype = fields[each.column].dtype
        if isinstance(each, InRange) and not dtype.is_number:
            raise InvalidDefinition(f"{where}: InRange is for numbers, and {each.column!r} is {dtype}")


def deserialize_expectation(described: Mapping[str, Any]) -> Expectation:
    """Rebuild an expectation from its `describe()`.

    Raises: InvalidDefinition for a type that is not known here.
    """
    given = dict(described)
    kind = given.pop("type")
    if kind == "in_range":
        return InRange(**given)
    if kind == "null_share":
        return NullShare(**given)
    if kind == "freshness":
        return Freshness(timedelta(microseconds=given["most_us"]))
    raise InvalidDefinition(f"an expectation of type {kind!r} is not known here")
