"""What a replica asks of Serve about the others of its deployment: whether it can take its time to be ready."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

__all__ = ["others_answer", "others_answered_at_start"]


def others_answer() -> bool:
    """Whether other replicas of this one's deployment are running; waits for Serve's controller."""
    from ray import serve  # late: processes that start Ray import this room before it
    from ray.serve._private.common import ReplicaState

    here = serve.get_replica_context()
    application = serve.status().applications.get(here.app_name)
    deployed = None if application is None else application.deployments.get(here.deployment)
    return deployed is not None and deployed.replica_states.get(ReplicaState.RUNNING, 0) > 0


def others_answered_at_start() -> bool:
    """Whether others run, asked in a replica's constructor, whose thread may not wait for Serve; False outside of Serve."""
    from ray.serve.exceptions import RayServeException  # late: as above

    with ThreadPoolExecutor(1) as asking:
        try:
            return asking.submit(others_answer).result()
        except RayServeException:
            return False
