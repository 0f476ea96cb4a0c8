"""Alarms and findings of the sample model: drift that stands, an operations alarm that is over, and their cohorts."""

import math
from datetime import timedelta
from typing import Any

from tests.ray_apps.console.sample_platform import MODEL, NOW
from toque.functions.evaluation.language import Scorer
from toque.functions.monitoring.alarms import Alarm, Alarms
from toque.functions.monitoring.language import LanguageMonitors
from toque.functions.monitoring.language.jobs import score_row
from toque.functions.monitoring.language.scores import ScoreTable, rule_of
from toque.functions.monitoring.results import record
from toque.registry import Journal, ObjectStore

_DAYS = 20


def fill_monitors(store: ObjectStore) -> None:
    """Record twenty days of findings, two standing alarms, one that recovered, and an alert that people were told of."""
    alarms = Alarms(MODEL, store=store, clock=lambda: NOW, actor="ticker", publish=lambda *_: None)
    raise_alarm(alarms, "operations", "latency p99", days=9, text="p99 is 210 ms, over 150 ms")
    raise_alarm(alarms, "operations", "latency p99", days=8, recovered=True, text="p99 is 90 ms again")
    raise_alarm(alarms, "drift", "wind", days=2, columns=("wind",), text="wind moved by 0.4 deviations")
    raise_alarm(alarms, "performance", "log_loss", days=1, text="mean loss is 0.61 against 0.48")
    rows = [row for day in range(_DAYS) for row in _findings(day)]
    record(store, MODEL, "drift", rows, upto=_DAYS)
    tell(store, "drift/wind")
    _score(store)


def _score(store: ObjectStore) -> None:
    """Score forty live answers of two arms, as a language model's are."""
    monitors = LanguageMonitors(scorers=(Scorer(kind="json"),))
    body = {"monitors": monitors.model_dump(mode="json")}
    Journal(store, f"language_monitors/{MODEL}", actor="ticker").append(body, at=0)
    rows = [
        {
            "prediction_id": f"p{number}", "version": 3 + number % 2, "arm": ("champion", "canary")[number % 2],
            "shadow": False, "predicted_at": NOW - timedelta(hours=1), "rule": rule_of(monitors.scorers[0]),
        }
        for number in range(40)
    ]  # fmt: skip
    scored = [score_row(row, "json", float(at % 8 > 0), NOW) for at, row in enumerate(rows)]
    ScoreTable(store, MODEL).append(scored, after=None)


def raise_alarm(alarms: Alarms, monitor: Any, subject: str, *, days: int, text: str, **fields: Any) -> None:
    at = NOW - timedelta(days=days)
    alarm = Alarm(
        key=f"{monitor} {subject} {days} {fields.get('recovered')}", model=MODEL, monitor=monitor, subject=subject,
        version=3, raised_at=at, start=at - timedelta(days=1), end=at, text=text, **fields,
    )  # fmt: skip
    alarms.report(alarm)


def tell(store: ObjectStore, about: str) -> None:
    """Record that people were told of a standing alarm, as `tell_people` does."""
    at = NOW - timedelta(days=2)
    monitor, _, subject = about.partition("/")
    alarm = Alarm(
        key="told", model=MODEL, monitor="drift", subject=subject, version=3, raised_at=at, start=at, end=at, text="moved"
    )  # fmt: skip
    assert monitor == alarm.monitor
    body = {"event": "told", "at": at.isoformat(), "key": "told", "alarm": alarm.model_dump(mode="json")}
    Journal(store, f"alerts/{MODEL}", actor="ticker").append(body, at=0)


def _findings(day: int) -> list[dict[str, Any]]:
    end = NOW - timedelta(days=_DAYS - 1 - day)
    moved = {"wind": 0.08 + 0.03 * max(0, day - 14), "hour": 0.05 + 0.01 * math.sin(day), "distance": 0.02}
    return [
        {
            "monitor": "drift", "subject": name, "version": 3, "start": end - timedelta(days=1), "end": end,
            "rows": 900 + 13 * day, "verdict": "drifted" if value > 0.15 else "stable", "value": value,
            "reference": 0.15, "statistic": None, "threshold": None, "text": "", "judged_at": end,
        }
        for name, value in moved.items()
    ]  # fmt: skip
