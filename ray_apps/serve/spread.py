"""Lays a deployment's replicas out over nodes: at most half of them on one node, or one on every node with a door.

`NodePolicy` is called by Serve's controller. The module is sent there by value, so it imports no other module of the
project.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray

__all__ = [
    "DOOR",
    "GRACE_S",
    "SERVE",
    "SHARE",
    "NodePolicy",
    "count_nodes",
    "half_on_a_node",
    "laid_out",
    "one_on_each_door",
]

SERVE, DOOR = "serve", "door"
"""Custom resources of the nodes that serve, and of those that clients may connect to: the head is one of the latter."""
SHARE = 0.001
"""How much of the resource a replica asks for, of the 1000 that a node has."""
MOST_DOORS = 1_000
COUNTED_FOR_S = 1.0
SETTLED_S = 10.0
"""How long fewer nodes must last before replicas are given up."""
RPC_TIMEOUT_S = 5.0
GRACE_S = 90.0
"""How long a replica may take to end: until each HAProxy has heard of it (`toque.ray_apps.serve.deregistration`), and for its last requests."""


def laid_out(options: Mapping[str, Any]) -> dict[str, Any]:
    """Make a deployment's options whose replicas run on nodes that serve, never all on one of several.

    With new code each replica answers until its successor does. Where a node may have so many and no more, which then has no room for a
    successor, one ends first and the others answer meanwhile.
    options: as Serve's `deployment` takes them, and `on_serve_nodes`; without that, or with False, nothing is said of nodes,
    for a cluster whose nodes have no such resource.
    """
    chosen = {"max_surge_percent": 100, "graceful_shutdown_timeout_s": GRACE_S} | dict(options)
    if not chosen.pop("on_serve_nodes", False):
        return chosen
    actor = dict(chosen.get("ray_actor_options") or {})
    actor["resources"] = {SERVE: SHARE} | dict(actor.get("resources") or {})
    chosen["ray_actor_options"] = actor
    replicas = chosen.get("num_replicas") or 1
    if "autoscaling_config" not in chosen and replicas > 1:
        del chosen["num_replicas"], chosen["max_surge_percent"]
        chosen |= half_on_a_node(replicas)
    return chosen


def half_on_a_node(replicas: int) -> dict[str, Any]:
    """Arguments of a Serve deployment of `replicas`, of which at most half, rounded up, run on one node.

    With a single node that half is all there is, so that the deployment does not wait for a second node.
    """
    most = math.ceil(replicas / 2)
    return _by_nodes(SERVE, most_on_a_node=most, most=replicas)


def one_on_each_door() -> dict[str, Any]:
    """Arguments of a Serve deployment that has one replica on each node with a door, those that join later included."""
    return _by_nodes(DOOR, most_on_a_node=1, most=MOST_DOORS)


def _by_nodes(resource: str, *, most_on_a_node: int, most: int) -> dict[str, Any]:
    return {
        "max_replicas_per_node": most_on_a_node,
        "autoscaling_config": {
            "min_replicas": 1,
            "max_replicas": most,
            "upscale_delay_s": 0.0,
            "downscale_delay_s": SETTLED_S,
            "policy": {
                "policy_function": f"{NodePolicy.__module__}:{NodePolicy.__name__}",
                "policy_kwargs": {"resource": resource, "most_on_a_node": most_on_a_node},
            },
        },
    }


def count_nodes(resource: str) -> int:
    """Number of nodes of this process's cluster that live, do not drain and have a resource.

    Raises: what the head's client raises.
    """
    from toque.clusters.ray_private import GcsClient, gcs_pb2  # late: as Serve's controller does

    head = GcsClient(address=ray.get_runtime_context().gcs_address)
    alive = gcs_pb2.GcsNodeInfo.ALIVE
    nodes = head.get_all_node_info(timeout=RPC_TIMEOUT_S)
    found = {
        node_id.hex()
        for node_id, node in nodes.items()
        if node.state == alive and node.resources_total.get(resource, 0) > 0
    }
    return len(found - set(head.get_draining_nodes(timeout=RPC_TIMEOUT_S)))


class NodePolicy:
    """Autoscaling policy for Serve: so many replicas for each node that has a resource.

    Serve applies the deployment's bounds, of which the upper one is the number of replicas wanted in all.
    count, clock: how nodes are counted, and seconds that only grow.
    """

    def __init__(
        self,
        resource: str,
        most_on_a_node: int,
        *,
        count: Callable[[str], int] = count_nodes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._resource, self._most_on_a_node = resource, most_on_a_node
        self._count, self._clock = count, clock
        self._nodes, self._counted_at = 0, -math.inf

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Number of replicas wanted now, and the state to pass to the next call, which is empty.

        context: Serve's `AutoscalingContext`.
        """
        if self._clock() - self._counted_at >= COUNTED_FOR_S:
            self._counted_at = self._clock()
            try:
                self._nodes = self._count(self._resource)
            except Exception:  # noqa: BLE001  # the head is away, and says so elsewhere; nothing moves meanwhile
                self._nodes = 0
        if self._nodes == 0:
            return context.target_num_replicas, {}
        return self._nodes * self._most_on_a_node, {}
