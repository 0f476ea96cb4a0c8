"""`toque monitor incidents`, against a gateway on a real port."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import toque.functions.alerting.jobs  # noqa: F401 - declares what the commands call
from toque.functions.monitoring import Alarm, alarms
from toque.functions.monitoring.results import record
from toque.functions.runtime import use_context
from toque.ray_apps.cli import main


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


def test_what_stands_is_listed_and_what_is_over_is_not(platform: Any, model: str, capsys: Any) -> None:
    with use_context(platform.context):
        alarms("late").report(incident(1))
        alarms("late").report(incident(2, subject="volume", text="0 rows", columns=()))
        alarms("late").report(incident(3, subject="volume", recovered=True))
    assert main(("incidents", "late", "--json")) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert (listed["monitor"], listed["subject"], listed["columns"]) == ("quality", "nulls", ["wind"])
    assert "missing" in listed["text"]
    assert main(("incidents", "late", "-o", "table")) == 0
    heading, line = capsys.readouterr().out.splitlines()
    assert heading.split() == ["raised", "monitor", "subject", "version", "what"]
    assert line.startswith("2013-05-01 00:00  quality  nulls")


def test_monitors_tell_what_they_judged_last_and_what_is_wrong(
    platform: Any, model: str, capsys: Any
) -> None:
    at = datetime(2013, 5, 1, tzinfo=UTC)
    row: dict[str, Any] = {"monitor": "drift", "version": 1, "start": at, "rows": 90, "judged_at": at}
    judged = [
        row | {"subject": "wind", "end": at, "verdict": "drifted", "text": "effect .3"},
        row | {"subject": "wind", "end": at + timedelta(days=1), "verdict": "drifted", "text": "effect .4"},
        row | {"subject": "hour", "end": at + timedelta(days=1), "verdict": "stable", "text": "effect 0"},
    ]
    with use_context(platform.context) as used:
        record(used.store, "late", "drift", judged, upto=2)
    assert main(("monitors", "late")) == 0
    printed = capsys.readouterr().out
    assert "2013-05-02" in printed
    assert "wind: effect .4" in printed
    assert "hour" not in printed


def test_an_alert_is_silenced_and_one_that_nobody_was_told_of_cannot_be_acknowledged(
    platform: Any, model: str, capsys: Any
) -> None:
    silence = ("alerts", "silence", "late", "drift", "--hours", "2", "--reason", "works on the feed")
    assert main(silence) == 0
    capsys.readouterr()
    assert main(("alerts", "status", "late", "--json")) == 0
    (one,) = json.loads(capsys.readouterr().out)["silences"]
    assert (one["about"], one["reason"]) == ("drift", "works on the feed")
    assert main(("alerts", "ack", "late", "drift/features")) == 1
    assert "no alert about 'drift/features' of 'late' stands" in capsys.readouterr().err
    assert main(("alerts", "silence", "late", "drft", "--hours", "2", "--reason", "works")) == 1
    assert "there is no monitor 'drft'; did you mean 'drift'?" in capsys.readouterr().err
    assert main(("alerts", "status", "late", "-o", "table")) == 0
    heading, line = capsys.readouterr().out.splitlines()
    assert heading.split() == ["about", "state", "told", "until", "by", "reason"]
    assert line.split()[:2] == ["drift", "silenced"]
