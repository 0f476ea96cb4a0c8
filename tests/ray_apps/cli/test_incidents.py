"""`toque incidents`, against a gateway on a real port."""

import json
from datetime import UTC, datetime
from typing import Any

from functions.monitoring import Alarm, alarms
from functions.runtime import use_context
from ray_apps.cli import main


def incident(number: int, **changes: Any) -> Alarm:
    at = datetime(2013, 5, 1, tzinfo=UTC)
    fields: dict[str, Any] = {
        "key": f"late/quality/nulls/{number}",
        "model": "late",
        "monitor": "quality",
        "subject": "nulls",
        "version": 1,
        "raised_at": at,
        "start": at,
        "end": at,
        "text": "wind: 100.0% of 150 values are missing",
        "columns": ("wind",),
    }
    return Alarm(**(fields | changes))


def test_what_stands_is_listed_and_what_is_over_is_not(platform: Any, capsys: Any) -> None:
    with use_context(platform.context):
        alarms("late").say(incident(1))
        alarms("late").say(incident(2, subject="volume", text="0 rows", columns=()))
        alarms("late").say(incident(3, subject="volume", recovered=True))
    assert main(("incidents", "late")) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert (listed["monitor"], listed["subject"], listed["columns"]) == ("quality", "nulls", ["wind"])
    assert "missing" in listed["text"]
