"""What a replica asks of Serve about the others of its deployment: whether it can take its time to be ready."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

__all__ = ["ask_another", "others_answer", "others_answered_at_start"]


def others_answer() -> bool:
    """Whether other replicas of this one's deployment are running; waits for Serve's controller."""
    from ray import serve  # late: processes that start Ray import this room before it
    from ray.serve._private.common import ReplicaState

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
