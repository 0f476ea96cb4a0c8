"""Estimate of the loss on rows without labels, learnt from labelled rows; no proof of health.

A regressor learns the loss of a row from its features and the model's answer, so it follows where inputs have moved to; it is
blind to a changed relation between features and labels, as `estimate` is, and knows nothing of regions that had no labels.
Source: direct loss estimation as NannyML has it; its error here is from predictions of rows that the regressor had not seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from toque.functions.stats.estimate import Estimate
from toque.functions.stats.moments import Floats

if TYPE_CHECKING:
    from sklearn.ensemble import HistGradientBoostingRegressor
    from threadpoolctl import threadpool_limits

__all__ = ["LossModel"]

_FOLDS = 2
_LEAST = 2 * _FOLDS


@dataclass(frozen=True, slots=True)
class LossModel:
    """Model of the expected loss of a row.

    rows: learnt from; spread: of a row's loss around what is expected of it, squared.
    """

    mean: HistGradientBoostingRegressor
    spread: HistGradientBoostingRegressor
    rows: int

    @classmethod
    def fit(cls, features: npt.ArrayLike, loss: npt.ArrayLike) -> Self:
        """Fit to `features` (n, F), NaN where missing, and the losses (n,) of these rows.

        The spread is learnt from each half's losses around what the other half expects of them.
        Raises: ValueError if there are fewer than four rows, shapes differ, or a loss is no number.
        """
        x, y = np.asarray(features, dtype=np.float64), np.asarray(loss, dtype=np.float64)
        if x.ndim != 2 or y.shape != x.shape[:1] or len(y) < _LEAST or not np.isfinite(y).all():  # noqa: PLR2004 - rows, columns
            raise ValueError(
                f"need features (n, F) and n >= {_LEAST} finite losses, got {x.shape} and {y.shape}"
            )
        half = np.arange(len(y)) % _FOLDS  # rows come by time: both halves see all of it
        squares = np.empty(len(y))
        with _one_thread():
            for fold in range(_FOLDS):
                seen = _boosted(x[half != fold], y[half != fold])
                squares[half == fold] = np.square(y[half == fold] - seen.predict(x[half == fold]))
            return cls(_boosted(x, y), _boosted(x, squares), len(y))

    def estimate(self, features: npt.ArrayLike) -> Estimate:
        """Estimate the mean loss of rows (n, F), and the standard error of what will be realised on them.

        Their own spread, and that of the rows that it was learnt from, both as independent.
        Raises: ValueError without a row.
        """
        x = np.asarray(features, dtype=np.float64)
        if not len(x):
            raise ValueError("there is no row to estimate a loss of")
        with _one_thread():
            mean = float(np.maximum(self.mean.predict(x), 0.0).mean())
            spread = float(np.maximum(self.spread.predict(x), 0.0).mean())
        return Estimate(len(x), mean, float(np.sqrt(spread / len(x) + spread / self.rows)))


def _one_thread() -> threadpool_limits:
    """Limit OpenMP to one thread for a block: several share steps so small that they spin for each other, and on a busy
    machine took ten times the CPU time.
    """
    from threadpoolctl import threadpool_limits  # late: scikit-learn brings it

    return threadpool_limits(limits=1, user_api="openmp")


def _boosted(x: Floats, y: Floats) -> HistGradientBoostingRegressor:
    from sklearn.ensemble import HistGradientBoostingRegressor  # late: it is large

    return HistGradientBoostingRegressor(
        max_iter=40, max_leaf_nodes=8, min_samples_leaf=20, random_state=0
    ).fit(x, y)
