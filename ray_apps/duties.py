"""What the platform does by itself: the schedules that a project's definitions ask for."""

from __future__ import annotations

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
