"""Search for a season: one-way analysis of variance of one figure per cohort over the phases of a period.

Symbols: x is (cohorts, figures); a cohort's phase is its number modulo the period.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from toque.functions.stats.moments import Floats
from toque.functions.stats.multiplicity import benjamini_hochberg

__all__ = ["Seasonality", "find_season", "seasonality"]

_CYCLES = 2.0  # of a period that must have been seen


@dataclass(frozen=True, slots=True)
class Seasonality:
    """Variation that one period explains.

    p: (figures,). share: of the variation between cohorts, less what chance would explain.
    """

    period: int
    p: Floats
    share: Floats


def seasonality(figures: npt.ArrayLike, cohorts: npt.ArrayLike, *, period: int) -> Seasonality:
    """Test each figure for a season of `period` cohorts.

    figures: (cohorts, figures), finite. cohorts: (cohorts,) their numbers. A figure that never varies has p = 1.
    Raises: ValueError if the shapes do not fit, the period is below 2, or fewer than two cycles were seen.
    Source: Fisher, Statistical Methods for Research Workers, 1925 (F-test); Kelley 1935 (epsilon squared, the share).
    """
    x, at = np.asarray(figures, dtype=np.float64), np.asarray(cohorts, dtype=np.int64)
    if x.ndim != 2 or len(x) != len(at) or period < 2:  # noqa: PLR2004 - a table; a season of one is none
        raise ValueError(
            f"need (cohorts, figures), a number for each cohort and a period >= 2, got {x.shape}, {at.shape}, {period}"
        )
    if np.ptp(at) + 1 < _CYCLES * period:
        raise ValueError(
            f"a period of {period} cohorts needs two cycles, got {np.ptp(at) + 1} cohorts: give more"
        )
    _, phase = np.unique(at % period, return_inverse=True)
    size = np.bincount(phase)
    means = np.stack([np.bincount(phase, column) for column in x.T], axis=1) / size[:, None]
    total = np.square(x - x.mean(axis=0)).sum(axis=0)
    within = np.square(x - means[phase]).sum(axis=0)
    between, groups, rest = total - within, len(size) - 1, len(x) - len(size)
    varies = (total > 1e-12 * np.maximum(np.square(x).sum(axis=0), 1e-300)) & (rest > 0)
    residual = np.maximum(within / max(rest, 1), 1e-300)
    p = np.where(
        varies, special.fdtrc(max(groups, 1), max(rest, 1), between / max(groups, 1) / residual), 1.0
    )
    share = np.where(varies, (between - groups * residual) / np.where(varies, total, 1.0), 0.0)
    return Seasonality(period, p, np.clip(share, 0.0, 1.0))


def find_season(
    figures: npt.ArrayLike,
    cohorts: npt.ArrayLike,
    periods: Sequence[int],
    *,
    alpha: float = 0.001,
    min_share: float = 0.1,
) -> int | None:
    """Find the period that explains most of any figure, or None.

    alpha: false-discovery level over figures and periods. min_share: of a figure's variation between cohorts; less is not
    worth comparing like with like. Periods of which two cycles were not seen are passed over. Of two that explain about
    as much the shorter one is taken: a day repeats within a week.
    Raises: ValueError as `seasonality`.
    """
    seen = int(np.ptp(np.asarray(cohorts))) + 1 if np.size(cohorts) else 0
    tested = [seasonality(figures, cohorts, period=one) for one in sorted(periods) if seen >= _CYCLES * one]
    if not tested:
        return None
    q = benjamini_hochberg(np.concatenate([one.p for one in tested])).reshape(len(tested), -1)
    best: Seasonality | None = None
    for one, corrected in zip(tested, q, strict=True):
        found = (corrected <= alpha) & (one.share >= min_share)
        if found.any() and (best is None or float((one.share - best.share)[found].max()) >= min_share):
            best = one
    return None if best is None else best.period
