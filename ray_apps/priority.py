"""Priority of a process of Ray beside those that answer models' callers."""

from __future__ import annotations

import os
import sys
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
