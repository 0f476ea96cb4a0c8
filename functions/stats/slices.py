"""Search for slices with the worst loss: all of one column and of two, with p-values corrected for the search.

Numbers are cut at their quantiles, words taken as they are, what is missing is a slice of its own. A slice of two columns must be
worse than the rest of either column's slice too, so that it adds to what they say. Rows of one unit (a user, a day) are no
independent witnesses: the difference between a slice and the rest is tested on the sums of units.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from toque.functions.stats.moments import Floats, as_floats
from toque.functions.stats.multiplicity import holm

__all__ = ["Slice", "SliceReport", "slices_above", "worst_slices"]

Ints = npt.NDArray[np.int64]

_WORDS = 30  # categories of a column that are slices of their own; rarer ones share one


@dataclass(frozen=True, slots=True)
class Slice:
    """Slice of rows with a higher loss than the rest.

    where: a condition on each of its columns. mean, rest: loss of its rows, and of all others or the level it is held
    against. p: one-sided, of the slice alone; corrected: of finding any such slice by chance. error: standard error of the
    mean of a slice that is held against a level; None where it is held against the rest.
    """

    where: tuple[str, ...]
    rows: int
    units: int
    mean: float
    rest: float
    p: float
    corrected: float
    error: float | None = None

    @property
    def excess(self) -> float:
        """Excess loss of the slice over the rest, summed over its rows."""
        return self.rows * (self.mean - self.rest)

    @property
    def name(self) -> str:
        """Name of the slice, made of its conditions."""
        return " and ".join(self.where)

    @property
    def text(self) -> str:
        """Describe the slice in a sentence."""
        return (
            f"{self.name}: loss {self.mean:.4f} on {self.rows} rows, {self.rest:.4f} elsewhere "
            f"(corrected p = {self.corrected:.2g})"
        )

    def interval(self, alpha: float) -> tuple[float, float]:
        """Interval of the mean of a slice that is held against a level; alpha: chance that each end misses.

        Its lower end is above the level exactly if p is below alpha.
        Raises: ValueError if the slice is held against the rest, or alpha is not in (0, 0.5).
        """
        if self.error is None or not 0 < alpha < 0.5:  # noqa: PLR2004 - an end beyond the mean is none
            raise ValueError(f"{self.name}: need a slice of slices_above and 0 < alpha < 0.5, got {alpha}")
        width = float(special.stdtrit(max(self.units, 2) - 1, 1 - alpha)) * self.error
        return self.mean - width, self.mean + width


@dataclass(frozen=True, slots=True)
class SliceReport:
    """Slices that are worse than the rest, largest excess first, and the number that was tested."""

    rows: int
    mean: float
    tested: int
    slices: tuple[Slice, ...]


def worst_slices(
    loss: npt.ArrayLike,
    columns: Mapping[str, npt.ArrayLike],
    *,
    unit: npt.ArrayLike | None = None,
    bins: int = 4,
    depth: int = 2,
    min_rows: int = 50,
    min_units: int = 10,
    min_excess: float = 0.0,
    alpha: float = 0.05,
    most: int = 10,
) -> SliceReport:
    """Search all slices for those whose loss is above that of the rest.

    loss: (rows,) finite. columns: (rows,) each, numbers with NaN where missing or strings with None. unit: (rows,) whose rows
    belong together; by default each is its own. depth: 1 or 2 columns. min_rows, min_units: of a slice and of its rest.
    min_excess: difference of means below which a slice is of no interest. alpha: bound on the chance of any false slice.
    Raises: ValueError if there are no rows, lengths differ, or a loss is not finite.
    Source: Holm 1979; Liang and Zeger, Longitudinal data analysis using generalized linear models, 1986 (sums of units).
    """
    values, units = _checked(loss, unit, depth)
    found: list[Slice] = []
    for cut in _partitions(columns, len(values), bins, depth, _WORDS):
        found += _tested(cut, values, units, min_rows, min_units)
    worse = [one for one in _corrected(found) if one.corrected <= alpha and one.mean - one.rest > min_excess]
    worse.sort(key=lambda one: -one.excess)
    return SliceReport(len(values), float(values.mean()), len(found), tuple(worse[:most]))


def slices_above(
    values: npt.ArrayLike,
    columns: Mapping[str, npt.ArrayLike],
    *,
    level: float = 0.0,
    unit: npt.ArrayLike | None = None,
    bins: int = 4,
    depth: int = 1,
    min_rows: int = 50,
    min_units: int = 10,
    possible: float = 0.0,
) -> tuple[Slice, ...]:
    """Compare the mean of every slice with a level; returns all that are large enough, the least p first.

    values: (rows,) finite, as a model's loss less another's. possible: the most by which a value could have been off 0, with which
    rare values that did not come are allowed for; 0: not known. No slice is taken to vary less than all rows together.
    Every word is a slice, however rare. The rest as `worst_slices`.
    Raises: ValueError if there are no rows, lengths differ, or a value is not finite.
    Source: Holm 1979; Deng, Knoblich and Lu, Applying the delta method in metric analytics, 2018.
    """
    array, units = _checked(values, unit, depth)
    found: list[Slice] = []
    for cut in _partitions(columns, len(array), bins, depth, len(array)):
        found += _held_against(level, cut, array, units, min_rows, min_units, possible)
    return tuple(sorted(_corrected(found), key=lambda one: (one.corrected, -one.mean)))


def _checked(values: npt.ArrayLike, unit: npt.ArrayLike | None, depth: int) -> tuple[Floats, Ints]:
    array = as_floats(values, "loss")
    if not len(array) or depth not in {1, 2}:
        raise ValueError(f"need at least one row and a depth of 1 or 2, got {len(array)} rows and {depth}")
    units = np.arange(len(array)) if unit is None else np.unique(np.asarray(unit), return_inverse=True)[1]
    if len(units) != len(array):
        raise ValueError(f"unit needs one value a row, got {len(units)} of {len(array)}")
    return array, units.astype(np.int64)


def _corrected(found: Sequence[Slice]) -> list[Slice]:
    corrected = holm([one.p for one in found]) if found else np.zeros(0)
    return [replace(one, corrected=float(q)) for one, q in zip(found, corrected, strict=True)]


@dataclass(frozen=True, slots=True)
class _Partition:
    """Partition of the rows into cells (rows,).

    names: of the cells; parents: coarser cells (rows,) within which each is tested too.
    """

    cell: Ints
    names: Sequence[tuple[str, ...]]
    parents: tuple[Ints, ...] = ()


@dataclass(frozen=True, slots=True)
class _Contrast:
    """Comparison of each cell with the rest of its parent: rows, units and mean of both, and the p-value."""

    rows: Floats
    units: Ints
    mean: Floats
    rest: Floats
    rest_rows: Floats
    rest_units: Ints
    p: Floats


def _partitions(
    columns: Mapping[str, npt.ArrayLike], rows: int, bins: int, depth: int, words: int
) -> Iterator[_Partition]:
    """Partition by every column, and with a depth of 2 by every pair of columns."""
    cuts = [_cut(name, np.asarray(column), rows, bins, words) for name, column in columns.items()]
    yield from cuts
    for a, b in itertools.combinations(cuts, 2) if depth > 1 else ():
        yield _crossed(a, b)


def _cut(name: str, column: npt.NDArray[Any], rows: int, bins: int, words: int) -> _Partition:
    if column.shape != (rows,):
        raise ValueError(f"column {name!r} needs one value a row, got shape {column.shape} for {rows} rows")
    if column.dtype.kind in "biuf":
        return _partition_numbers(name, column, bins)
    return _partition_words(name, column, words)


def _partition_numbers(name: str, column: npt.NDArray[Any], bins: int) -> _Partition:
    values = column.astype(np.float64)
    missing = np.isnan(values)
    present = values[~missing]
    inner = np.zeros(0)
    if len(present):
        inner = np.unique(np.quantile(present, np.arange(1, bins) / bins, method="lower"))
    edges = [-np.inf, *inner.tolist(), np.inf]
    cell = np.searchsorted(inner, values, side="left")
    names = [(_between(name, low, high),) for low, high in itertools.pairwise(edges)]
    return _Partition(np.where(missing, len(names), cell).astype(np.int64), [*names, (f"{name} is missing",)])


def _between(name: str, low: float, high: float) -> str:
    if low == -np.inf:
        return name if high == np.inf else f"{name} <= {high:g}"
    return f"{name} > {low:g}" if high == np.inf else f"{low:g} < {name} <= {high:g}"


def _partition_words(name: str, column: npt.NDArray[Any], most: int) -> _Partition:
    missing = np.array([value is None or value != value for value in column])  # noqa: PLR0124 - NaN
    words, codes = np.unique(np.where(missing, "", column).astype(str), return_inverse=True)
    counts = np.bincount(codes[~missing], minlength=len(words))
    order = np.argsort(-counts, kind="stable")
    most = min(most, len(words))
    place = np.empty(len(words), dtype=np.int64)
    place[order] = np.minimum(np.arange(len(words)), most)
    names = [(f"{name} = {words[at]}",) for at in order[:most]]
    names += [(f"{name} is rare",), (f"{name} is missing",)]
    return _Partition(np.where(missing, most + 1, place[codes]).astype(np.int64), names)


def _crossed(a: _Partition, b: _Partition) -> _Partition:
    names = [(*first, *second) for first in a.names for second in b.names]
    return _Partition(a.cell * len(b.names) + b.cell, names, (a.cell, b.cell))


def _tested(cut: _Partition, loss: Floats, unit: Ints, min_rows: int, min_units: int) -> Iterator[Slice]:
    """Test the slices of a partition that are large enough, each with the largest p-value of its comparisons."""
    present, cell = np.unique(cut.cell, return_inverse=True)
    looks = [_contrast(loss, cell, parent, unit) for parent in (np.zeros_like(cell), *cut.parents)]
    whole = looks[0]
    large = np.all(
        [
            (np.minimum(look.rows, look.rest_rows) >= min_rows)
            & (np.minimum(look.units, look.rest_units) >= min_units)
            for look in (looks if cut.parents else looks[:1])
        ],
        axis=0,
    )
    p = np.max([look.p for look in looks], axis=0)
    for at in np.flatnonzero(large).tolist():
        yield Slice(
            cut.names[present[at]],
            int(whole.rows[at]),
            int(whole.units[at]),
            float(whole.mean[at]),
            float(whole.rest[at]),
            float(p[at]),
            1.0,
        )


def _held_against(
    level: float,
    cut: _Partition,
    values: Floats,
    unit: Ints,
    min_rows: int,
    min_units: int,
    possible: float,
) -> Iterator[Slice]:
    """Test the slices of a partition that are large enough, each mean against `level` with the variance of the sums of units.

    That variance is not below the one within all slices, with a made-up unit at either end of what is possible: a slice without a
    rare row hardly varies.
    """
    present, cell = np.unique(cut.cell, return_inverse=True)
    units = int(unit.max()) + 1
    rows, total = np.bincount(cell), np.bincount(cell, values)
    mean = total / rows
    pairs, inside = np.unique(cell * units + unit, return_inverse=True)
    k = pairs // units
    sums, sizes = np.bincount(inside, values), np.bincount(inside)
    residual = sums - mean[k] * sizes
    witnesses = np.bincount(k)
    few = np.maximum(witnesses, 2.0)
    of_a_row = (np.sum(residual**2) + 2 * possible**2) / (len(values) + 2 * (possible > 0))
    error = np.sqrt(np.maximum(np.bincount(k, residual**2), of_a_row * rows) * few / (few - 1)) / rows
    above = mean - level
    z = above / np.where(error > 0, error, 1.0)
    p = np.where(error > 0, special.stdtr(few - 1, -z), np.where(above > 0, 0.0, 1.0))
    for at in np.flatnonzero((rows >= min_rows) & (witnesses >= min_units)).tolist():
        yield Slice(
            cut.names[present[at]],
            int(rows[at]),
            int(witnesses[at]),
            float(mean[at]),
            level,
            float(p[at]),
            1.0,
            float(error[at]),
        )


def _contrast(loss: Floats, cell: Ints, parent: Ints, unit: Ints) -> _Contrast:
    """Compare each cell's mean with that of the rest of its parent, with the variance of the sums of units.

    A unit adds (l − μn)/n_cell where it lies in the cell, less (l' − μ'n')/n_rest where it lies in the rest.
    """
    units = int(unit.max()) + 1
    rows, total = np.bincount(cell).astype(np.float64), np.bincount(cell, loss)
    of = np.zeros(len(rows), dtype=np.int64)
    of[cell] = parent
    rest_rows = np.bincount(parent).astype(np.float64)[of] - rows
    mean = total / rows
    rest = (np.bincount(parent, loss)[of] - total) / np.maximum(rest_rows, 1.0)
    held, where = np.unique(parent * units + unit, return_inverse=True)  # units of each parent
    N, L = np.bincount(where).astype(np.float64), np.bincount(where, loss)
    pairs, first, inside = np.unique(cell * units + unit, return_index=True, return_inverse=True)
    n, lost = np.bincount(inside).astype(np.float64), np.bincount(inside, loss)
    k, whole = pairs // units, where[first]
    size, m = np.maximum(rest_rows[k], 1.0), rest[k]
    absent = (L[whole] - m * N[whole]) / size
    there = (lost - mean[k] * n) / rows[k] - ((L[whole] - lost) - m * (N[whole] - n)) / size
    squares = [np.bincount(held // units, one)[of] for one in (L * L, L * N, N * N)]
    outside = (squares[0] - 2 * rest * squares[1] + rest**2 * squares[2]) / np.maximum(rest_rows, 1.0) ** 2
    variance = np.maximum(outside + np.bincount(k, there**2 - absent**2), 0.0)
    witnesses = np.bincount(k)
    rest_units = np.bincount(held // units)[of] - np.bincount(k, n == N[whole])
    few = np.maximum(np.minimum(witnesses, rest_units), 2.0)
    error = np.sqrt(variance * few / (few - 1))
    z = np.where(error > 0, (mean - rest) / np.where(error > 0, error, 1.0), 0.0)
    p = np.where((rest_rows > 0) & (error > 0), special.stdtr(few - 1, -z), 1.0)
    return _Contrast(rows, witnesses, mean, rest, rest_rows, rest_units, p)
