"""Counts, sums, means, deviations, extremes and k-th latest values of trailing windows, row by row.

A window's count or sum is that of values entered less that of values left. The difference is exact: values are split
into fixed-point parts, mostly one or two, whose sums cannot round, so a value that was added and subtracted leaves no
residue. The parts' sums are added and rounded once. So the bits of a result depend on the values in its window and on
nothing else: not on what was there before, on other keys, or on how many events are computed at a time.

Values that no exact sum holds stand apart: huge ones are summed scaled down, beside the others, and infinite ones are
only counted. A window without them does not notice that there are any.

Values that leave a window are always older than those that stay, so the k latest in the window are the k latest of
all that have entered, unless too old: a running maximum, and for k = 2 the running maximum of the values it
displaces. Keys with values that were replaced, which leave before they are old, are gone through row by row.
"""

from bisect import insort
from collections.abc import Callable
from functools import cached_property

import numpy as np

from toque.featurestore.windows.windowing import NEVER, Alignment, Floats, Ints, blocks, is_rising

Mask = np.ndarray[tuple[int], np.dtype[np.bool_]]

_HUGE = 2.0**400  # beyond this, sums of squares of a piece's values could overflow
_SCALE = 2.0**-700  # by which huge values are summed, so that they are not huge
_LEAST_GRID = np.ldexp(1.0, -1074)
_ROUNDING = 2.0**-96  # of the squares, below which a spread is that of equal values
_ADDED_AT_ONCE = 2  # so many rounded sums are rounded once
_SPLITTER = 2.0**27 + 1


class Numbers:
    """One column's values and the row where each enters, shared by all windows.

    values: (events,) of the column, NaN where an event has none; None to count events. rests: (events,) what rounding took from
    each, or None if nothing.
    """

    def __init__(self, alignment: Alignment, values: Floats | None, rests: Floats | None = None) -> None:
        self.alignment = alignment
        self.size = len(alignment.rows.at)
        kept = None if values is None else ~np.isnan(values)
        self.kept = None if kept is None or kept.all() else kept
        self._every = np.zeros(0) if values is None else values
        self.values = self._every if self.kept is None else self._every[self.kept]
        self._rests = rests if rests is None or self.kept is None else rests[self.kept]
        self.begin = self.of_kept(alignment.begin)

    @classmethod
    def of_column(cls, alignment: Alignment, column: str | None) -> "Numbers":
        """Take a column of the events without its nulls; None to count events."""
        events = alignment.events
        return (
            cls(alignment, None)
            if column is None
            else cls(alignment, events.numbers[column], events.rests.get(column))
        )

    def of_kept(self, each: Ints) -> Ints:
        """Select from an array of all events those that have a value."""
        return each if self.kept is None else each[self.kept]

    def window(self, end: Ints) -> "Window":
        """Build the window of one length; end: (events,) the row in which each event has left."""
        return Window(self, self.of_kept(end), [part.window(end) for part in self.apart])

    @cached_property
    def apart(self) -> "tuple[Numbers, ...]":
        """Values that no exact sum holds: huge ones scaled down, those that are +inf, and those that are -inf; mostly nothing."""
        sizes = np.abs(self.values)
        if float(sizes.max(initial=0.0)) <= _HUGE:
            return ()
        every, infinite = self._every, np.isinf(self._every)
        huge = ~infinite & (np.abs(every) > _HUGE)
        columns = (
            np.where(huge, every * _SCALE, np.nan),
            np.where(every == np.inf, 0.0, np.nan),
            np.where(every == -np.inf, 0.0, np.nan),
        )
        return tuple(Numbers(self.alignment, column) for column in columns)

    @cached_property
    def entered(self) -> Ints:
        """Number of values that have entered by each row."""
        return running_count(self.begin, self.size)

    @cached_property
    def _ordinary(self) -> Floats:
        """Values, with zeros in place of those that stand apart."""
        return np.where(np.abs(self.values) > _HUGE, 0.0, self.values) if self.apart else self.values

    @cached_property
    def sums(self) -> "RunningSum":
        """Running sums of the values."""
        parts = fixed_point_parts(self._ordinary)
        return RunningSum(self, parts if self._rests is None else [*parts, *fixed_point_parts(self._rests)])

    @cached_property
    def squares(self) -> "RunningSum":
        """Running sums of the squares, exactly: of what a float holds of each, and of the rest."""
        terms = [_product(self._ordinary, self._ordinary)]
        if self._rests is not None:
            terms += [_product(2.0 * self._ordinary, self._rests), _product(self._rests, self._rests)]
        (square, _), *_ = terms
        others = [part for term in terms for part in term if part is not square and part.any()]
        parts = [part for term in (square, *others) for part in fixed_point_parts(term)]
        return RunningSum(self, parts)


def running_count(at: Ints, size: int) -> Ints:
    """Count, (size,), the positions at or before each row."""
    return np.cumsum(np.bincount(at, minlength=size + 1)[:size])


class RunningSum:
    """Sums of values entered by each row, in exact parts, from which a window subtracts values that left."""

    def __init__(self, numbers: Numbers, parts: list[Floats]) -> None:
        self._numbers = numbers
        self._parts = parts
        self._totals = [np.concatenate([[0.0], np.cumsum(part)]) for part in parts]
        self._entered = [total.take(numbers.entered) for total in self._totals]

    def within(self, window: "Window") -> Floats:
        """Sum the values that have entered and not left, rounded once."""
        return rounded_sum(self.parts_within(window))

    def parts_within(self, window: "Window") -> list[Floats]:
        """Sum each part of the values that have entered and not left, exactly."""
        if not window.leaves_in_order:
            pairs = zip(self._entered, self._parts, strict=True)
            return [entered - _running_sum(window.end, part, len(entered)) for entered, part in pairs]
        found = []
        for total, entered in zip(self._totals, self._entered, strict=True):
            within = np.empty(self._numbers.size)
            for part in blocks(len(within)):
                within[part] = entered[part] - total.take(window.left[part])
            found.append(within)
        return found


def _running_sum(at: Ints, weights: Floats, size: int) -> Floats:
    return np.cumsum(np.bincount(at, weights, size + 1)[:size])


def fixed_point_parts(values: Floats) -> list[Floats]:
    """Split values, none of them huge, into arrays that add up to them exactly, within each of which any sum is exact in float64.

    Each holds multiples of one power of two that are few enough bits wide.
    """
    bits = 52 - int(np.ceil(np.log2(len(values) + 1)))
    parts: list[Floats] = []
    rest = values
    while True:
        largest = float(np.abs(rest).max(initial=0.0))
        if largest == 0.0:
            return parts or [rest]
        grid = max(np.ldexp(1.0, int(np.frexp(largest)[1]) - bits), _LEAST_GRID)
        parts.append(np.round(rest / grid) * grid)
        rest = rest - parts[-1]


def rounded_sum(parts: list[Floats]) -> Floats:
    """Add some arrays, each element rounded once, to the nearest.

    Source: Shewchuk, Adaptive precision floating-point arithmetic, 1997; the last step is that of Python's `math.fsum`.
    """
    if len(parts) <= _ADDED_AT_ONCE:
        return sum(parts[1:], start=parts[0] + 0.0)
    expansion: list[Floats] = []  # of each element, from its least to its greatest, some of them zero
    for part in parts:
        total, grown = part, []
        for each in expansion:
            total, error = _two_sum(total, each)
            grown.append(error)
        expansion = [*grown, total]
    high, low, tail = expansion[-1], np.zeros_like(parts[0]), np.zeros_like(parts[0])
    for each in reversed(expansion[:-1]):
        tail = np.where((low != 0) & (tail == 0), each, tail)
        total, error = _two_sum(high, each)
        high, low = np.where(low == 0, total, high), np.where(low == 0, error, low)
    doubled = 2.0 * low  # exactly half a unit, and the rest goes the same way: not to even
    moved = high + doubled
    return np.where((low * tail > 0) & (moved - high == doubled), moved, high)


def _two_sum(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """Add two arrays; returns the rounded sums and what rounding took."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _product(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """Multiply two arrays; returns the rounded products and what rounding took. Source: Dekker, 1971."""
    product = a * b
    high_a, high_b = (_SPLITTER * each - (_SPLITTER * each - each) for each in (a, b))
    low_a, low_b = a - high_a, b - high_b
    return product, ((high_a * high_b - product) + high_a * low_b + low_a * high_b) + low_a * low_b


class Window:
    """Aggregates of one column over one window; all results are (rows,).

    end: (values,) the row in which each has left. apart: windows of the huge and the infinite values, if there are any.
    """

    def __init__(self, numbers: Numbers, end: Ints, apart: "list[Window]") -> None:
        self._numbers = numbers
        self.end = end
        self._apart = apart

    @cached_property
    def leaves_in_order(self) -> bool:
        """Whether values leave in the order they entered, as they do where events become known in order."""
        return is_rising(self.end)

    @cached_property
    def left(self) -> Ints:
        """Number of values that have left by each row."""
        return running_count(self.end, self._numbers.size)

    @cached_property
    def count(self) -> Ints:
        """Number of values in the window."""
        return self._numbers.entered - self.left

    @cached_property
    def _divisor(self) -> Floats:
        return np.maximum(self.count, 1).astype(np.float64)

    @cached_property
    def exact_sums(self) -> list[Floats]:
        """Sums of the values in parts, without those that stand apart."""
        return self._numbers.sums.parts_within(self)

    @cached_property
    def exact_squares(self) -> list[Floats]:
        """Sums of the squares, likewise."""
        return self._numbers.squares.parts_within(self)

    @cached_property
    def _total(self) -> Floats:
        return rounded_sum(self.exact_sums)

    def sum(self) -> Floats:
        """Sum of the values, 0 in an empty window."""
        return self._with_apart(self._total.copy(), lambda total, _n: total) if self._apart else self._total

    def mean(self) -> Floats:
        """Mean of the values, undefined in an empty window."""
        means = self._total / self._divisor
        return self._with_apart(means, lambda total, n: total / n) if self._apart else means

    def std(self) -> Floats:
        """Standard deviation of a sample, undefined below two values."""
        n = self._divisor
        squares = self.exact_squares
        result = np.empty(len(n))
        for part in blocks(len(n)):
            result[part] = _std(
                n[part], [each[part] for each in self.exact_sums], [each[part] for each in squares]
            )
        return self._std_with_apart(result) if self._apart else result

    def _with_apart(self, result: Floats, of_total: Callable[[Floats, Floats], Floats]) -> Floats:
        """Set the result, a function of total and number of values, in windows that have huge or infinite values."""
        huge, above, below = self._apart
        rows = np.flatnonzero(huge.count)
        of_huge = [part[rows] for part in huge.exact_sums]
        scaled = rounded_sum([*(part[rows] * _SCALE for part in self.exact_sums), *of_huge])
        n, left = self._divisor[rows], rounded_sum(of_huge)
        with np.errstate(over="ignore"):  # a sum that float64 does not hold is infinite
            whole = of_total(scaled, n) / _SCALE
        # Huge values that cancel leave the others, which may be too small to be scaled.
        result[rows] = np.where(left == 0.0, of_total(self._total[rows], n), whole)
        positive, negative = above.count > 0, below.count > 0
        result[positive], result[negative], result[positive & negative] = np.inf, -np.inf, np.nan
        return result

    def _std_with_apart(self, result: Floats) -> Floats:
        """Set the deviation of windows that have huge values, and of those with infinite ones, which have no deviation."""
        huge, above, below = self._apart
        rows = np.flatnonzero(huge.count)
        sums = [*(part[rows] * _SCALE for part in self.exact_sums), *(part[rows] for part in huge.exact_sums)]
        of_huge = [part[rows] for part in huge.exact_squares]
        scaled = [*(part[rows] * _SCALE * _SCALE for part in self.exact_squares), *of_huge]
        with np.errstate(over="ignore"):  # as above
            result[rows] = _std(self._divisor[rows], sums, scaled) / _SCALE
        result[(above.count > 0) | (below.count > 0)] = np.nan
        return result

    def minimum(self) -> Floats:
        """Least value, infinite in an empty window."""
        return self._least(self._numbers.values)

    def maximum(self) -> Floats:
        """Greatest value, infinite in an empty window."""
        greatest = self._least(-self._numbers.values)
        return np.negative(greatest, out=greatest)

    def _least(self, values: Floats) -> Floats:
        return self._least_in_order(values) if self.leaves_in_order else self._least_out_of_order(values)

    def _least_in_order(self, values: Floats) -> Floats:
        """Least value where windows are runs of values: of two overlapping blocks of a power of two."""
        first, last = self.left, self._numbers.entered
        level = _level(last - first)
        best = np.full(self._numbers.size, np.inf)
        block = values  # [values]: the least of 2^k values from each
        for k in range(int(level.max(initial=-1)) + 1):
            at = np.flatnonzero(level == k)
            best[at] = np.minimum(block[first[at]], block[last[at] - (1 << k)])
            block = np.minimum(block[: -(1 << k)], block[1 << k :])
        return best

    def _least_out_of_order(self, values: Floats) -> Floats:
        """Least value in general: each value covers a run of rows as two blocks of a power of two, pushed down by level."""
        begin, length = self._numbers.begin, self.end - self._numbers.begin
        level = _level(length)
        best = np.full(self._numbers.size, np.inf)
        for k in range(int(level.max(initial=-1)), -1, -1):
            at = np.flatnonzero(level == k)
            first, given = begin[at], values[at]
            np.minimum.at(best, first, given)
            np.minimum.at(best, first + length[at] - (1 << k), given)
            if k:
                half = 1 << (k - 1)
                np.minimum(best[half:], best[:-half].copy(), out=best[half:])
        return best


def _std(n: Floats, sums: list[Floats], squares: list[Floats]) -> Floats:
    """Standard deviations of `n` values from their exact sums and sums of squares: n Σx² - (Σx)², to twice a float's bits."""
    total, rest = _doubled(sums)
    square, rest_of_square = _doubled(squares)
    scaled, error = _product(n, square)
    of_total, error_of_total = _product(total, total)
    spread, lost = _two_sum(scaled, -of_total)
    spread = spread + (lost + ((error - error_of_total) + (n * rest_of_square - 2.0 * total * rest)))
    spread[spread <= _ROUNDING * scaled] = 0.0
    return np.sqrt(spread / (n * np.maximum(n - 1, 1)))


def _doubled(parts: list[Floats]) -> tuple[Floats, Floats]:
    """Add some arrays to twice a float's bits: the rounded sum, and the rounded rest."""
    total = rounded_sum(parts)
    return total, rounded_sum([*parts, -total])


def _level(length: Ints) -> np.ndarray[tuple[int], np.dtype[np.int16]]:
    """Greatest k with 2^k <= length, from the float64 exponent; negative for length 0."""
    level: np.ndarray[tuple[int], np.dtype[np.int16]]
    level = ((length.astype(np.float64).view(np.int64) >> 52) - 1023).astype(np.int16)
    return level


class Latest:
    """Values of one column ordered by event time.

    At one event time, the value that became known later comes later, then the greater one.
    """

    def __init__(self, numbers: Numbers) -> None:
        self._numbers = numbers
        events = numbers.alignment.events
        self._key, self._event_times = numbers.of_kept(events.key), numbers.of_kept(events.event_times)
        self._order = _by_time(
            self._key, self._event_times, numbers.of_kept(events.entry_times), numbers.values
        )
        rank = np.empty_like(self._order)
        rank[self._order] = np.arange(len(rank))
        self._rest: Ints = rank
        self._kth: list[Ints] = []
        self._replaced = None if events.replaced is None else numbers.of_kept(events.replaced)

    def value(self, k: int, length: int) -> tuple[Floats, Mask]:
        """Find the k-th latest value within `length` microseconds, and a mask where it is missing.

        k: from 1.
        """
        rows, entered = self._numbers.alignment.rows, self._numbers.entered
        if not len(self._order):
            return np.zeros(len(rows.at)), np.ones(len(rows.at), dtype=bool)
        found = self._ranked(k).take(np.maximum(entered - 1, 0))
        event = self._order.take(np.maximum(found, 0))
        missing = (entered == 0) | (found < 0) | (self._key.take(event) != rows.key)
        missing |= self._event_times.take(event) + length <= rows.at
        values = self._numbers.values.take(event)
        if self._replaced is not None:
            for key in np.unique(self._key[self._replaced < NEVER]):
                self._go_through(int(key), k, length, values, missing)
        return values, missing

    def _go_through(self, key: int, k: int, length: int, values: Floats, missing: Mask) -> None:
        """Set the k-th latest value in each row of a key some of whose values were replaced."""
        numbers, rows = self._numbers, self._numbers.alignment.rows
        first, last = np.searchsorted(self._key, [key, key + 1])
        entry = numbers.of_kept(numbers.alignment.events.entry_times)[first:last].tolist()
        event_times, given = self._event_times[first:last].tolist(), numbers.values[first:last].tolist()
        begin = numbers.begin[first:last].tolist()
        replaced = self._of_replaced(first, last)
        gone = rows.position(np.full(last - first, key), replaced).tolist()
        changes: dict[int, list[tuple[bool, tuple[int, int, float]]]] = {}
        for at, value in enumerate(zip(event_times, entry, given, strict=True)):
            if begin[at] < gone[at]:
                changes.setdefault(begin[at], []).append((True, value))
                changes.setdefault(gone[at], []).append((False, value))
        standing: list[tuple[int, int, float]] = []
        for row in range(*np.searchsorted(rows.key, [key, key + 1]).tolist()):
            for comes, value in changes.get(row, ()):
                if comes:
                    insort(standing, value)
                else:
                    standing.remove(value)
            missing[row] = len(standing) < k or standing[-k][0] + length <= rows.at[row]
            values[row] = 0.0 if missing[row] else standing[-k][2]

    def _of_replaced(self, first: int, last: int) -> Ints:
        if self._replaced is None:
            return np.full(last - first, NEVER)
        return self._replaced[first:last]

    def _ranked(self, k: int) -> Ints:
        """Rank, (values,), of the k-th latest of all values that have entered so far, or -1; ranks ascend by key."""
        while len(self._kth) < k:
            best = np.maximum.accumulate(self._rest)
            before = np.concatenate([[-1], best[:-1]])
            self._rest = np.minimum(before, self._rest)
            self._kth.append(best)
        return self._kth[k - 1]


def _by_time(key: Ints, event_times: Ints, entry_times: Ints, values: Floats) -> Ints:
    """Sort positions by key, event time, known time and value; the events are in order of key and known time."""
    same_key = key[1:] == key[:-1]
    if bool((event_times[1:] > event_times[:-1])[same_key].all()):
        return np.arange(len(key))
    return np.lexsort((values, entry_times, event_times, key))
