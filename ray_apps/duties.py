"""What the platform does by itself: the schedules that a project's definitions ask for."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from functions.project import load_project
from functions.runtime import catalog, schedule
from functions.runtime.declaration import Cron

INSPECT = "inspect_model"


def discover(project: str | None) -> None:
    """Import every function there is, the project's too, and enter an inspection for each of its models.

    Raises: ImportError, ProjectError.
    """
    catalog.discover(project=project)
    if project is None:
        return
    for model in load_project(project).models.values():
        cron = Cron(model.inspect, arguments={"model": model.name})
        schedule.add(schedule.Schedule(f"inspect-{model.name}", catalog.get(INSPECT), cron))


def discover_gently(project: str | None) -> None:
    """`discover` in a thread of low priority, waited for: seconds of imports give way to whatever else starts.

    Raises: as `discover`.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="discover", initializer=_give_way) as beside:
        beside.submit(discover, project).result()


def _give_way() -> None:
    if sys.platform == "linux":  # where threads have priorities of their own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
