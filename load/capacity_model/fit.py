"""Cost of a request, fitted to points: what each replica does anyway, and what a request of so many rows takes.

core-seconds of a request = idle · replicas/rate + f(rows). A replica that is seldom asked still polls, ships its log and reports: at 200
requests/s that is more than the requests themselves, and per request it shrinks as the rate grows. f has a level at each number of rows
that was measured; between two its logarithm is a line in that of the rows, beyond the last f goes on in a straight line. It is
no single line: eight rows of a wide network take twice as long as one, and 128 four times as long as eight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats
from scipy.optimize import least_squares, nnls

from toque.load.capacity_model.points import Point

__all__ = ["CostModel", "Interval", "fit_cost", "fit_shared"]

Floats = npt.NDArray[np.float64]
_APART = 1.3  # two rates of one number of rows, from which on idle work can be told from requests
_STEP = 1e-6  # of a numeric derivative


@dataclass(frozen=True, slots=True)
class Interval:
    """Value with the bounds that a new measurement of it lies within."""

    value: float
    low: float
    high: float

    def times(self, factor: float) -> Interval:
        """Multiply value and bounds by a positive factor."""
        return Interval(self.value * factor, self.low * factor, self.high * factor)


@dataclass(frozen=True, slots=True)
class CostModel:
    """Cost of a request in core-seconds. knots: numbers of rows (k,); parameters: idle cores of a replica, then log f at each knot.

    spread: standard deviation of the logarithm of a measurement; covariance: of the parameters, over that variance; freedom:
    degrees of freedom of the spread.
    """

    knots: Floats
    parameters: Floats
    spread: float
    covariance: Floats
    freedom: int

    @property
    def idle(self) -> float:
        """Cores that a replica takes whether it is asked or not."""
        return float(self.parameters[0])

    def cost_s(
        self, rows: int, *, replicas: int = 1, rate: float = math.inf, confidence: float = 0.95
    ) -> Interval:
        """Predict the cost of a request in a configuration that may not have been measured.

        rate: of all replicas together; without it the cost of one more request, what replicas do anyway left out.
        """
        where = np.array([float(rows)]), np.array([replicas / rate])
        log_cost = _log_costs(self.parameters, self.knots, *where)[0]
        moved = self.parameters + _STEP * np.eye(len(self.parameters))
        slope = np.array([(_log_costs(each, self.knots, *where)[0] - log_cost) / _STEP for each in moved])
        error = self.spread * math.sqrt(1.0 + float(slope @ self.covariance @ slope))
        reach = float(stats.t.ppf((1 + confidence) / 2, self.freedom)) * error
        return Interval(*np.exp(log_cost + np.array([0.0, -reach, reach])).tolist())


def fit_cost(points: Sequence[Point], *, utilisation: float) -> CostModel:
    """Fit the costs to points. utilisation: of a replica at its knee, for points that are knees.

    Points whose rates are all alike for each number of rows, as knees are, say nothing of idle work; it is in f then.
    Raises: ValueError if the points are too few.
    """
    rows = np.array([float(point.rows) for point in points])
    shares = np.array([point.replicas / point.rate for point in points])
    log_costs = np.log([point.busy_s(utilisation) for point in points])
    knots = np.unique(rows)
    tells_idle = any(np.ptp(np.log(shares[rows == knot])) > math.log(_APART) for knot in knots)
    freedom = len(points) - len(knots) - tells_idle
    if freedom < 1:
        raise ValueError(
            f"{len(points)} points of {len(knots)} numbers of rows say nothing of their error; measure each twice"
        )
    start = np.array([0.0, *(float(log_costs[rows == knot].min()) for knot in knots)])
    most = np.inf if tells_idle else 1e-12
    found = least_squares(
        lambda parameters: _log_costs(parameters, knots, rows, shares) - log_costs,
        start,
        bounds=([0.0, *([-np.inf] * len(knots))], [most, *([np.inf] * len(knots))]),
        x_scale=np.array([0.1, *([1.0] * len(knots))]),
    )
    return CostModel(
        knots,
        found.x,
        spread=float(np.sqrt(found.fun @ found.fun / freedom)),
        covariance=np.linalg.pinv(found.jac.T @ found.jac),
        freedom=freedom,
    )


def fit_shared(points: Sequence[tuple[float, float]]) -> float:
    """Core-seconds of one more request in a shared process, what it does anyway left out.

    points: rate in requests/s, and core-seconds for each request at that rate.
    """
    rates, costs = np.array(points).T
    if np.ptp(rates) == 0 or costs.min() <= 0:
        return float(np.median(costs))
    relative = np.stack([1 / rates, np.ones(len(rates))], axis=1) / costs[:, None]
    scale = np.linalg.norm(relative, axis=0)
    return float((nnls(relative / scale, np.ones(len(rates)))[0] / scale)[1])


def _log_costs(parameters: Floats, knots: Floats, rows: Floats, shares: Floats) -> Floats:
    """Logarithms of the costs (n,) at rows (n,) and replicas/rate (n,)."""
    idle, levels = parameters[0], parameters[1:]
    costs = np.exp(np.interp(np.log(rows), np.log(knots), levels))
    if len(knots) > 1:
        last, before = np.exp(levels[-1]), np.exp(levels[-2])
        costs += np.maximum(rows - knots[-1], 0) * max(last - before, 0) / (knots[-1] - knots[-2])
    found: Floats = np.log(costs + idle * shares)
    return found
