"""Imports all functions of the platform and of the user's project, and schedules the inspections of its models."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from functions.runtime import catalog
from functions.runtime.triggers import schedule


def discover_at_low_priority(project: str | None) -> None:
    """Import every function in a thread of low priority, and wait for that thread.

    The imports take seconds, and must not slow down what else starts at the same time.
    Raises: ImportError; ProjectError if the project does not declare what it must.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="discover", initializer=_lower_priority) as executor:
        executor.submit(_discover, project).result()


def _discover(project: str | None) -> None:
    catalog.discover(project=project)
    if project is None:
        return
    from functions.project import load_project  # late: imports that take seconds belong to this thread
    from functions.retraining.jobs import inspections

    for inspection in inspections(load_project(project)):
        schedule.add(inspection)


def _lower_priority() -> None:
    if sys.platform == "linux":  # where each thread has a priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
