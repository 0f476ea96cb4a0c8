"""A new release is deployed over a running cluster under load: no request fails, no invocation is lost or runs twice."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.figures import indirect_predictions, journal_of_run, runs_of_ticks, settled
from tests.cluster.lab import until
from tests.cluster.load import outage_of, percentile

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

RATE, PROBE_RATE, SUBMIT_EVERY_S, STEADY_S, LONGEST_S = 50.0, 5.0, 2.0, 5.0, 900.0
ACCEPTED = 202
DRAIN_S = 120.0
"""For the last replicas of the release before to end."""


def test_a_rolling_deploy_fails_no_request_and_loses_no_invocation(
    cluster: Cluster, report: Callable[[str, dict[str, Any]], None]
) -> None:
    doors = ["head", *cluster.workers]
    before, indirect = cluster.replica_ids(), indirect_predictions(cluster)
    with cluster.load(doors, LONGEST_S, ends_with_block=True, rate=RATE, probe_rate=PROBE_RATE) as outcomes:
        time.sleep(STEADY_S)  # of load before the deploy; it waits for nothing
        begun = time.time()
        with _submitting(cluster) as submitted:
            cluster.lab.run("head", "toque", "deploy", "--restart", timeout_s=600)
            deployed = time.time()
            until(
                lambda: not before & cluster.replica_ids(), "the release before has ended", within_s=DRAIN_S
            )
            ended = time.time()
            time.sleep(STEADY_S)  # and after it
    taken = indirect_predictions(cluster) - indirect
    runs = {key: _runs_of(cluster, key) for key in submitted if submitted[key] == "accepted"}
    found, ticks = settled(cluster, outcomes), runs_of_ticks(cluster, begun)
    predictions = [each for each in outcomes if each.kind == "predict"]
    answered = {each.name for each in predictions if not each.failed}
    failures = Counter((each.kind, each.said) for each in outcomes if each.failed and each.kind != "grpc")
    report(
        "a rolling deploy",
        {
            "seconds": deployed - begun,
            "until the release before has ended": ended - begun,
            "asked": dict(Counter(each.kind for each in outcomes)),
            "failed": {" ".join(each): count for each, count in failures.items()},
            "gRPC away s, of the doors in turn": outage_of(outcomes, "grpc", begun),
            "gRPC requests failed": sum(each.failed for each in outcomes if each.kind == "grpc"),
            "predictions through the Python proxy": taken,
            "predictions lost": len(answered - found.predicted),
            "submitted": dict(Counter(submitted.values())),
            "runs of them": dict(Counter(runs.values())),
            "ticks": len(ticks),
            "p50 ms": 1000 * percentile([each.seconds for each in predictions], 0.5),
            "p99 ms": 1000 * percentile([each.seconds for each in predictions], 0.99),
        },
    )
    assert not failures
    assert taken == 0
    assert answered <= found.predicted
    assert set(ticks.values()) == {1}
    assert set(submitted.values()) == {"accepted"}
    assert set(runs.values()) == {1}


@contextmanager
def _submitting(cluster: Cluster) -> Iterator[dict[str, str]]:
    """Submit a durable run every other second while the block runs; what was said of each, by key."""
    said, stop = dict[str, str](), threading.Event()

    def submit() -> None:
        for number in itertools.count():
            key = f"of-the-deploy-{number}"
            headers = {"Prefer": "respond-async", "Idempotency-Key": key}
            try:
                answer = cluster.ask(
                    "POST",
                    cluster.workers[0],
                    "/functions/echo",
                    json={"text": "here"},
                    headers=headers,
                    timeout=30,
                )
                said[key] = "accepted" if answer.status_code == ACCEPTED else f"status {answer.status_code}"
            except httpx.HTTPError as error:
                said[key] = type(error).__name__
            if stop.wait(SUBMIT_EVERY_S):
                return

    thread = threading.Thread(target=submit)
    thread.start()
    try:
        yield said
    finally:
        stop.set()
        thread.join()


def _runs_of(cluster: Cluster, key: str) -> int:
    """How often a run was begun, once it has ended well."""
    kinds = Counter[str]()

    def ended() -> bool:
        kinds.clear()
        kinds.update(each["body"]["kind"] for each in journal_of_run(cluster, key))
        return kinds["succeeded"] > 0

    until(ended, f"{key} has ended well: {kinds}", every_s=1)
    assert kinds["succeeded"] == 1
    return kinds["started"]
