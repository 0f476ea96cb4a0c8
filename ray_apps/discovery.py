"""Has every function of the platform and of the user's project declared, and each of its models' inspection scheduled."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from functions.runtime import catalog
from functions.runtime.triggers import schedule


def discover_gently(project: str | None) -> None:
    """Import every function there is in a thread of low priority, and wait for it.

    Seconds of imports then give way to whatever else starts.
    Raises: ImportError; ProjectError if the project does not declare what it must.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="discover", initializer=_give_way) as beside:
        beside.submit(_discover, project).result()


def _discover(project: str | None) -> None:
    catalog.discover(project=project)
    if project is None:
        return
    from functions.project import load_project  # late: imports that take seconds belong to this thread
    from functions.retraining.jobs import inspections

    for inspection in inspections(load_project(project)):
        schedule.add(inspection)


def _give_way() -> None:
    if sys.platform == "linux":  # where threads have priorities of their own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
