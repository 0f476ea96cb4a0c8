"""The short part, for every change: the platform comes up on nodes, answers, and goes on when a worker is lost.

It is the last of the whole, since the next one would wait for another worker.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.cluster.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

OUTAGE_S = 30


def test_a_platform_comes_up_and_answers_though_a_worker_is_lost(
    cluster: Cluster, report: Callable[[str, dict[str, Any]], None]
) -> None:
    # A replica that is slower than the one which answered first has requests wait for its champion.
    answers = {door: cluster.predict(door, timeout_s=OUTAGE_S) for door in ("head", *cluster.workers)}
    assert {each.status_code for each in answers.values()} == {200}, [each.text for each in answers.values()]

    cluster.lose(cluster.workers[-1])
    outages = {door: cluster.outage(door) for door in ("head", *cluster.workers)}

    report("one worker lost: seconds until a door answers", outages)
    assert max(outages.values()) < OUTAGE_S
