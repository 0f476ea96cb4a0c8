"""What a process of Ray sets for itself, its priority and garbage collector, and asks about others of its deployment.

Processes that answer models' callers come before others. Whether others answer says if one can take its time to be ready.
"""

from __future__ import annotations

import gc
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any


def step_back(by: int) -> None:
    """Add `by` to the niceness of this process, if Ray has started it: of all its threads, as Linux has one for each.

    Processes of Ray share a session with each other, so that niceness counts among them.
    """
    if not is_worker_of_ray():
        return
    lowered = os.getpriority(os.PRIO_PROCESS, 0) + by
    for thread in Path("/proc/self/task").glob("*"):
        with suppress(ProcessLookupError):  # it has just ended
            own = os.getpriority(os.PRIO_PROCESS, int(thread.name))
            # Never raised, which needs root.
            os.setpriority(os.PRIO_PROCESS, int(thread.name), max(own, lowered))


def is_worker_of_ray() -> bool:
    """Whether Ray has started this process, as it does a replica of Serve."""
    ray: Any = sys.modules.get("ray")  # a replica or task has imported it
    return (
        ray is not None
        and ray.is_initialized()
        and bool(ray.get_runtime_context().worker.mode == ray.WORKER_MODE)
    )


def freeze() -> None:
    """Exclude all present objects from garbage collection.

    A collection of the million objects of torch and Ray takes a tenth of a second, in which nothing else runs.
    """
    gc.collect()
    gc.freeze()


def others_answer() -> bool:
    """Whether other replicas of this one's deployment are running; waits for Serve's controller."""
    from ray import serve  # late: processes that start Ray import this room before it

    from toque.clusters.ray_private import ReplicaState

    here = serve.get_replica_context()
    application = serve.status().applications.get(here.app_name)
    deployed = None if application is None else application.deployments.get(here.deployment)
    return deployed is not None and deployed.replica_states.get(ReplicaState.RUNNING, 0) > 0


async def ask_another(method: str) -> Any:
    """Call a method of another replica of this one's deployment, of which some run."""
    from ray import serve  # late: as above

    here = serve.get_replica_context()
    return await getattr(serve.get_deployment_handle(here.deployment, here.app_name), method).remote()


def others_answered_at_start() -> bool:
    """Whether others run, asked in a replica's constructor, whose thread may not wait for Serve; False outside of Serve."""
    from ray.serve.exceptions import RayServeException  # late: as above

    with ThreadPoolExecutor(1) as asking:
        try:
            return asking.submit(others_answer).result()
        except RayServeException:
            return False
