"""A worker's raylet is killed while its machine stays up, as the kernel does that is out of memory: nothing there goes on for long.

Ray gives the node up a minute later; meanwhile the laboratory's own tests run, which come next by name.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.figures import run_times
from tests.cluster.lab import until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
SHUT_S, RUN_S = 30.0, 15.0


def test_a_node_without_its_raylet_shuts_its_door_and_hands_over(
    cluster: Cluster, report: Callable[[str, dict[str, Any]], None]
) -> None:
    victim = cluster.workers[0]
    places = cluster.replicas()
    cluster.lab.run(victim, "pkill", "-9", "-x", "raylet")
    at = time.monotonic()
    cluster.workers.reverse()  # a client asks at another door
    cluster.durable_run("after-raylet")
    run = run_times(cluster, "after-raylet")
    until(lambda: not cluster.answers(victim), f"the door of {victim} is shut")
    shut_s = time.monotonic() - at
    until(lambda: "ray::" not in cluster.lab.run(victim, "ps", "-eo", "args"), "its workers have ended")
    ended_s = time.monotonic() - at
    cluster.lab.kill(victim)  # and starts anew, as whoever watches machines would do
    cluster.lab.add(victim)
    report(
        "loss of a worker's raylet",
        {
            "had": {app: each[victim] for app, each in places.items() if each[victim]},
            "durable run sent after s": run.sent - run.submitted,
            "and begun after s": run.begun - run.sent,
            "door shut after s": shut_s,
            "workers ended after s": ended_s,
        },
    )
    assert run.sent - run.submitted <= RUN_S
    assert shut_s <= SHUT_S
