"""Drift of a window from its reference: two-sample tests with a floor under the effect, corrected for many columns.

A column drifts when its test is significant after Benjamini–Hochberg over all columns *and* its effect exceeds a
floor: with a million rows everything is significant and little of it matters. Too few rows is an answer of its own.

Symbols: a, b are the counts of reference and window in the same cells, n and m their sums.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import special

from toque.functions.stats.moments import Floats
from toque.functions.stats.multiplicity import benjamini_hochberg
from toque.functions.stats.sketch import ColumnSketch, Kind, TableSketch, one_row_per_unit

__all__ = [
    "ColumnDrift",
    "ColumnSketch",
    "DriftReport",
    "TableSketch",
    "TwoSample",
    "compare",
    "compare_categories",
    "compare_histograms",
    "compare_rates",
    "corrected",
    "one_row_per_unit",
    "psi",
]

Status = Literal["stable", "drifted", "insufficient", "vanished"]

_EXPECTED = 5.0  # smallest expected count of a cell for which the chi-squared approximation is used


@dataclass(frozen=True, slots=True)
class TwoSample:
    """Result of one two-sample test: its p-value, and the size of the difference on a scale from 0 to 1."""

    p: float
    effect: float


@dataclass(frozen=True, slots=True)
class ColumnDrift:
    """Result of the drift tests of one column. p, q: of its distribution (q after correction over columns); nulls likewise.

    effect: largest difference of the cumulative shares (numeric) or total variation distance (categorical).
    null_change, unknown_change: window minus reference. None where there was too little to test.
    """

    column: str
    kind: Kind
    status: Status
    rows_reference: int
    rows_window: int
    effect: float | None
    p: float | None
    q: float | None
    psi: float | None
    null_change: float
    null_p: float | None
    null_q: float | None
    unknown_change: float
    reason: str


@dataclass(frozen=True, slots=True)
class DriftReport:
    """Report on the drift of a window, column by column."""

    columns: tuple[ColumnDrift, ...]
    alpha: float

    @property
    def drifted(self) -> tuple[str, ...]:
        """Names of the columns that drifted or vanished, in order."""
        return tuple(c.column for c in self.columns if c.status in {"drifted", "vanished"})

    @property
    def sufficient(self) -> bool:
        """Whether any column had enough rows to be judged."""
        return any(c.status != "insufficient" for c in self.columns)

    @property
    def verdict(self) -> Status:
        """One word for the window: drifted if any column did, else stable if any was judged, else insufficient."""
        if self.drifted:
            return "drifted"
        return "stable" if self.sufficient else "insufficient"


def compare(
    reference: TableSketch,
    window: TableSketch,
    *,
    alpha: float = 0.05,
    min_effect: float = 0.05,
    min_null_change: float = 0.02,
    min_rows: int = 50,
) -> DriftReport:
    """Compare a window with its reference, column by column.

    alpha: bound on the share of false ones among the columns called drifted; where nothing drifted at all, on the
        chance that any is called so. min_effect, min_null_change: differences below are never drift.
    min_rows: rows (for the distribution: present values) below which a side is insufficient.
    Raises: ValueError if the sketches have different columns or bins.
    """
    if reference.columns.keys() != window.columns.keys():
        differing = sorted(set(reference.columns) ^ set(window.columns))
        raise ValueError(
            f"the sketches have different columns: {differing}; count with `reference.window(table)`"
        )
    looks = [
        _ColumnTests.at(name, ref, window.columns[name], min_rows=min_rows)
        for name, ref in reference.columns.items()
    ]
    tests = [test for look in looks for test in look.tests()]
    q_values = iter(benjamini_hochberg([test.p for test in tests]).tolist())
    floors = _Floors(alpha, min_effect, min_null_change)
    return DriftReport(tuple(look.verdict(q_values, floors) for look in looks), alpha)


def corrected(
    columns: Sequence[ColumnDrift], *, min_effect: float, min_null_change: float
) -> dict[str, float]:
    """Correct the p-values of columns over these alone: of each the smaller one whose effect reaches its floor, else 1.

    Where none of them drifted, the smallest is at or below any level with at most that chance. Columns with too little are left out.
    """
    tests = [
        (one.column, p, effect is not None and abs(effect) >= floor)
        for one in columns
        for p, effect, floor in (
            (one.p, one.effect, min_effect),
            (one.null_p, one.null_change, min_null_change),
        )
        if p is not None
    ]
    found: dict[str, float] = {}
    for (name, _, large), q in zip(tests, benjamini_hochberg([p for _, p, _ in tests]).tolist(), strict=True):
        found[name] = min(found.get(name, 1.0), q if large else 1.0)
    return found


def compare_histograms(reference: npt.ArrayLike, window: npt.ArrayLike) -> TwoSample:
    """Compare two histograms over the same ordered bins.

    Twice the smaller of two p-values: Kolmogorov–Smirnov over the bins, strong for shifts, and chi-squared, strong for
    changes in place. Both are conservative under ties. The effect is the largest difference of cumulative shares.
    Raises: ValueError if the lengths differ or either is empty.
    Source: Kolmogorov 1933, Smirnov 1939; binning only lowers the supremum.
    """
    a, b = _counts(reference, window)
    n, m = a.sum(), b.sum()
    distance = float(np.abs(np.cumsum(a) / n - np.cumsum(b) / m).max())
    by_distance = float(special.kolmogorov(distance * math.sqrt(n * m / (n + m))))
    return TwoSample(min(1.0, 2 * min(by_distance, _chi_squared(*_merge_neighbours(a, b)))), distance)


def compare_categories(
    reference: npt.ArrayLike, window: npt.ArrayLike, *, unknown: int | None = None
) -> TwoSample:
    """Compare two tables of counts over the same unordered categories by a two-sample chi-squared test.

    unknown: cell that counts what lies outside the reference's vocabulary, if there is one. It is pooled with the rare
        categories: what only the window happened to draw must meet what only the reference happened to draw.
    The effect is the total variation distance over the cells after pooling.
    Raises: ValueError if the lengths differ or either is empty.
    Source: Pearson 1900; both samples are random, so that the reference's own noise counts.
    """
    a, b = _merge_rare(*_counts(reference, window), also=unknown)
    distance = float(np.abs(a / a.sum() - b / b.sum()).sum() / 2)
    return TwoSample(_chi_squared(a, b), distance)


def compare_rates(hits: tuple[int, int], totals: tuple[int, int]) -> TwoSample:
    """Compare two shares of successes: chi-squared where counts are large, else Fisher's exact test.

    Source: Fisher, The Design of Experiments, 1935.
    """
    a = np.array([hits[0], totals[0] - hits[0]], dtype=np.float64)
    b = np.array([hits[1], totals[1] - hits[1]], dtype=np.float64)
    effect = abs(hits[1] / totals[1] - hits[0] / totals[0])
    pooled = a + b
    if not pooled.all():
        return TwoSample(1.0, effect)
    large = (pooled * min(totals) / sum(totals)).min() >= 2 * _EXPECTED
    return TwoSample(_chi_squared(a, b) if large else _fisher(a, b), effect)


def psi(reference: npt.ArrayLike, window: npt.ArrayLike) -> float:
    """Compute the population stability index of two histograms over the same cells, in nats; zero cells get half a count.

    It grows with noise when a window is small: a figure to read, not a test.
    Raises: ValueError if the lengths differ or either is empty.
    Source: Yurdakul, Statistical Properties of Population Stability Index, 2018.
    """
    a, b = (np.where(side == 0, 0.5, side) for side in _counts(reference, window))
    p, q = a / a.sum(), b / b.sum()
    return float(((q - p) * np.log(q / p)).sum())


@dataclass(frozen=True, slots=True)
class _Floors:
    alpha: float
    effect: float
    null_change: float


@dataclass(frozen=True, slots=True)
class _ColumnTests:
    """Column with the results of its tests before correction; None where it had too few rows."""

    column: str
    reference: ColumnSketch
    window: ColumnSketch
    distribution: TwoSample | None
    nulls: TwoSample | None

    @classmethod
    def at(
        cls, column: str, reference: ColumnSketch, window: ColumnSketch, *, min_rows: int
    ) -> "_ColumnTests":
        if (reference.kind, reference.bins) != (window.kind, window.bins):
            raise ValueError(
                f"column {column!r} is counted in different bins; count with `reference.window(table)`"
            )
        enough = min(reference.present, window.present) >= max(min_rows, 1)
        distribution = _compare_columns(reference, window) if enough else None
        any_null = reference.nulls + window.nulls > 0
        if min(reference.rows, window.rows) < max(min_rows, 1):
            return cls(column, reference, window, None, None)
        rates = (
            compare_rates((reference.nulls, window.nulls), (reference.rows, window.rows))
            if any_null
            else None
        )
        return cls(column, reference, window, distribution, rates)

    def tests(self) -> list[TwoSample]:
        return [test for test in (self.distribution, self.nulls) if test is not None]

    def verdict(self, q_values: Iterator[float], floors: _Floors) -> ColumnDrift:
        q = next(q_values) if self.distribution else None
        null_q = next(q_values) if self.nulls else None
        status, reason = self._status(q, null_q, floors)
        reference, window = self.reference, self.window
        both = reference.present and window.present
        return ColumnDrift(
            column=self.column,
            kind=reference.kind,
            status=status,
            rows_reference=reference.rows,
            rows_window=window.rows,
            effect=self.distribution.effect if self.distribution else None,
            p=self.distribution.p if self.distribution else None,
            q=q,
            psi=psi(reference.counts, window.counts) if both else None,
            null_change=_rate(window) - _rate(reference),
            null_p=self.nulls.p if self.nulls else None,
            null_q=null_q,
            unknown_change=window.unknown_rate - reference.unknown_rate,
            reason=reason,
        )

    def _status(self, q: float | None, null_q: float | None, floors: _Floors) -> tuple[Status, str]:
        """Choose the status, and give the reason in a sentence."""
        if (
            self.nulls
            and null_q is not None
            and null_q <= floors.alpha
            and self.nulls.effect >= floors.null_change
        ):
            change = (
                f"nulls went from {_rate(self.reference):.1%} to {_rate(self.window):.1%} (q = {null_q:.2g})"
            )
            return ("vanished" if not self.window.present else "drifted"), change
        if self.distribution is None or q is None:
            sizes = f"{self.reference.present} values in the reference, {self.window.present} in the window"
            return "insufficient", f"{sizes}: too few to judge"
        effect = self.distribution.effect
        text = f"effect {effect:.3f} (floor {floors.effect}), q = {q:.2g} (level {floors.alpha})"
        return ("drifted" if q <= floors.alpha and effect >= floors.effect else "stable"), text


def _compare_columns(reference: ColumnSketch, window: ColumnSketch) -> TwoSample:
    if reference.kind == "numeric":
        return compare_histograms(reference.counts, window.counts)
    unknown = len(reference.counts) - 1 if reference.kind == "categorical" else None
    return compare_categories(reference.counts, window.counts, unknown=unknown)


def _rate(sketch: ColumnSketch) -> float:
    return sketch.nulls / sketch.rows if sketch.rows else 0.0


def _counts(reference: npt.ArrayLike, window: npt.ArrayLike) -> tuple[Floats, Floats]:
    a, b = np.asarray(reference, dtype=np.float64), np.asarray(window, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(
            f"two rows of counts over the same cells are compared, got shapes {a.shape} and {b.shape}"
        )
    if not (a.sum() > 0 and b.sum() > 0):
        raise ValueError(f"both samples need a value, got {a.sum():.0f} and {b.sum():.0f}")
    return a, b


def _needed(a: Floats, b: Floats) -> float:
    """Return the pooled count from which a cell's expected count is large enough in the smaller sample."""
    return _EXPECTED * float(a.sum() + b.sum()) / float(min(a.sum(), b.sum()))


def _merge_neighbours(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """Merge ordered cells until each is large enough, by pooled counts, which favours neither side."""
    needed, group, filled, groups = _needed(a, b), 0, 0.0, []
    for pooled in (a + b).tolist():
        groups.append(group)
        filled += pooled
        if filled >= needed:
            group, filled = group + 1, 0.0
    labels = np.array(groups)
    if filled < needed:
        labels[labels == group] = max(group - 1, 0)
    return np.bincount(labels, a).astype(np.float64), np.bincount(labels, b).astype(np.float64)


def _merge_rare(a: Floats, b: Floats, *, also: int | None) -> tuple[Floats, Floats]:
    """Pool the unordered cells that are too small, and cell `also` with them, rarest first until they are enough."""
    pooled, needed = a + b, _needed(a, b)
    order = np.argsort(pooled, kind="stable")
    rare = pooled < needed
    if also is not None:
        rare[also] = True
    for cell in order[~rare[order]]:
        if not rare.any() or pooled[rare].sum() >= needed:
            break
        rare[cell] = True
    return np.append(a[~rare], a[rare].sum()), np.append(b[~rare], b[rare].sum())


def _chi_squared(a: Floats, b: Floats) -> float:
    """Compute the p-value of homogeneity of two rows of counts; (N − 1)/N makes the statistic's mean exact."""
    pooled = a + b
    a, b, pooled = a[pooled > 0], b[pooled > 0], pooled[pooled > 0]
    if len(pooled) < 2:  # noqa: PLR2004 - one cell cannot differ
        return 1.0
    n, m = a.sum(), b.sum()
    statistic = float((np.square(a * m - b * n) / pooled).sum() / (n * m)) * (n + m - 1) / (n + m)
    return float(special.chdtrc(len(pooled) - 1, statistic))


def _fisher(a: Floats, b: Floats) -> float:
    """Compute the two-sided exact p-value of a 2 x 2 table: the tables as likely or less, margins given."""
    n, m, hits = a.sum(), b.sum(), a[0] + b[0]
    x = np.arange(max(0.0, hits - m), min(n, hits) + 1)
    log_p = _log_choose(n, x) + _log_choose(m, hits - x) - _log_choose(n + m, hits)
    observed = log_p[int(a[0] - x[0])]
    return float(min(1.0, np.exp(log_p[log_p <= observed + 1e-7]).sum()))


def _log_choose(n: float, k: npt.ArrayLike) -> Floats:
    result: Floats = (
        special.gammaln(n + 1) - special.gammaln(np.add(k, 1)) - special.gammaln(np.subtract(n, k) + 1)
    )
    return result
