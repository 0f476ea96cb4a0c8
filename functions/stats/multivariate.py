"""Two-sample tests over many columns at once, and the columns that tell the samples apart.

`domain_classifier` is for tables: it learns to tell the samples apart and is judged on rows that it has not seen; it finds what
no column shows alone, such as a correlation that turned. `mmd` is for embeddings, whose columns mean nothing by themselves.
Both know both sizes. Rows are taken as independent: `one_row_per_unit` first where they are not.

Symbols: x (n rows) is the reference, y (m rows) the window, u a value's rank among all rows on [−1, 1].
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy  # its parts are loaded when first used

from toque.functions.stats.moments import Floats

__all__ = ["MMD", "DomainDrift", "domain_classifier", "mmd"]

Ints = npt.NDArray[np.int64]

_CATEGORIES = 20  # categories with an indicator of their own; rarer ones share one
_PAIRS_UP_TO = 40  # numeric columns up to which every pair's product is a feature
_BEYOND_CHANCE = 2.0  # standard deviations of a feature's covariance with the sides, by which it is shrunk
_ROUNDS = 3  # permutations of a column by which its importance is taken


@dataclass(frozen=True, slots=True)
class DomainDrift:
    """Result of a domain classifier.

    auc: how often it ranks an unseen row of the window above one of the reference; .5 is chance. p: of so much by chance.
    importance: for each column, how much of the AUC is lost without it, largest first; error: its standard error over folds.
    """

    rows_reference: int
    rows_window: int
    auc: float
    p: float
    importance: Mapping[str, float]
    error: Mapping[str, float]

    def changed(self, *, alpha: float = 0.01, least: float = 0.2) -> tuple[str, ...]:
        """List the columns by which the samples differ, most telling first; empty where p > alpha.

        least: of the importance of the most telling column; what has less, or less than two standard errors, is passed
            over.
        """
        if self.p > alpha:
            return ()
        limit = least * max(self.importance.values(), default=0.0)
        return tuple(
            name
            for name, lost in self.importance.items()
            if lost >= limit and lost > 2 * self.error[name] and lost > 0
        )


@dataclass(frozen=True, slots=True)
class MMD:
    """Result of the maximum mean discrepancy test: unbiased estimate of its square, kernel bandwidth, p-value."""

    rows_reference: int
    rows_window: int
    squared: float
    bandwidth: float
    p: float


def domain_classifier(
    reference: Mapping[str, npt.ArrayLike],
    window: Mapping[str, npt.ArrayLike],
    *,
    rng: np.random.Generator,
    folds: int = 5,
    permutations: int = 199,
) -> DomainDrift:
    """Learn to tell the samples apart, and test whether that succeeds on rows that were held out.

    reference, window: the same columns, (n,) and (m,) values each: numbers with NaN where missing, or strings with None.
    The classifier is a ridge regression on the first four Legendre polynomials of each rank, the products of each pair of
    ranks, indicators of categories and of what is missing: it sees shifts, spreads, shapes and correlations. Ranks and
    categories are taken over both samples together, which favours neither. The p-value is that of the mean AUC among those
    with the samples permuted within each fold: AUCs of folds that learn from one another are not independent, and a test
    that takes them so fails an eighth of comparisons of equals at level .05.
    Raises: ValueError if the columns differ or are none, or either sample has fewer than 2 rows a fold.
    Source: Lopez-Paz and Oquab, Revisiting classifier two-sample tests, 2017; Fisher, The design of experiments, 1935.
    """
    columns, features, owners = _features(reference, window)
    n = _length(reference, columns)
    m = len(features) - n
    if min(n, m) < 2 * folds:
        raise ValueError(
            f"{folds} folds need {2 * folds} rows on both sides, got {n} and {m}: give more or fewer folds"
        )
    fold = np.concatenate([rng.permutation(np.arange(size) % folds) for size in (n, m)])  # evenly spread
    sides = _permuted(np.arange(n + m) >= n, fold, permutations, rng)
    aucs, lost = np.zeros((folds, permutations + 1)), np.zeros((folds, len(columns)))
    for k in range(folds):
        test = fold == k
        weights = _fit(features[~test], sides[~test])
        aucs[k] = _aucs(features[test] @ weights, sides[test])
        left = _without_each(features[test], sides[test, 0], weights[:, 0], owners, rng)
        lost[k] = aucs[k, 0] - left
    means, importance = aucs.mean(axis=0), lost.mean(axis=0)
    errors = lost.std(axis=0, ddof=1) / np.sqrt(folds)
    order = np.argsort(-importance, kind="stable")
    return DomainDrift(
        n,
        m,
        float(means[0]),
        float((means >= means[0] - 1e-12).mean()),
        {columns[at]: float(importance[at]) for at in order},
        {columns[at]: float(errors[at]) for at in order},
    )


def mmd(
    reference: npt.ArrayLike,
    window: npt.ArrayLike,
    *,
    rng: np.random.Generator,
    permutations: int = 499,
    max_rows: int = 1_000,
) -> MMD:
    """Test whether two sets of vectors come from one distribution, by a Gaussian kernel and permutations.

    reference: (n, d), window: (m, d), finite. max_rows: of each side at random; the test costs its square.
    The bandwidth is the median distance over both. Permutations make the test exact at any two sizes.
    Raises: ValueError if there are fewer than 2 rows on a side, the widths differ, or a value is not finite.
    Source: Gretton et al., A kernel two-sample test, 2012.
    """
    x, y = (_sampled(side, max_rows, rng) for side in (reference, window))
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"vectors must have one width, got {x.shape[1]} and {y.shape[1]}")
    n, m = len(x), len(y)
    both = np.concatenate([x, y])
    squares = np.square(both).sum(axis=1)
    distance = np.maximum(squares[:, None] + squares[None, :] - 2 * both @ both.T, 0.0)
    median = float(np.median(distance[np.triu_indices(n + m, 1)]))
    kernel = np.exp(-distance / (median if median > 0 else 1.0))
    np.fill_diagonal(kernel, 0.0)
    first = np.zeros((n + m, permutations + 1))
    first[:n, 0] = 1.0
    for column in range(1, permutations + 1):
        first[rng.permutation(n + m)[:n], column] = 1.0
    values = _mmd_squared(kernel, first, n, m)
    p = float((values >= values[0] - 1e-12).mean())
    return MMD(n, m, float(values[0]), math.sqrt(median / 2), p)


def _mmd_squared(kernel: Floats, first: Floats, n: int, m: int) -> Floats:
    """Compute the unbiased MMD² for each column of `first`, (rows, ways): 1 where a row is of the first sample.

    The kernel's diagonal is 0.
    """
    to_first = kernel @ first
    within_first = (first * to_first).sum(axis=0)
    across = ((1 - first) * to_first).sum(axis=0)
    within_second = kernel.sum() - within_first - 2 * across
    result: Floats = within_first / (n * (n - 1)) + within_second / (m * (m - 1)) - 2 * across / (n * m)
    return result


def _sampled(side: npt.ArrayLike, most: int, rng: np.random.Generator) -> Floats:
    rows = np.asarray(side, dtype=np.float64)
    if rows.ndim != 2 or len(rows) < 2 or not np.isfinite(rows).all():  # noqa: PLR2004 - a distance needs two
        raise ValueError(f"need at least 2 rows of finite vectors, got shape {rows.shape}")
    return rows if len(rows) <= most else rows[rng.choice(len(rows), most, replace=False)]


def _length(columns: Mapping[str, npt.ArrayLike], names: Sequence[str]) -> int:
    sizes = {len(np.asarray(columns[name], dtype=object)) for name in names}
    if len(sizes) != 1:
        raise ValueError(f"columns of one sample have one length, got {sorted(sizes)}")
    return sizes.pop()


def _features(
    reference: Mapping[str, npt.ArrayLike], window: Mapping[str, npt.ArrayLike]
) -> tuple[list[str], Floats, list[tuple[int, ...]]]:
    """Build the standardized features (n + m, features), and for each the columns it is made of."""
    if not reference or reference.keys() != window.keys():
        raise ValueError(
            f"both samples need the same columns, at least one; they differ in {sorted(reference.keys() ^ window.keys())}"
        )
    columns = list(reference)
    for sample in (reference, window):
        _length(sample, columns)
    made: list[Floats] = []
    owners: list[tuple[int, ...]] = []
    ranks: list[tuple[int, Floats]] = []
    for at, name in enumerate(columns):
        both = np.concatenate([np.asarray(reference[name]), np.asarray(window[name])])
        if both.dtype.kind in "biuf":
            parts = _of_numbers(both.astype(np.float64))
            ranks.append((at, parts[0]))
        else:
            parts = _of_words(both.astype(object))
        made += parts
        owners += [(at,)] * len(parts)
    if len(ranks) <= _PAIRS_UP_TO:
        pairs = [(a, b) for place, a in enumerate(ranks) for b in ranks[place + 1 :]]
        made += [a[1] * b[1] for a, b in pairs]
        owners += [(a[0], b[0]) for a, b in pairs]
    features = np.stack(made, axis=1)
    features -= features.mean(axis=0)
    spread = features.std(axis=0)
    return columns, features / np.where(spread > 0, spread, 1.0), owners


def _of_numbers(values: Floats) -> list[Floats]:
    """Compute Legendre polynomials of the rank, 0 where missing, and whether it is missing.

    Infinite values rank at the ends.
    """
    missing = np.isnan(values)
    u = np.zeros(len(values))
    present = values[~missing]
    u[~missing] = 2 * (scipy.stats.rankdata(present) - 0.5) / max(len(present), 1) - 1
    polynomials = [u, (3 * u**2 - 1) / 2, (5 * u**3 - 3 * u) / 2, (35 * u**4 - 30 * u**2 + 3) / 8]
    return [np.where(missing, 0.0, one) for one in polynomials] + [missing.astype(np.float64)]


def _of_words(values: npt.NDArray[Any]) -> list[Floats]:
    """Compute indicators of each frequent category, of all others together, and of missing values."""
    missing = np.array([value is None or value != value for value in values])  # noqa: PLR0124 - NaN
    words, codes = np.unique(np.where(missing, "", values).astype(str), return_inverse=True)
    counts = np.bincount(codes[~missing], minlength=len(words))
    frequent = np.argsort(-counts, kind="stable")[:_CATEGORIES]
    indicators = [((codes == code) & ~missing).astype(np.float64) for code in frequent if counts[code]]
    if not indicators:
        return [missing.astype(np.float64)]
    rest = (~missing & ~np.isin(codes, frequent)).astype(np.float64)
    return [*indicators, rest, missing.astype(np.float64)]


def _permuted(
    side: npt.NDArray[np.bool_], fold: Ints, times: int, rng: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """Return the sides (rows, 1 + times): as they are, and permuted within each fold."""
    sides = np.repeat(side[:, None], times + 1, axis=1)
    for k in range(int(fold.max()) + 1):
        mine = np.flatnonzero(fold == k)
        sides[mine, 1:] = rng.permuted(sides[mine, 1:], axis=0)
    return sides


def _fit(features: Floats, sides: npt.NDArray[np.bool_]) -> Floats:
    """Fit ridge regressions (features, ways) of each column of sides (rows, ways); of two sides the direction is Fisher's.

    What a feature says of the sides is first shrunk by what chance makes it say, else a hundred that know nothing drown one
    that does.
    Source: Tibshirani et al., Diagnosis of multiple cancer types by shrunken centroids of gene expression, 2002.
    """
    centred = features - features.mean(axis=0)
    gram = centred.T @ centred
    share = sides.mean(axis=0)
    scores = centred.T @ sides
    chance = _BEYOND_CHANCE * np.sqrt(np.diag(gram)[:, None] * (share * (1 - share)))
    gram[np.diag_indices_from(gram)] += features.shape[1]
    solved: Floats = np.linalg.solve(gram, np.sign(scores) * np.maximum(np.abs(scores) - chance, 0.0))
    return solved


def _aucs(scores: Floats, sides: npt.NDArray[np.bool_]) -> Floats:
    """Compute the AUC of each column of scores (rows, ways) for the side of each row in it, ties counting half."""
    ranks = scipy.stats.rankdata(np.round(scores, 12), axis=0)
    m = sides.sum(axis=0)
    result: Floats = ((ranks * sides).sum(axis=0) - m * (m + 1) / 2) / (m * (len(sides) - m))
    return result


def _without_each(
    features: Floats,
    is_window: npt.NDArray[np.bool_],
    weights: Floats,
    owners: Sequence[tuple[int, ...]],
    rng: np.random.Generator,
) -> Floats:
    """Compute the AUC (columns,) with the features of each column in turn shuffled among the rows."""
    score = features @ weights
    result = np.zeros(max(max(owner) for owner in owners) + 1)
    for column in range(len(result)):
        mine = [at for at, owner in enumerate(owners) if column in owner]
        part = features[:, mine] @ weights[mine]
        shuffled = np.stack([score - part + rng.permutation(part) for _ in range(_ROUNDS)], axis=1)
        result[column] = float(_aucs(shuffled, np.repeat(is_window[:, None], _ROUNDS, axis=1)).mean())
    return result
