"""Monitors killed at random, fifty times, find what undisturbed ones find: each alarm once, each finding once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.functions.monitoring.conftest import ServedModel
from toque.functions.monitoring import (
    EstimateMonitor,
    alarms,
    estimate_performance,
    results_table,
    watch_drift,
    watch_performance,
    watch_quality,
)
from toque.functions.monitoring.alarms import Alarms
from toque.functions.monitoring.results import record
from toque.functions.monitoring.watch import MonitorRun
from toque.functions.runtime import use_context
from toque.registry import Table, open_store

MODEL = "late"
WATCHES: tuple[Callable[[], Any], ...] = (
    lambda: watch_quality(MODEL),
    lambda: watch_performance(MODEL),
    lambda: estimate_performance(MODEL, EstimateMonitor(min_labels=200)),
    lambda: watch_drift(MODEL),
)


class KilledError(BaseException):
    """The process died."""


class Reaper:
    """Kills, by chance, just before or just after a write."""

    def __init__(self, most: int) -> None:
        self.rng, self.left, self.kills = np.random.default_rng(0), most, 0

    def around(self, write: Callable[..., Any]) -> Callable[..., Any]:
        def maybe(*args: Any, **kwargs: Any) -> Any:
            self._maybe()
            done = write(*args, **kwargs)
            self._maybe()
            return done

        return maybe

    def _maybe(self) -> None:
        if self.left and self.rng.random() < 0.3:
            self.left -= 1
            self.kills += 1
            raise KilledError


def live(served: ServedModel) -> None:
    """Forty days: a feed that breaks and is mended, then a world that changes, inspected every other day."""
    served.register()
    as_before = served._row
    for day in range(0, 40, 2):
        broken = 10 <= day < 14
        served._row = (
            (lambda asked, *rest: as_before(asked, *rest) | {"numeric": [7.0, 1.0]}) if broken else as_before
        )
        served.bias, served.shift = (2.5, 1.0) if day >= 24 else (0.0, 0.0)
        served.serve(2, requests=60)
        for look in WATCHES:
            while True:
                try:
                    look()
                    break
                except KilledError:
                    continue


def story(served: ServedModel) -> tuple[Any, Any]:
    with use_context(served.context()):
        live(served)
        told = [one.model_dump(exclude={"raised_at"}) for one in alarms(MODEL).all()]
    found = Table(served.store, results_table(MODEL)).read().to_pylist()
    rows = [
        (one["monitor"], one["subject"], str(one["start"]), one["verdict"], one["statistic"], one["text"])
        for one in found
    ]
    return told, sorted(rows, key=str)


@pytest.mark.long
@pytest.mark.slow
def test_fifty_kills_change_no_alarm_and_no_finding(
    served: ServedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = story(served)
    assert {(one["monitor"], one["recovered"]) for one in undisturbed[0]} >= {
        ("quality", False),
        ("quality", True),
        ("performance", False),
        ("drift", False),
    }
    reaper, other = Reaper(50), type(served)(open_store(f"file://{tmp_path}/other"), tmp_path)
    monkeypatch.setattr("toque.functions.monitoring.watch.record", reaper.around(record))
    monkeypatch.setattr(MonitorRun, "save_state", reaper.around(MonitorRun.save_state))
    monkeypatch.setattr(Alarms, "report", reaper.around(Alarms.report))
    assert story(other) == undisturbed
    assert reaper.kills == 50
