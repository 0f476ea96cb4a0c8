"""Every node that serves, and the head, answers at both ports; no replica's loss takes an application with it."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.lab import until
from tests.cluster.project import MODEL

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

SPREAD = ("gateway", "mlflow", "ticker", f"predictor-{MODEL}")
GRPC_PORT = 8001
BETWEEN_NODES = [
    range(6379, 6380),
    range(8000, 8002),
    range(8076, 8081),
    range(8265, 8266),
    range(8500, 8501),
    range(10002, 20000),
    range(30000, 31001),
    range(32768, 65536),  # replicas' own gRPC, and the agent at 52365
]
"""Ports that docs/high-availability.md and docs/security.md list as open between nodes."""


def test_each_node_has_both_doors_and_no_node_has_all_replicas(cluster: Cluster) -> None:
    doors = ["head", *cluster.workers]
    for door in doors:
        cluster.outage(door, steady_s=0)  # a version that was promoted just now is on its way
        assert cluster.lab.reachable(door, GRPC_PORT, refused=False)

    def spread() -> bool:
        places = cluster.replicas()
        return places["grpc"] == Counter(doors) and all(
            places[application] == Counter(cluster.workers[:2]) for application in SPREAD
        )

    until(
        spread, "every application is on both workers"
    )  # the second replicas follow a node that has just joined


def test_nothing_listens_on_a_port_that_the_pages_do_not_list(cluster: Cluster) -> None:
    for node in ("head", *cluster.workers):
        lines = cluster.lab.run(node, "ss", "-Htln").splitlines()
        addresses = [line.split()[3].rpartition(":") for line in lines]
        outside = {int(port) for host, _, port in addresses if not host.startswith(("127.", "[::1]"))}
        assert [port for port in sorted(outside) if not any(port in each for each in BETWEEN_NODES)] == []
