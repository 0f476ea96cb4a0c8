"""What the schedules are doing, for the gateway."""

from __future__ import annotations

from typing import Any

from functions.runtime.context import Context


def statuses(used: Context) -> list[dict[str, Any]]:
    """Every schedule with the last tick that was handled."""
    from functions.runtime import schedule

    return [each.model_dump(mode="json") for each in schedule.status(used)]
