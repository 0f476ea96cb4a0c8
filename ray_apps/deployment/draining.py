"""Drains the node that this process is on: replicas move to other nodes, its doors close, and it may end.

Ray puts nothing more on the node. Serve starts a replica elsewhere before it ends one here; one that finds no other
place ends when its turn comes. The node's HAProxy fails its health check from the first moment, so that a balancer
outside turns to other doors, and goes on answering meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from toque.ray_apps.deployment.deploy import connect, serve_details
from toque.ray_apps.deployment.errors import DeploymentError

__all__ = ["drain", "left_on"]

POLL_S = 1.0
_HEAD = "node:__internal_head__"
_ENDED = {"DRAINED", "STOPPED"}
Report = Callable[[str], None]


def drain(within_s: float | None, *, report: Report = lambda _: None) -> None:
    """Drain this machine's node; returns when nothing of Serve is left on it.

    within_s: when the machine ends, counted from now; None: whenever the node is empty.
    Raises: DeploymentError for the head, if Ray refuses, or if something is left when the time is over.
    """
    connect()
    import ray  # late: its variables must be set first

    node = ray.get_runtime_context().get_node_id()
    if any(each["NodeID"] == node and _HEAD in each["Resources"] for each in ray.nodes()):  # type: ignore[no-untyped-call]
        raise DeploymentError(
            "this is the head, which cannot be drained; docs/high-availability.md says how to replace it"
        )
    _announce(node, within_s)
    report(f"node {node} drains")
    _wait(lambda: left_on(node, serve_details() or {}), within_s, report)


def left_on(node: str, details: Mapping[str, Any]) -> list[str]:
    """List what Serve still has on a node: applications with a replica there, and `HAProxy`.

    details: what Serve says of itself.
    """
    found = [
        name
        for name, application in details.get("applications", {}).items()
        for deployment in application["deployments"].values()
        for replica in deployment["replicas"]
        if replica.get("node_id") == node and _text(replica["state"]) not in _ENDED
    ]
    proxy = details.get("proxies", {}).get(node)
    if proxy is not None and _text(proxy["status"]) not in _ENDED:
        found.append("HAProxy")
    return sorted(set(found))


def _text(state: Any) -> str:
    return str(getattr(state, "value", state))


def _announce(node: str, within_s: float | None) -> None:
    """Tell the head that a node drains. Raises: DeploymentError if it refuses."""
    import ray  # late: as above

    from toque.clusters.ray_private import GcsClient, autoscaler_pb2  # what `ray drain-node` uses

    deadline_ms = 0 if within_s is None else int((time.time() + within_s) * 1000)
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    head = GcsClient(address=ray.get_runtime_context().gcs_address)
    accepted, why = head.drain_node(node, reason, "toque node drain", deadline_ms)
    if not accepted:
        raise DeploymentError(f"the head refuses to drain {node}: {why}")


def _wait(left: Callable[[], list[str]], within_s: float | None, report: Report) -> None:
    begun = time.monotonic()
    shown: list[str] = []
    while there := left():
        if within_s is not None and time.monotonic() - begun > within_s:
            raise DeploymentError(f"after {within_s:g} s the node still has {', '.join(there)}")
        if there != shown:
            report(f"still here: {', '.join(there)}")
            shown = there
        time.sleep(POLL_S)
