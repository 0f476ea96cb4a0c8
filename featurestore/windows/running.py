"""Counts, sums, means, deviations and extremes of trailing windows, row by row.

A window's count or sum is that of values entered less that of values left. The difference is exact: values are split into
two fixed-point halves whose sums cannot round, so a value that was added and subtracted leaves no residue.
"""

from functools import cached_property

import numpy as np

from featurestore.windows.windowing import Alignment, Floats, Ints, blocks, is_rising

_TINY = 1e-200  # below this the halves would underflow
_ROUNDING = 8 * np.finfo(np.float64).eps


class Numbers:
    """One column's values and the row where each enters, shared by all windows.

    column: of the events, without its nulls; None to count events.
    """

    def __init__(self, alignment: Alignment, column: str | None) -> None:
        self.alignment = alignment
        self.size = len(alignment.rows.at)
        given = np.zeros(0) if column is None else alignment.events.numbers[column]
        kept = None if column is None else ~np.isnan(given)
        self.kept = None if kept is None or kept.all() else kept
        self.values = given if self.kept is None else given[self.kept]
        self.begin = self.of_kept(alignment.begin)

    def of_kept(self, each: Ints) -> Ints:
        """Select from an array of all events those that have a value."""
        return each if self.kept is None else each[self.kept]

    def window(self, end: Ints) -> "Window":
        """Build the window of one length; end: (events,) the row in which each event has left."""
        return Window(self, self.of_kept(end))

    @cached_property
    def entered(self) -> Ints:
        """Number of values that have entered by each row."""
        return running_count(self.begin, self.size)

    @cached_property
    def centre(self) -> float:
        """Rounded mean of the values, subtracted before squaring."""
        return float(np.round(self.values.mean())) if len(self.values) else 0.0

    @cached_property
    def sums(self) -> "RunningSum":
        """Running sums of the values."""
        return RunningSum(self, self.values)

    @cached_property
    def squares(self) -> "RunningSum":
        """Running sums of squared distances from the centre."""
        return RunningSum(self, (self.values - self.centre) ** 2)


def running_count(at: Ints, size: int) -> Ints:
    """Count, (size,), the positions at or before each row."""
    return np.cumsum(np.bincount(at, minlength=size + 1)[:size])


class RunningSum:
    """Sums of values entered by each row, in exact halves, from which a window subtracts values that left."""

    def __init__(self, numbers: Numbers, values: Floats) -> None:
        self._numbers = numbers
        self._halves = fixed_point_halves(values)
        self._totals = [np.concatenate([[0.0], np.cumsum(half)]) for half in self._halves]
        self._entered = [total.take(numbers.entered) for total in self._totals]

    def within(self, window: "Window") -> Floats:
        """Sum the values that have entered and not left."""
        if not window.leaves_in_order:
            pairs = zip(self._entered, self._halves, strict=True)
            return sum((e - _running_sum(window.end, half, len(e)) for e, half in pairs), np.zeros(1))
        within = np.zeros(self._numbers.size)
        for part in blocks(len(within)):
            left = window.left[part]
            for total, entered in zip(self._totals, self._entered, strict=True):
                within[part] += entered[part] - total.take(left)
        return within


def _running_sum(at: Ints, weights: Floats, size: int) -> Floats:
    return np.cumsum(np.bincount(at, weights, size + 1)[:size])


def fixed_point_halves(values: Floats) -> list[Floats]:
    """Split values into two arrays that add up to them, within each of which any sum is exact in float64.

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
    """Aggregates of one column over one window; all results are (rows,).

    end: (values,) the row in which each has left.
    """

    def __init__(self, numbers: Numbers, end: Ints) -> None:
        self._numbers = numbers
        self.end = end

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
    def _total(self) -> Floats:
        return self._numbers.sums.within(self)

    def sum(self) -> Floats:
        """Sum of the values, 0 in an empty window."""
        return self._total

    def mean(self) -> Floats:
        """Mean of the values, undefined in an empty window."""
        return self._total / self._divisor

    def std(self) -> Floats:
        """Standard deviation of a sample, undefined below two values."""
        squares, centre = self._numbers.squares.within(self), self._numbers.centre
        for part in blocks(len(squares)):
            n, total = self._divisor[part], self._total[part]
            off_centre = total - centre * n
            spread = squares[part] - off_centre * off_centre / n
            rounding = _ROUNDING * (squares[part] + np.abs(off_centre * total) / n)
            spread[spread <= rounding] = 0.0
            squares[part] = np.sqrt(spread / np.maximum(n - 1, 1))
        return squares

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


def _level(length: Ints) -> np.ndarray[tuple[int], np.dtype[np.int16]]:
    """Greatest k with 2^k <= length, from the float64 exponent; negative for length 0."""
    level: np.ndarray[tuple[int], np.dtype[np.int16]]
    level = ((length.astype(np.float64).view(np.int64) >> 52) - 1023).astype(np.int16)
    return level
