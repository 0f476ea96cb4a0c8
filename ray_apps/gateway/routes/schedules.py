"""State of all schedules, for the gateway's route."""

from __future__ import annotations

from typing import Any

from toque.functions.runtime.context import Context
from toque.functions.runtime.triggers import schedule
from toque.ray_apps.gateway.problems import Problem


def statuses(context: Context) -> list[dict[str, Any]]:
    """List schedules with the last tick that was handled. Raises: Problem 503 while a replayed clock is not set."""
    try:
        context.clock()
    except LookupError as error:
        raise Problem(503, str(error), kind="clock-not-set", headers={"Retry-After": "1"}) from error
    return [each.model_dump(mode="json") for each in schedule.status(context)]
