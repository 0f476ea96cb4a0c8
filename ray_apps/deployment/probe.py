"""Looks at a node from within: what is installed there, what its clock says, and whether it reaches store and Redis."""

from __future__ import annotations

import os
import platform
import socket
import time
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict

from toque.clusters.profile import apply_profile, missing_settings, settings_of
from toque.clusters.redis_clients import open_redis, redis_url_of
from toque.ray_apps.deployment.serve_config import release_of

KEY = "probes/deploy"
_WAIT_S = 10.0


class NodeReport(BaseModel):
    """What a node says of itself.

    python, ray: versions; release: digest of its code and settings; missing: settings it lacks; store, redis: why it
    does not reach them, "" if it does; seen: what the store has under the probe's key; clock_s: seconds since the epoch;
    busy_ports: ports of the doors that another program has.
    """

    model_config = ConfigDict(frozen=True)

    node: str
    python: str
    ray: str
    release: str
    missing: tuple[str, ...]
    store: str
    redis: str
    seen: str
    clock_s: float
    busy_ports: tuple[int, ...] = ()


def probe(node: str, ports: tuple[int, ...]) -> NodeReport:
    """Look at the node that this process runs on. ports: which no other program may have."""
    import ray  # late: this module is read by the command line, too

    environment = dict(os.environ)
    apply_profile(environment)
    missing = tuple(each.variable.name for each in missing_settings(environment))
    seen: list[str] = [""]

    def store() -> None:
        seen[0] = _store(environment).get(KEY).decode()

    return NodeReport(
        node=node,
        python=platform.python_version(),
        ray=ray.__version__,
        release=release_of(settings_of(environment)),
        missing=missing,
        store=_why_not(store) if "TOQUE_STORE" not in missing else "no store is set",
        redis=_why_not(lambda: _redis(environment))
        if "TOQUE_REDIS_URL" not in missing
        else "no Redis is set",
        seen=seen[0],
        clock_s=time.time(),
        busy_ports=tuple(port for port in ports if _taken(port)),
    )


def _store(environment: dict[str, str]) -> Any:
    from toque.functions.runtime.context import context_of  # late: as above

    return context_of(environment).store


def _redis(environment: dict[str, str]) -> None:
    url = redis_url_of(environment) or ""  # the caller looked: it is set
    open_redis(url, connect_timeout_s=_WAIT_S, timeout_s=_WAIT_S, patience_s=_WAIT_S).ping()


def _why_not(reach: Callable[[], object]) -> str:
    try:
        reach()
    except Exception as error:  # noqa: BLE001  # any reason is the answer
        return f"{type(error).__name__}: {error}"
    return ""


def _taken(port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("0.0.0.0", port))  # noqa: S104  # as the doors do
        except OSError:
            return True
        return False
