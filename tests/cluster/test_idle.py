"""An idle cluster costs little, and no request takes the way through Serve's Python proxy."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.figures import processor_share, python_proxy_requests, store_requests
from tests.cluster.project import TICK_SECONDS

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

Report = Callable[[str, dict[str, Any]], None]
REQUESTS_PER_S, WINDOW_S, SHARE = 2.0, 11, 0.2
"""The share is a bound against regressions: nearly all of it is Ray Serve's own (docs/benchmarks.md)."""


def test_an_idle_cluster_asks_the_store_seldom_and_leaves_the_processors_alone(
    cluster: Cluster, report: Report
) -> None:
    requests, shares = 0.0, []
    _wait_until_ticks_are_over()
    for _ in range(2):
        before = store_requests(cluster)
        shares.append(processor_share(cluster, WINDOW_S))
        requests += store_requests(cluster) - before
    rate = requests / (2 * WINDOW_S)
    bare = {"head": cluster.bare["head"]} | dict.fromkeys(cluster.workers, cluster.bare["worker1"])
    more = {name: min(each[name] for each in shares) - bare[name] for name in shares[0]}
    report("idle", {"store requests/s": rate, "processor share of each node above bare Ray": more})
    assert rate <= REQUESTS_PER_S
    assert max(more.values()) <= SHARE


def test_no_request_takes_the_python_proxy(cluster: Cluster, report: Report) -> None:
    doors = ["head", *cluster.workers]
    before = {door: python_proxy_requests(cluster, door) for door in doors}
    with cluster.load(doors, 10, rate=50, labels=False) as outcomes:
        pass
    taken = {door: python_proxy_requests(cluster, door) - before[door] for door in doors}
    report("requests through the Python proxy", taken)
    assert not [each for each in outcomes if each.failed]
    assert sum(taken.values()) == 0


def _wait_until_ticks_are_over() -> None:
    """Wait until the project's schedule has just run, so that it does not run within the windows."""
    while int(time.time() % 60) not in {second + 6 for second in TICK_SECONDS}:
        time.sleep(0.1)
