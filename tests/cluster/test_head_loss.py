"""The head loses its power for a minute and comes back with an empty disk; its peers answer meanwhile."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.figures import settled
from tests.cluster.load import outage_of

AWAY_S, AFTER_S, RATE, LOSSES = 60, 10, 50.0, int(os.environ.get("TOQUE_CLUSTER_HEAD_LOSSES") or 1)
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900 + 600 * LOSSES)]


def test_doors_answer_while_the_head_is_away_and_every_application_is_there_after(
    cluster: Cluster, report: Callable[[str, dict[str, Any]], None]
) -> None:
    losses = []
    for _ in range(LOSSES):
        before = cluster.applications()
        with cluster.load(cluster.workers, 600, ends_with_block=True, rate=RATE) as outcomes:
            time.sleep(3)
            at = time.time()
            cluster.lab.kill("head")
            time.sleep(AWAY_S)
            cluster.lab.add("head")
            back = time.time()
            cluster.wait_whole()
            whole = time.time()
            time.sleep(AFTER_S)  # of load on the whole cluster
        answered = {each.name for each in outcomes if not each.failed}
        failed = [each for each in outcomes if each.failed]
        losses.append(
            {
                "answered": len(answered),
                "failed": len(failed),
                "failures": sorted({each.said for each in failed}),
                "outage s": outage_of(outcomes, "predict", at),
                "start of the head s": back - at - AWAY_S,
                "seconds until whole": whole - back,
                "labels lost": len(
                    {each.name for each in outcomes if each.labelled} - settled(cluster, outcomes).labelled
                ),
                "applications missing": sorted(set(before) - set(cluster.applications())),
            }
        )
        report("losses of the head's power", {"losses": losses})
    assert [each["failed"] for each in losses] == [0] * LOSSES
    assert [each["labels lost"] for each in losses] == [0] * LOSSES
    assert [each["applications missing"] for each in losses] == [[]] * LOSSES
