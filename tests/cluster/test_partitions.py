"""The cable of a worker, the head, Redis or the S3 server is cut for half a minute: nothing happens twice or is lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.figures import runs_of_ticks, settled
from tests.cluster.lab import until
from tests.cluster.project import MODEL

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

CUT_S, AFTER_S, RATE = 32, 20, 50.0
"""A cut is longer than the time between two ticks of the project's schedule. After it the head's connections send again only when the
kernel does, 51 s after the first packet that was lost: another cut before that would be one long one to the head.
"""


@pytest.mark.parametrize("victim", ["worker", "head", "redis", "s3"])
def test_a_partition_doubles_nothing_and_heals(
    cluster: Cluster, report: Callable[[str, dict[str, Any]], None], victim: str
) -> None:
    name = cluster.workers[0] if victim == "worker" else victim
    doors = [each for each in ("head", *cluster.workers) if each != name]
    mark = f"partition of {name} at {time.time():.0f}"
    champion, other = _versions(cluster)
    with cluster.load(doors, CUT_S + AFTER_S, rate=RATE) as outcomes:
        time.sleep(3)
        at = time.time()
        cluster.lab.cut(name)
        promotion = ("models", "promote", MODEL, other, "--expected", champion, "--reason", mark)
        promoters = [cluster.start_toque(each, *promotion) for each in ("head", *cluster.workers)]
        time.sleep(CUT_S)
        cluster.lab.heal(name)
        whole = cluster.wait_whole()
    said_done = sum(each.wait(120) == 0 for each in promoters)
    found = settled(cluster, outcomes)
    until(lambda: runs_of_ticks(cluster, at), "a tick since the cut has run")
    runs = runs_of_ticks(cluster, at)
    failed = [each for each in outcomes if each.failed]
    figures: dict[str, Any] = {
        "requests": len(outcomes),
        "failed requests": len(failed),
        "failures": sorted({each.said for each in failed}),
        "seconds until whole": whole,
        "promotions": sum(mark in each for each in cluster.history()),
        "promotions that were acknowledged": said_done,
        "ticks": len(runs),
        "runs of a tick at most": max(runs.values()),
        "labels lost": len({each.name for each in outcomes if each.labelled} - found.labelled),
        "predictions lost": len({each.name for each in outcomes if not each.failed} - found.predicted),
    }
    report(f"partition of {victim} for {CUT_S} s", figures)
    assert said_done <= figures["promotions"] <= 1
    assert figures["runs of a tick at most"] == 1
    assert figures["labels lost"] == figures["predictions lost"] == 0
    cluster.audit()  # every journal folds, and no entry is missing


def _versions(cluster: Cluster) -> tuple[str, str]:
    """The model's champion, and another version that can replace it."""
    champion = cluster.ask("GET", cluster.workers[0], f"/models/{MODEL}/aliases/champion").json()["version"]
    versions = cluster.ask("GET", cluster.workers[0], f"/models/{MODEL}/versions").json()
    if len(versions) == 1:
        cluster.toque("run", "make_version", "--json", '{"factor": 2.0}')
    return str(champion), "2" if champion == 1 else "1"
