"""Looks whether every node that has a door answers there, by HTTP and by gRPC."""

from __future__ import annotations

import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable

from toque.clusters.profile import Profile
from toque.ray_apps.deployment.errors import DeploymentError

_ASK_S = 0.5
_TIMEOUT_S = 3.0


def door_addresses(profile: Profile) -> list[str]:
    """List the addresses of the connected cluster's living nodes that answer clients."""
    import ray  # late: its variables must be set first

    nodes = [each for each in ray.nodes() if each["Alive"] and "door" in each["Resources"]]  # type: ignore[no-untyped-call]
    if profile.bind in {"127.0.0.1", "localhost"}:
        return ["127.0.0.1"]
    return sorted(each["NodeManagerAddress"] for each in nodes)


def wait_open(
    addresses: Iterable[str],
    profile: Profile,
    wait_s: float,
    *,
    shut: Callable[[str, Profile], str] | None = None,
) -> None:
    """Wait until each door answers. shut: why one does not, "" if it does; for tests.

    Raises: DeploymentError naming the doors that do not within `wait_s`, and why.
    """
    why_shut = shut or why_not
    deadline = time.monotonic() + wait_s
    waiting = list(addresses)
    while True:
        reasons = {address: reason for address in waiting if (reason := why_shut(address, profile))}
        if not reasons:
            return
        if time.monotonic() > deadline:
            raise DeploymentError(
                "; ".join(f"door of {address}: {reason}" for address, reason in reasons.items())
            )
        waiting = list(reasons)
        time.sleep(_ASK_S)


def why_not(address: str, profile: Profile) -> str:
    """Say why a node's door does not answer by HTTP or gRPC, or "" if it does both."""
    url = f"http://{address}:{profile.ports.http}/-/healthz"
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S):  # our own node
            pass
        with socket.create_connection((address, profile.ports.grpc), timeout=_TIMEOUT_S):
            return ""
    except urllib.error.HTTPError as error:
        return f"{url} answers {error.code}"
    except OSError as error:
        return f"{error} at {profile.ports.http} (HTTP) or {profile.ports.grpc} (gRPC)"
