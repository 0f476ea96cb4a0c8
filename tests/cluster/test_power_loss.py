"""Random workers lose their power under load: labels, predictions, requests, and what runs on the platform."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.figures import run_times, settled
from tests.cluster.load import outage_of, percentile

RATE, PROBE_RATE = 200.0, 10.0
LOSSES = int(os.environ.get("TOQUE_CLUSTER_LOSSES") or 1)
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900 + 300 * LOSSES)]
BOUND_S = {"file": 0.05, "redis": 0.0, "two_nodes": 0.0}
"""Seconds of answered predictions that a lost node may take with it, by mode, as docs/prediction-log.md says."""
TAKEOVER_S, BALANCER_S = 10.0, 1.0
RUN_S = 10.0
"""Until a durable run that was submitted as the power went is sent to the worker that runs it: its ticker, its task, or both may be on
the lost node. What Ray takes to start that worker is the host's affair."""


def test_losses_of_power_lose_no_label_and_few_requests(
    cluster: Cluster, report: Callable[[str, dict[str, Any]], None]
) -> None:
    chance, losses = random.Random(23), []
    name = f"losses of a worker's power, log mode {cluster.log_mode}"
    for _ in range(LOSSES):
        losses.append(_lose(cluster, chance.choice(cluster.workers)))
        report(name, {"losses": losses})
        cluster.join()
        losses[-1]["seconds until whole"] = cluster.wait_whole()
    report(name, {"losses": losses})
    assert [each["labels lost"] for each in losses] == [0] * LOSSES
    assert [each["labels of logged predictions not joined"] for each in losses] == [0] * LOSSES
    assert max(each["predictions lost"] for each in losses) <= RATE * BOUND_S[cluster.log_mode]
    assert all(each["failed requests"] <= each["in flight"] + RATE * BALANCER_S for each in losses)
    assert max(max(each["outage s"].values()) for each in losses) <= TAKEOVER_S
    assert max(each["durable run sent after s"] for each in losses) <= RUN_S


def _lose(cluster: Cluster, victim: str) -> dict[str, Any]:
    """Take the power from a worker under load; returns what that cost."""
    places = cluster.replicas()
    usual = cluster.durable_run(f"before-{victim}")
    with cluster.load(("head", *cluster.workers), 30, rate=RATE, probe_rate=PROBE_RATE) as outcomes:
        time.sleep(8)
        at = time.time()
        cluster.lose(victim)
        later = cluster.durable_run(f"after-{victim}")
    predictions = [each for each in outcomes if each.kind == "predict"]
    answered = {each.name for each in predictions if not each.failed}
    acknowledged = {each.name for each in predictions if each.labelled}
    failed = [each for each in predictions if each.failed]
    found, run = settled(cluster, outcomes), run_times(cluster, f"after-{victim}")
    return {
        "victim": victim,
        "had": {app: each[victim] for app, each in places.items() if each[victim]},
        "answered": len(answered),
        "labels acknowledged": len(acknowledged),
        "labels lost": len(acknowledged - found.labelled),
        "labels of logged predictions not joined": len((acknowledged & found.predicted) - found.joined),
        "predictions lost": len(answered - found.predicted),
        "failed requests": len(failed),
        "in flight": sum(each.at <= at < each.at + each.seconds for each in predictions),
        "failures": sorted({each.said for each in outcomes if each.failed}),
        "outage s": {
            kind: outage_of(outcomes, kind, at) for kind in ("predict", "gateway", "mlflow", "grpc")
        },
        "durable run sent after s": run.sent - run.submitted,
        "and begun after s": run.begun - run.sent,
        "durable run later by s": max(0.0, later - usual),
        "p50 ms before": 1000 * percentile([each.seconds for each in predictions if each.at < at - 1], 0.5),
    }
