"""The consumers of streams on Serve: any number of replicas, among which the partitions are dealt."""

from __future__ import annotations

import os
import threading
from functools import cache
from typing import TYPE_CHECKING, Any

from toque.clusters.profile import apply_profile

if TYPE_CHECKING:
    from ray.serve import Application

    from toque.functions.runtime.context import Context


class StreamsReplica:
    """Follows the stream sources of all workspaces. It is unhealthy, and so replaced, when its thread has ended."""

    def __init__(self) -> None:
        from toque.functions.runtime.context import context_of  # late: only a replica needs it
        from toque.functions.runtime.process import enter_process
        from toque.ray_apps.streams.follower import Followers
        from toque.registry import Access

        apply_profile(os.environ)
        used = context_of(os.environ)
        access = Access(used.store, actor=used.actor)
        in_workspace = cache(used.in_workspace)
        enter_process(
            "streams", store_url=used.platform_url, environment=os.environ, redis_url=used.redis_url
        )

        def workspaces() -> list[Context]:
            return [in_workspace(each.name) for each in access.known_workspaces()]

        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=Followers(workspaces).run, args=(self._stop,), name="streams", daemon=True
        )
        self._thread.start()

    def check_health(self) -> None:
        """Tell Serve whether the followers run. Raises: RuntimeError if they have ended."""
        if not self._thread.is_alive():
            raise RuntimeError("the thread that follows streams has ended; its log says why")

    def __del__(self) -> None:
        """Commit what was read when Serve releases the replica, and let another follow at once."""
        self._stop.set()
        self._thread.join(timeout=60)


def application(options: dict[str, Any] | None = None) -> Application:
    """Build the Serve application of the consumers, which has no route.

    options: as of the ticker's application.
    """
    from ray import serve  # late: the processes that start Ray import this package before it

    from toque.ray_apps.serve.spread import laid_out  # late: as above

    chosen: dict[str, Any] = {"name": "streams", "ray_actor_options": {"num_cpus": 0}} | (options or {})
    deployment: Any = serve.deployment(StreamsReplica, **laid_out(chosen))
    found: Application = deployment.bind()
    return found
