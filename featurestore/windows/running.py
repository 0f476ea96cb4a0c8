"""Counts, sums, means, spreads and extremes of trailing windows, row by row.

A window's count or sum is what has entered less what has left. That is exact: values are split into two fixed-point
halves whose sums cannot round, so what was added and taken away leaves nothing behind.
"""

from functools import cached_property

import numpy as np

from featurestore.windows.windowing import Alignment, Floats, Ints, blocks, is_rising

_TINY = 1e-200  # below this the halves would underflow
_ROUNDING = 8 * np.finfo(np.float64).eps


class Numbers:
    """One column's values and the row where each enters; holds what all windows share.

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
        """What belongs to the events that have a value, from what belongs to all."""
        return each if self.kept is None else each[self.kept]

    def window(self, end: Ints) -> "Window":
        """The window of one length; end: (events,) the row in which each event has left."""
        return Window(self, self.of_kept(end))

    @cached_property
    def entered(self) -> Ints:
        """How many values have entered by each row."""
        return running_count(self.begin, self.size)

    @cached_property
    def centre(self) -> float:
        """A round number in the middle of the values, from which squares are taken."""
        return float(np.round(self.values.mean())) if len(self.values) else 0.0

    @cached_property
    def sums(self) -> "RunningSum":
        """Sums of the values."""
        return RunningSum(self, self.values)

    @cached_property
    def squares(self) -> "RunningSum":
        """Sums of the squared distances from the centre."""
        return RunningSum(self, (self.values - self.centre) ** 2)


def running_count(at: Ints, size: int) -> Ints:
    """(size,) how many stand at each row or before."""
    return np.cumsum(np.bincount(at, minlength=size + 1)[:size])


class RunningSum:
    """Sums of what has entered by each row, in exact halves, from which a window takes what has left."""

    def __init__(self, numbers: Numbers, values: Floats) -> None:
        self._numbers = numbers
        self._halves = fixed_point_halves(values)
        self._totals = [np.concatenate([[0.0], np.cumsum(half)]) for half in self._halves]
        self._entered = [total.take(numbers.entered) for total in self._totals]

    def within(self, window: "Window") -> Floats:
        """What has entered and not left."""
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
    """One column over one window, row by row; all results are (rows,).

    end: (values,) the row in which each has left.
    """

    def __init__(self, numbers: Numbers, end: Ints) -> None:
        self._numbers = numbers
        self.end = end

    @cached_property
    def leaves_in_order(self) -> bool:
        """Whether what entered first leaves first, as it does where events become known in order."""
        return is_rising(self.end)

    @cached_property
    def left(self) -> Ints:
        """How many values have left by each row."""
        return running_count(self.end, self._numbers.size)

    @cached_property
    def count(self) -> Ints:
        """How many values it holds."""
        return self._numbers.entered - self.left

    @cached_property
    def _divisor(self) -> Floats:
        return np.maximum(self.count, 1).astype(np.float64)

    @cached_property
    def _total(self) -> Floats:
        return self._numbers.sums.within(self)

    def sum(self) -> Floats:
        """Sum of the values, 0 where there is none."""
        return self._total

    def mean(self) -> Floats:
        """Mean; meaningless where there is no value."""
        return self._total / self._divisor

    def std(self) -> Floats:
        """Standard deviation of a sample; meaningless below two values."""
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
        """Least value; infinite where there is none."""
        return self._least(self._numbers.values)

    def maximum(self) -> Floats:
        """Greatest value; infinite where there is none."""
        greatest = self._least(-self._numbers.values)
        return np.negative(greatest, out=greatest)

    def _least(self, values: Floats) -> Floats:
        return self._least_in_order(values) if self.leaves_in_order else self._least_anyhow(values)

    def _least_in_order(self, values: Floats) -> Floats:
        """Where values leave in order, a window is a run of them: two overlapping blocks of a power of two."""
        first, last = self.left, self._numbers.entered
        level = _level(last - first)
        best = np.full(self._numbers.size, np.inf)
        block = values  # [values]: the least of 2^k values from each
        for k in range(int(level.max(initial=-1)) + 1):
            at = np.flatnonzero(level == k)
            best[at] = np.minimum(block[first[at]], block[last[at] - (1 << k)])
            block = np.minimum(block[: -(1 << k)], block[1 << k :])
        return best

    def _least_anyhow(self, values: Floats) -> Floats:
        """A value covers a run of rows: two overlapping blocks of a power of two, pushed down level by level."""
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
    """The greatest k with 2^k <= length, negative where that is none: a float64's exponent."""
    level: np.ndarray[tuple[int], np.dtype[np.int16]]
    level = ((length.astype(np.float64).view(np.int64) >> 52) - 1023).astype(np.int16)
    return level
