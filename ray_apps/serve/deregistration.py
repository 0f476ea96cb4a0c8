"""Lets a replica answer until every HAProxy has heard that it ends, and while the head that knows the proxy is away.

Serve's replica refuses health checks once it is told to end, and closes its port after a fixed time. A HAProxy that learns late of its
successor knows no replica that answers, and hands all to Serve's Python proxy: its reload takes a second at rest, most of a minute on a
busy machine. Here a HAProxy that still asks for health or sends a request has not heard yet: it is told that all is well, and the port
stays open until nobody has come for Serve's draining period, or the replica's time to end is nearly over.
The proxy hands itself to every replica as it starts, and who first takes an actor in hand asks the head for its class, on the thread that
answers requests: a replica whose connection to a head that came back is not open yet would answer nothing for up to 20 s. All nodes run
one version of Ray, so the class is taken from the process's own code.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from toque.clusters.ray_private import HEALTHY_MESSAGE, FunctionActorManager, proxy

LAST_REQUESTS_S = 5.0
"""How much of Serve's `graceful_shutdown_timeout_s` is left for requests in flight when the wait is given up."""
POLL_S = 0.2
_SERVES = "toque_serves_health_check"
"""Attribute of Serve's class: its own check."""
_log = logging.getLogger("ray.serve")


class Deregistration:
    """The wait of one ending replica for the HAProxies that still send it requests.

    quiet_s: time without a health check or a request after which none does. longest_s: when the wait is given up.
    """

    def __init__(
        self, *, quiet_s: float, longest_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._quiet_s, self._clock = quiet_s, clock
        self._came_at = clock()
        self._last_at = self._came_at + longest_s

    def note_haproxy(self) -> None:
        """Note that a HAProxy has just come: it has not heard yet."""
        self._came_at = self._clock()

    @property
    def is_over(self) -> bool:
        """Whether the replica may close its port."""
        return self.is_given_up or self._clock() - self._came_at >= self._quiet_s

    @property
    def is_given_up(self) -> bool:
        """Whether the time is over though a HAProxy may still ask."""
        return self._clock() >= self._last_at


_ending: Deregistration | None = None
"""The wait of the one replica of this process, while it ends."""


def note_request() -> None:
    """Note that a request, or a health check, has come to this process's replica; nearly free while it does not end."""
    if _ending is not None:
        _ending.note_haproxy()


def answer_until_deregistered() -> None:
    """Let this process's replica end once every HAProxy has heard of it; call it before the replica is ready."""
    from toque.clusters.ray_private import (
        replica as replicas,  # late: only replicas need it, and have it imported
    )

    replica = replicas.Replica
    if replica._drain_behind_haproxy is _drain:  # noqa: SLF001  # Serve has no public name for it
        return
    setattr(replica, _SERVES, replica._dataplane_health_check)  # noqa: SLF001  # as above
    replica._dataplane_health_check = _say_health  # noqa: SLF001  # as above
    replica._drain_behind_haproxy = _drain  # noqa: SLF001  # as above


async def _drain(replica: Any, min_draining_period_s: float) -> None:
    """Stand for Serve's method of the same name and arguments."""
    longest_s = replica._deployment_config.graceful_shutdown_timeout_s - LAST_REQUESTS_S  # noqa: SLF001  # as above
    wait = Deregistration(quiet_s=min_draining_period_s, longest_s=max(longest_s, min_draining_period_s))
    _set_ending(wait)
    while not wait.is_over:  # noqa: ASYNC110  # the clock ends it, and no event
        await asyncio.sleep(POLL_S)
    _set_ending(None)
    if wait.is_given_up:
        _log.warning("a HAProxy has not heard yet that this replica ends, which it does now")
    replica._stop_accepting_direct_ingress()  # noqa: SLF001  # as above
    await replica._drain_ongoing_requests(check_immediately=True)  # noqa: SLF001  # as above


async def _say_health(replica: Any) -> tuple[bool, str]:
    """Stand for Serve's method `_dataplane_health_check`: its answer until the port closes is that of a replica that goes on."""
    if _ending is None:
        answer: tuple[bool, str] = await getattr(replica, _SERVES)()
        return answer
    return (True, HEALTHY_MESSAGE) if replica._healthy else (False, "UNHEALTHY")  # noqa: SLF001  # as above


def _set_ending(wait: Deregistration | None) -> None:
    global _ending  # noqa: PLW0603  # a process has one replica, and its requests must find it fast
    _ending = wait


_ask_head = FunctionActorManager._load_actor_class_from_gcs  # noqa: SLF001  # Ray has no public name for it


def load_proxy_class_here() -> None:
    """Load the class of Serve's Python proxy from this process's modules from now on; all others as before."""
    FunctionActorManager._load_actor_class_from_gcs = _load  # noqa: SLF001  # as above


def _load(manager: FunctionActorManager, job_id: Any, descriptor: Any) -> Any:
    if (
        descriptor.module_name == proxy.__name__
    ):  # which has one actor class; the name within it is that of a wrapper
        return proxy.ProxyActor.__ray_metadata__.modified_class
    return _ask_head(manager, job_id, descriptor)


__all__ = ["Deregistration", "answer_until_deregistered", "load_proxy_class_here", "note_request"]
