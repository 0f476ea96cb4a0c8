"""A machine that is to be taken is drained first, and its end costs no request."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.cluster.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

WITHIN_S, SLOW_S, AFTER_S = 100, 30, 15
LATE = {"timeout", "grpc DEADLINE_EXCEEDED"}
"""What a door that stays may say on a host that is busy with everything else."""


def test_a_drained_machine_takes_no_request_with_it(
    cluster: Cluster, report: Callable[[str, dict[str, Any]], None]
) -> None:
    victim = cluster.workers[-1]
    plan: dict[str, Any] = {"rate": 50.0, "probe_rate": 2.0, "labels": False}
    with cluster.load(cluster.workers, 600, ends_with_block=True, **plan) as outcomes:
        time.sleep(3)
        begun = time.monotonic()
        cluster.lab.run(victim, "toque", "node", "drain", f"--within={WITHIN_S}", timeout_s=WITHIN_S + 60)
        drained_s = time.monotonic() - begun
        left = {application for application, places in cluster.replicas().items() if places[victim]}
        cluster.lose(victim)
        time.sleep(AFTER_S)  # of load on the doors that stay
    drained = cluster.lab.address(victim)
    failures = Counter(
        (each.kind, each.said)
        for each in outcomes
        if each.failed and (each.door == drained or each.said not in LATE)
    )
    report("a drained machine", {"drained s": drained_s, "asked": len(outcomes), "failures": str(failures)})
    assert left == set()
    assert not failures
    assert drained_s < WITHIN_S + SLOW_S
