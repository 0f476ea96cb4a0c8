"""The model of a cluster's shared parts (docs/scale.md) beside what the laboratory counts under the same load."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import redis

from tests.cluster import roles
from tests.cluster.cluster import Cluster
from tests.cluster.figures import store_requests_by_kind
from toque.load.capacity_model.model import Cluster as Modelled
from toque.load.capacity_model.model import Costs, Demand, chunks_s, parts, store_requests

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

RATE, SETTLE_S, IDLE_S, WINDOW_S, WINDOWS = 100.0, 15.0, 15.0, 10.0, 3
WITHIN = 2.0
"""Factor between what is told and what is counted, in the median of windows of a drain each: the sum of costs, every ten minutes, and the
merge of files, every hour, are not of the load. Shares of processors are noted only: they are of a busy host."""
READS = frozenset({"GET", "HEAD", "GetObject", "HeadObject"})


def test_the_model_tells_what_the_laboratory_counts(
    cluster: Cluster, report: Callable[[str, dict[str, Any]], None]
) -> None:
    idle = _rates(cluster, IDLE_S)
    with cluster.load(cluster.workers, 600, ends_with_block=True, rate=RATE) as outcomes:
        time.sleep(SETTLE_S)  # until drains have found their pace
        windows = [_rates(cluster, WINDOW_S) for _ in range(WINDOWS)]
    busy = {name: median(each[name] for each in windows) for name in windows[0]}
    counted = {name: busy[name] - idle[name] for name in busy}
    told = _told(len(cluster.workers))
    report(
        f"the model of a cluster, {len(cluster.workers)} serving nodes",
        {
            "idle": idle,
            "windows": windows,
            "counted": counted,
            "told": told,
            "told over counted": _ratio(told, counted),
        },
    )
    assert not [each for each in outcomes if each.failed]
    ratios = _ratio(told, counted)
    assert all(1 / WITHIN <= ratios[name] <= WITHIN for name in ratios if name.endswith("/s")), ratios


def _told(nodes: int) -> dict[str, float]:
    """What the model tells of a model with two replicas, never on one node, whose predictions all get labels; Redis announces changes."""
    demand = Demand(models=1, predictions_s=RATE, keyed=0.0, labels_s=RATE, invocations_s=0.0)
    shape, costs = Modelled(nodes, cores=2, replicas=min(2, nodes), poll_s=0.0), Costs()
    writes, reads = store_requests(demand, shape, costs)
    load = {part.name: part.load for part in parts(demand, shape, costs)}
    return {
        "store writes/s": writes,
        "store reads/s": reads,
        "chunks to Redis/s": chunks_s(demand, shape, costs),
        "Redis, cores": load["Redis"],
        "HAProxy, cores": load["HAProxy"],
        "replicas, cores": RATE * costs.replica_cpu_s,
    }


def _ratio(told: dict[str, float], counted: dict[str, float]) -> dict[str, float]:
    return {name: told[name] / counted[name] for name in told if counted[name]}


def _rates(cluster: Cluster, window_s: float) -> dict[str, float]:
    """Count during a window what the shared parts are asked, a second, and the cores that they take."""
    begun, before = time.monotonic(), _counts(cluster)
    time.sleep(window_s)  # the window of the count
    after, passed = _counts(cluster), time.monotonic() - begun
    return {name: (after[name] - before[name]) / passed for name in after}


def _counts(cluster: Cluster) -> dict[str, float]:
    kinds = store_requests_by_kind(cluster)
    with cluster.lab.network(), redis.Redis.from_url(roles.redis_url(cluster.lab)) as client:
        shipped = client.info("commandstats").get("cmdstat_xadd", {"calls": 0})["calls"]
        used = client.info("cpu")
    haproxy, replicas = _processor_seconds(cluster, "haproxy"), _processor_seconds(cluster, "predictor")
    return {
        "store writes/s": sum(count for kind, count in kinds.items() if kind not in READS),
        "store reads/s": sum(count for kind, count in kinds.items() if kind in READS),
        "chunks to Redis/s": shipped,
        "Redis, cores": used["used_cpu_user"] + used["used_cpu_sys"],
        "HAProxy, cores": haproxy,
        "replicas, cores": replicas,
    } | {f"store {kind}": count for kind, count in kinds.items()}


def _processor_seconds(cluster: Cluster, word: str) -> float:
    """Processor seconds that the processes with a word in the first of their command have taken on all nodes."""
    seconds = 0.0
    for node in ("head", *cluster.workers):
        for process, used in cluster.lab.processor_seconds(node).items():
            with contextlib.suppress(OSError):  # it has just ended
                command = Path(f"/proc/{process}/cmdline").read_text().replace("\0", " ")
                seconds += used if word in command.split(" ")[0] else 0.0
    return seconds
