"""Cost of a request, fitted to measured points, and what a model needs at a rate that nobody has tried.

core-seconds of a request = idle · replicas/rate + f(rows). A replica that is seldom asked still polls, ships its log and reports: at 200
requests/s that is more than the requests themselves, and per request it shrinks as the rate grows. f has a level at each number of rows
that was measured; between two its logarithm is a line in that of the rows, beyond the last f goes on in a straight line. It is
no single line: eight rows of a wide network take twice as long as one, and 128 four times as long as eight.
A point is measured by the processor time of a platform's processes, or is a knee: the rate that so many replicas held.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from scipy import stats
from scipy.optimize import least_squares, nnls

from toque.load.capacity_model.model import Cluster, Costs, Demand, Part, parts

Floats = npt.NDArray[np.float64]
_APART = 1.3  # two rates of one number of rows, from which on idle work can be told from requests
_STEP = 1e-6  # of a numeric derivative


@dataclass(frozen=True, slots=True)
class Interval:
    """Value with the bounds that a new measurement of it lies within."""

    value: float
    low: float
    high: float

    def map(self, figure: Callable[[float], float]) -> Interval:
        """Compute a figure that grows with the value, of the value and of both bounds."""
        return Interval(figure(self.value), figure(self.low), figure(self.high))

    def times(self, factor: float) -> Interval:
        """Multiply value and bounds by a positive factor."""
        return self.map(lambda value: value * factor)


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
    bounds = [0.0, *([-np.inf] * len(knots))], [most, *([np.inf] * len(knots))]
    found = least_squares(
        lambda parameters: _log_costs(parameters, knots, rows, shares) - log_costs,
        start, bounds=bounds, x_scale=np.array([0.1, *([1.0] * len(knots))]),
    )  # fmt: skip
    spread = float(np.sqrt(found.fun @ found.fun / freedom))
    return CostModel(knots, found.x, spread, np.linalg.pinv(found.jac.T @ found.jac), freedom)


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


class Point(BaseModel):
    """Point of a model: `replicas` replicas that answer `rate` requests/s of `rows` rows.

    replica_s, door_s, redis_s: core-seconds of replicas, HAProxy and Redis for each request, what they do anyway included. Without
    replica_s the rate is a knee: all that the replicas could hold. message_bytes: of request and answer together.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int = Field(ge=1)
    replicas: int = Field(default=1, ge=1)
    rate: float = Field(gt=0)
    replica_s: float | None = Field(default=None, gt=0)
    door_s: float | None = Field(default=None, ge=0)
    redis_s: float | None = Field(default=None, ge=0)
    message_bytes: float | None = Field(default=None, gt=0)

    def busy_s(self, utilisation: float) -> float:
        """Core-seconds of the replicas for a request. utilisation: of a replica at its knee."""
        return self.replica_s if self.replica_s is not None else self.replicas * utilisation / self.rate


_POINTS = TypeAdapter(list[Point])


def read_points(path: Path) -> list[Point]:
    """Read points from a JSON file. Raises: ValueError naming the field, FileNotFoundError."""
    return _POINTS.validate_json(path.read_bytes())


def write_points(path: Path, points: list[Point]) -> None:
    """Write points to a JSON file, as `read_points` takes them."""
    path.write_bytes(_POINTS.dump_json(points, indent=1, exclude_none=True))


@dataclass(frozen=True, slots=True)
class Wish:
    """Rate that a model shall answer, and how it is asked.

    utilisation: of a replica, at which its latency is still fine; find it as the knee's. lowest_share: of the rate, in the quietest
    hour. keyed: share of requests by key; labels: for each prediction.
    """

    requests_s: float
    rows: int = 1
    utilisation: float = 0.6
    lowest_share: float = 0.2
    keyed: float = 0.0
    labels: float = 0.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """Autoscaling bounds as the profile takes them, in `models: {NAME: {…}}`."""

    min_replicas: int
    max_replicas: int
    target_in_flight: float

    def options(self) -> dict[str, float]:
        """Options of the model's predictor, by name."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Needs:
    """Needs of a model at a rate. idle: cores that a replica takes anyway; replicas, cores, price_hour: with bounds; parts: of the cluster, what breaks first at the top.

    cores: kept busy, doors and Redis included; nodes: of the cluster's size, with room for the upper bound.
    """

    idle: float
    request_s: Interval
    replicas: Interval
    cores: Interval
    nodes: int
    price_hour: Interval | None
    bounds: Bounds
    parts: tuple[Part, ...]
    measured_parts: tuple[str, ...]


def needs_of(
    points: Sequence[Point],
    wish: Wish,
    cluster: Cluster,
    *,
    costs: Costs | None = None,
    cpu_hour: float | None = None,
) -> Needs:
    """Compute what a rate needs. cluster: its nodes are computed, the rest is taken; cpu_hour: price of a core.

    costs: of the parts that the points did not measure. Raises: ValueError if the points are too few.
    """
    model = fit_cost(points, utilisation=wish.utilisation)
    if model.idle >= wish.utilisation:
        raise ValueError(
            f"a replica takes {model.idle:.2f} cores before it is asked, and shall be busy for {wish.utilisation:g}; "
            "raise the utilisation, or measure on a machine with less beside it"
        )
    request = model.cost_s(wish.rows)
    shared, measured = _shared(points, costs or Costs())
    replicas = request.map(lambda each_s: _replicas(wish, model.idle, each_s))
    doors = wish.requests_s * (shared.door_cpu_s + shared.redis_command_s * (1 + wish.keyed))
    cores = request.map(
        lambda each_s: wish.requests_s * each_s + _replicas(wish, model.idle, each_s) * model.idle + doors
    )
    nodes = max(cluster.nodes, math.ceil(cores.high / wish.utilisation / cluster.cores))
    sized = replace(cluster, nodes=nodes, replicas=math.ceil(replicas.high))
    demand = Demand(1, wish.requests_s, wish.keyed, labels_s=wish.requests_s * wish.labels)
    found = parts(demand, sized, replace(shared, replica_cpu_s=request.value))
    price = None if cpu_hour is None else cores.times(cpu_hour / wish.utilisation)
    bounds = _bounds(wish, model, replicas)
    return Needs(model.idle, request, replicas, cores, nodes, price, bounds, tuple(found), measured)


def _replicas(wish: Wish, idle: float, request_s: float) -> int:
    """Number of replicas that are as busy as wanted: with what they do anyway, and their part of the requests."""
    return max(1, math.ceil(wish.requests_s * request_s / (wish.utilisation - idle)))


def _bounds(wish: Wish, model: CostModel, replicas: Interval) -> Bounds:
    """Bounds of the autoscaler: the quietest hour, with one to spare for a lost replica; the upper bound, with one to spare.

    target_in_flight: requests in a replica at the wanted utilisation, by the formula of Pollaczek and Khinchine with times
    of service that are as uneven as exponential ones.
    """
    quiet = replace(wish, requests_s=wish.requests_s * wish.lowest_share)
    least = max(2, _replicas(quiet, model.idle, model.cost_s(wish.rows).value) + 1)
    most = max(least, math.ceil(replicas.high) + 1)
    busy = wish.utilisation
    return Bounds(least, most, round(busy / (1 - busy), 1))


def _shared(points: Sequence[Point], costs: Costs) -> tuple[Costs, tuple[str, ...]]:
    """Costs of the shared parts, measured ones in place of those in the code, and which those are."""
    found = {
        "door_cpu_s": [(point.rate, point.door_s) for point in points if point.door_s is not None],
        "redis_command_s": [(point.rate, point.redis_s) for point in points if point.redis_s is not None],
    }
    measured = {name: fit_shared(values) for name, values in found.items() if values}
    sizes = [point.message_bytes for point in points if point.message_bytes is not None]
    if sizes:
        measured["message_bytes"] = float(np.median(sizes))
    return replace(costs, **measured), tuple(sorted(measured))
