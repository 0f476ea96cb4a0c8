"""Imports all functions of the platform and of its projects, and schedules the inspections of its models."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from toque.functions.runtime import catalog
from toque.functions.runtime.triggers import schedule


def discover(projects: Iterable[tuple[str, str]], *, awaited: bool) -> None:
    """Import every function in a thread, and wait for that thread.

    projects: workspace and module of each. awaited: whether a release waits for it; else the thread has a low priority, as the
    imports take seconds and must not slow down what else starts at the same time.
    Raises: ImportError; ProjectError if a project cannot be imported, or does not declare what it must.
    """
    initializer = None if awaited else _lower_priority
    with ThreadPoolExecutor(1, thread_name_prefix="discover", initializer=initializer) as executor:
        executor.submit(_discover, tuple(projects)).result()


def _discover(projects: tuple[tuple[str, str], ...]) -> None:
    catalog.discover()
    if not projects:
        return
    from toque.functions.project import load_project  # late: imports that take seconds belong to this thread
    from toque.functions.retraining.jobs import inspections

    for workspace, module in projects:
        catalog.discover((), project=module)
        for inspection in inspections(load_project(module)):
            schedule.add(inspection, workspace=workspace)


def _lower_priority() -> None:
    if sys.platform == "linux":  # where each thread has a priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
