"""Fit of a request's cost to points, held-out configurations, and what follows for a rate."""

from pathlib import Path

import numpy as np
import pytest

from load.capacity_model.fit import fit_cost
from load.capacity_model.model import Cluster
from load.capacity_model.needs import Wish, needs_of
from load.capacity_model.points import Point, read_points, write_points


def true_cost_s(rows: int, replicas: int) -> float:
    return 120e-6 + 4e-6 * rows + 30e-6 * (1 - 1 / replicas)


def points_of(rng: np.random.Generator, *, spread: float = 0.05) -> list[Point]:
    return [
        Point(rows=rows, replicas=replicas, replica_s=true_cost_s(rows, replicas) * float(np.exp(rng.normal(0, spread))))
        for replicas in (1, 2)
        for rows in (1, 16, 64)
        for _ in range(3)
    ]  # fmt: skip


def test_a_configuration_that_was_not_measured_is_told_and_the_interval_covers_it():
    # 300 fits of 18 points with 5 % of noise: a new measurement lies in the interval in 95 % of them, less 4 standard errors = 90 %.
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(300):
        told = fit_cost(points_of(rng), utilisation=0.6).cost_s(256, 8)
        assert told.value == pytest.approx(true_cost_s(256, 8), rel=0.2)
        measured = true_cost_s(256, 8) * float(np.exp(rng.normal(0, 0.05)))
        covered += told.low <= measured <= told.high
    assert 0.90 <= covered / 300 <= 0.995


def test_costs_are_found_exactly_where_nothing_is_noisy_and_knees_are_points_too():
    exact = fit_cost(points_of(np.random.default_rng(1), spread=0), utilisation=0.6)
    assert (exact.base, exact.row, exact.split) == pytest.approx((120e-6, 4e-6, 30e-6), rel=1e-6)
    knees = [
        Point(rows=rows, replicas=replicas, knee=0.6 * replicas / true_cost_s(rows, replicas))
        for replicas in (1, 4)
        for rows in (1, 8, 32)
    ]
    told = fit_cost(knees, utilisation=0.6).cost_s(16, 2)
    assert told.value == pytest.approx(true_cost_s(16, 2), rel=1e-6)


def test_points_that_say_too_little_are_refused(tmp_path: Path):
    one = [Point(rows=1, replica_s=1e-4)] * 5
    with pytest.raises(ValueError, match="same number of rows"):
        fit_cost(one, utilisation=0.6)
    with pytest.raises(ValueError, match="2 points cannot give 2 costs"):
        fit_cost([one[0], Point(rows=2, replica_s=1e-4)], utilisation=0.6)
    with pytest.raises(ValueError, match="one of the two"):
        Point(rows=1)
    write_points(tmp_path / "points.json", one)
    assert read_points(tmp_path / "points.json") == one


def test_a_rate_needs_replicas_cores_and_money_by_hand():
    # 10,000/s of 1 row in many replicas: 120 + 4 + 30 µs = 1.54 cores, at .6 2.57 replicas: 3, where splitting costs 20 µs: 144 µs.
    points = [
        point.model_copy(update={"door_s": 40e-6}) for point in points_of(np.random.default_rng(1), spread=0)
    ]
    found = needs_of(points, Wish(10_000), Cluster(1, cores=4), cpu_hour=0.05)
    assert found.request_s.value == pytest.approx(144e-6, rel=1e-3)
    assert found.replicas.value == 3
    assert found.cores.value == pytest.approx(1.44 + 0.4 + 10_000 * 12e-6, rel=1e-3)
    assert found.nodes == 1
    assert found.price_hour is not None
    assert found.price_hour.value == pytest.approx(found.cores.value / 0.6 * 0.05)
    # A fifth of the rate keeps .25 cores busy: one replica, and one to spare. At .6 busy 1.5 requests are in a replica.
    assert found.bounds.options() == {"min_replicas": 2, "max_replicas": 4, "target_in_flight": 1.5}
    assert found.measured_parts == ("door_cpu_s",)
    door = next(part for part in found.parts if part.name == "HAProxy")
    assert door.utilisation == pytest.approx(0.4)


def test_what_breaks_first_is_at_the_top():
    points = points_of(np.random.default_rng(1), spread=0)
    big = [point.model_copy(update={"message_bytes": 2e6}) for point in points]
    assert needs_of(big, Wish(10_000), Cluster(2)).parts[0].name == "network"
    logged = needs_of(points, Wish(200_000, labels=1.0), Cluster(1, cores=64))
    assert logged.parts[0].name == "drain"
    assert logged.parts[0].utilisation > 1
