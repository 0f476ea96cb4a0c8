"""Trailing windows over events, computed along the rows of the result.

An event is in the window of a run of consecutive rows of its key: from the first row at which it is known to the last
before it is too old. Where the run begins does not depend on the window's length, so begins, and the sums of all that
has entered by each row, are found once and shared by all windows. A window's count or sum is what has entered less what
has left. That is exact: values are split into two fixed-point halves whose sums cannot round, so what was added and
taken away leaves nothing behind. Minima cover every run with two overlapping blocks of a power of two rows and push
those down, level by level.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.encoding import microseconds
from featurestore.errors import InvalidRows
from featurestore.rows import refuse_nulls, time_column

Floats = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]

WHERE = "windowed aggregation"

_COMPOSITE_LIMIT = 2**62
_TINY = 1e-200  # below this the halves would underflow
_ROUNDING = 8 * np.finfo(np.float64).eps


@dataclass(frozen=True, slots=True)
class Events:
    """Known events ordered by key and the time they enter a window.

    keys: table of the distinct keys, in order; key: (events,) row in it; happened, enters: (events,) microseconds, the
    latter the later of event time and known time; source, order: the known events and where each stands in it.
    """

    keys: pa.Table
    key: Ints
    happened: Ints
    enters: Ints
    source: pa.Table
    order: Ints

    def values(self, column: str) -> Floats:
        """A column's values in order, NaN where there is none.

        Raises: InvalidRows if it is missing or has infinite values.
        """
        if column not in self.source.column_names:
            raise InvalidRows(f"{WHERE}: column {column!r} is missing; got {self.source.column_names}")
        values: Floats = self.source.column(column).cast(pa.float64()).fill_null(float("nan")).to_numpy()
        if np.isinf(values).any():
            raise InvalidRows(f"{WHERE}: column {column!r} has infinite values; make them null")
        return values[self.order]

    def rows(self, lengths: Sequence[int], every: int | None) -> "Rows":
        """The (key, time) pairs that get a row: each entry, or each grid boundary next after an entry or an exit.

        lengths: of all windows, every: of the grid, in microseconds.
        """
        if every is None:
            return place_rows(self.key, self.enters)
        leaves = [self.happened + length for length in lengths]
        real = [leave > self.enters for leave in leaves]
        times = np.concatenate([self.enters, *(x[r] for x, r in zip(leaves, real, strict=True))])
        key = np.concatenate([self.key, *(self.key[r] for r in real)])
        return place_rows(key, -(-times // every) * every)


def order_events(events: pa.Table, *, keys: Sequence[str], event_time: str, known_at: str) -> Events:
    """Check an event table and order it; events that are not known yet (null) are left out.

    Raises: InvalidRows for a missing column, a null key or event time, or a naive time.
    """
    for name in (*keys, known_at):
        if name not in events.column_names:
            raise InvalidRows(f"{WHERE}: column {name!r} is missing; got {events.column_names}")
    for name in keys:
        refuse_nulls(WHERE, events, name)
    unknown = events.column(known_at).null_count
    known = events.filter(pc.is_valid(events.column(known_at))) if unknown else events
    happened = microseconds(time_column(WHERE, known, event_time))
    enters = np.maximum(happened, microseconds(time_column(WHERE, known, known_at)))
    distinct, codes = _encode_keys(known, keys)
    order = _order(codes, enters)
    return Events(distinct, codes[order], happened[order], enters[order], known, order)


def _encode_keys(events: pa.Table, keys: Sequence[str]) -> tuple[pa.Table, Ints]:
    """The distinct keys in order, and each event's row among them."""
    if not keys:
        return pa.table({}), np.zeros(events.num_rows, dtype=np.int64)
    distinct = events.select(list(keys)).group_by(list(keys)).aggregate([])
    distinct = distinct.sort_by([(name, "ascending") for name in keys]).combine_chunks()
    codes = np.zeros(events.num_rows, dtype=np.int64)
    known = np.zeros(distinct.num_rows, dtype=np.int64)
    for name in keys:
        values = pc.unique(distinct.column(name).combine_chunks())
        codes = codes * len(values) + pc.index_in(events.column(name), value_set=values).to_numpy()
        known = known * len(values) + pc.index_in(distinct.column(name), value_set=values).to_numpy()
    order = np.argsort(known)
    return distinct, order[np.searchsorted(known[order], codes)]


def _order(key: Ints, at: Ints) -> Ints:
    """Positions by key, then time; by one integer where both fit in it."""
    if not len(at):
        return np.zeros(0, dtype=np.int64)
    first = int(at.min())
    span = int(at.max()) - first + 1
    fits = span * (int(key.max()) + 1) < _COMPOSITE_LIMIT
    order: Ints = np.argsort(key * span + (at - first)) if fits else np.lexsort((at, key))
    return order


@dataclass(frozen=True, slots=True)
class Rows:
    """Result rows ordered by key and time.

    key, at: (rows,). ticks: the distinct times if a key and an offset in time would not fit one integer, else just the
    first. composite: (rows,) one integer that sorts like (key, time).
    """

    key: Ints
    at: Ints
    ticks: Ints
    span: int
    composite: Ints

    def position(self, key: Ints, at: Ints) -> Ints:
        """First row of each key at or after a time; the row after the key's last if there is none."""
        if len(self.ticks) > 1:
            offset = np.searchsorted(self.ticks, at, side="left")
        else:
            offset = np.clip(at - self.ticks[:1].sum(), 0, self.span - 1)
        return np.searchsorted(self.composite, key * self.span + offset, side="left")


def place_rows(key: Ints, at: Ints) -> Rows:
    """One row for each distinct (key, time)."""
    if not len(at):
        return Rows(key, at, at, 1, at)
    first, last = int(at.min()), int(at.max())
    if (last - first + 2) * (int(key.max()) + 1) < _COMPOSITE_LIMIT:
        ticks, span = np.array([first]), last - first + 2
        composite = _distinct(key * span + (at - first))
        return Rows(composite // span, composite % span + first, ticks, span, composite)
    ticks = _distinct(at)
    span = len(ticks) + 1
    composite = _distinct(key * span + np.searchsorted(ticks, at))
    return Rows(composite // span, ticks[composite % span], ticks, span, composite)


def _distinct(values: Ints) -> Ints:
    """The distinct values in order; faster than numpy's hashing `unique` on nearly sorted input."""
    rising = bool((values[1:] >= values[:-1]).all())
    ordered: Ints = values if rising else np.sort(values)
    first: Ints = ordered[np.append(True, ordered[1:] != ordered[:-1])]
    return first


class Column:
    """One column's values and where each enters; holds what all windows share.

    begin: (events,) first row of each event; values: (events,) or None to count events; size: number of rows.
    """

    def __init__(self, begin: Ints, values: Floats | None, size: int) -> None:
        self.kept = None if values is None else ~np.isnan(values)
        if self.kept is not None and self.kept.all():
            self.kept = None
        self.size = size
        self.begin = begin if self.kept is None else begin[self.kept]
        given = np.zeros(0) if values is None else values
        self.values = given if self.kept is None else given[self.kept]

    def window(self, end: Ints) -> "Window":
        """The window of one length; end: (events,) the row at which each event has left."""
        return Window(self, end if self.kept is None else end[self.kept])

    @cached_property
    def entered(self) -> Ints:
        """How many values have entered by each row."""
        return _running(self.begin, None, self.size).astype(np.int64)

    @cached_property
    def centre(self) -> float:
        """A round number in the middle of the values, from which squares are taken."""
        return float(np.round(self.values.mean())) if len(self.values) else 0.0

    @cached_property
    def sums(self) -> "RunningSum":
        """Sums of the values."""
        return RunningSum(self.begin, self.values, self.size)

    @cached_property
    def squares(self) -> "RunningSum":
        """Sums of the squared distances from the centre."""
        return RunningSum(self.begin, (self.values - self.centre) ** 2, self.size)


class RunningSum:
    """Sums of what has entered by each row, in exact halves, from which a window takes what has left."""

    def __init__(self, begin: Ints, values: Floats, size: int) -> None:
        self._size = size
        self._halves = [(half, _running(begin, half, size)) for half in fixed_point_halves(values)]

    def within(self, end: Ints) -> Floats:
        """What has entered and not left."""
        total = np.zeros(self._size)
        for half, entered in self._halves:
            total += entered - _running(end, half, self._size)
        return total


def _running(at: Ints, weights: Floats | None, size: int) -> Floats:
    """Running total along the rows of what stands at each."""
    return np.cumsum(np.bincount(at, weights, size + 1)[:size])


def fixed_point_halves(values: Floats) -> list[Floats]:
    """Two arrays that add up to the values, so that any sum within one of them is exact in float64.

    Each holds multiples of one power of two that are few enough bits wide.
    """
    largest = float(np.abs(values).max(initial=0.0))
    if largest < _TINY:
        return [values]
    exponent = int(np.frexp(largest)[1])
    bits = 52 - int(np.ceil(np.log2(len(values) + 1)))
    grid = np.ldexp(1.0, exponent - bits)
    high = np.round(values / grid) * grid
    rest = values - high
    if not rest.any():
        return [high]
    fine = np.ldexp(grid, -bits)
    return [high, np.round(rest / fine) * fine]


class Window:
    """One column over one window, row by row; all results are (rows,)."""

    def __init__(self, column: Column, end: Ints) -> None:
        self._column = column
        self._end = end

    @cached_property
    def count(self) -> Ints:
        """How many values it holds."""
        return self._column.entered - _running(self._end, None, self._column.size).astype(np.int64)

    @cached_property
    def _total(self) -> Floats:
        return self._column.sums.within(self._end)

    def sum(self) -> Floats:
        """Sum of the values, 0 where there is none."""
        return self._total

    def mean(self) -> Floats:
        """Mean; meaningless where there is no value."""
        return self._total / np.maximum(self.count, 1)

    def std(self) -> Floats:
        """Standard deviation of a sample; meaningless below two values."""
        n = np.maximum(self.count, 1)
        squares = self._column.squares.within(self._end)
        off_centre = self._total - self._column.centre * n
        spread = squares - off_centre * off_centre / n
        rounding = _ROUNDING * (squares + np.abs(off_centre * self._total) / n)
        spread[spread <= rounding] = 0.0
        return np.sqrt(spread / np.maximum(self.count - 1, 1))

    def minimum(self) -> Floats:
        """Least value; infinite where there is none."""
        return self._least(self._column.values)

    def maximum(self) -> Floats:
        """Greatest value; infinite where there is none."""
        return -self._least(-self._column.values)

    def _least(self, values: Floats) -> Floats:
        kept = self._end > self._column.begin
        begin, values = self._column.begin[kept], values[kept]
        length = self._end[kept] - begin
        level = np.frexp(length.astype(np.float64))[1] - 1  # 2^level <= length
        best = np.full(self._column.size, np.inf)
        for k in range(int(level.max(initial=-1)), -1, -1):
            at = np.flatnonzero(level == k)
            np.minimum.at(best, begin[at], values[at])
            np.minimum.at(best, begin[at] + length[at] - (1 << k), values[at])
            if k:
                half = 1 << (k - 1)
                np.minimum(best[half:], best[:-half].copy(), out=best[half:])
        return best
