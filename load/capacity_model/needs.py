"""Needs of a model at a rate that nobody has tried: replicas, cores, nodes, price, autoscaling bounds, and what breaks first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from toque.load.capacity_model.fit import CostModel, Interval, fit_cost, fit_shared
from toque.load.capacity_model.model import Cluster, Costs, Demand, Part, parts
from toque.load.capacity_model.points import Point

__all__ = ["Bounds", "Needs", "Wish", "needs_of"]


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
        return {
            "min_replicas": self.min_replicas,
            "max_replicas": self.max_replicas,
            "target_in_flight": self.target_in_flight,
        }


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
    replicas = Interval(
        *(_replicas(wish, model.idle, each) for each in (request.value, request.low, request.high))
    )
    doors = wish.requests_s * (shared.door_cpu_s + shared.redis_command_s * (1 + wish.keyed))
    busy = (
        wish.requests_s * each + count * model.idle + doors
        for each, count in (
            (request.value, replicas.value), (request.low, replicas.low), (request.high, replicas.high)
        )
    )  # fmt: skip
    cores = Interval(*busy)
    nodes = max(cluster.nodes, math.ceil(cores.high / wish.utilisation / cluster.cores))
    sized = replace(cluster, nodes=nodes, replicas=math.ceil(replicas.high))
    demand = Demand(1, wish.requests_s, wish.keyed, labels_s=wish.requests_s * wish.labels)
    found = parts(demand, sized, replace(shared, replica_cpu_s=request.value))
    price = None if cpu_hour is None else cores.times(cpu_hour / wish.utilisation)
    return Needs(
        model.idle,
        request,
        replicas,
        cores,
        nodes,
        price,
        _bounds(wish, model, replicas),
        tuple(found),
        measured,
    )


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
