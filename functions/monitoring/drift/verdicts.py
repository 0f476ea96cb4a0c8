"""Findings and alarms that follow from the verdicts on windows, of features as of answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any

from toque.functions.monitoring.alarms import Alarm, Monitor
from toque.functions.monitoring.cohorts import Cohorts
from toque.functions.monitoring.drift.monitor import DriftMonitor, DriftState, DriftVerdict
from toque.functions.monitoring.watch import MonitorRun
from toque.registry import ModelVersion

_EXPLAINED = " spoiled by an incident"
_NO_CAUSES: Mapping[str, str] = MappingProxyType({})


def findings_of(
    run: MonitorRun,
    champion: ModelVersion,
    grid: Cohorts,
    verdict: DriftVerdict,
    monitor: DriftMonitor,
    *,
    kind: str,
) -> list[dict[str, Any]]:
    """Make the finding of each column of a window. kind: name of the monitor that found it."""
    return [
        {
            "monitor": kind,
            "subject": column.column,
            "version": champion.version,
            "start": grid.start(verdict.cohort - monitor.window + 1),
            "end": grid.start(verdict.cohort + 1),
            "rows": column.rows_window,
            "verdict": column.status,
            "value": column.effect,
            "reference": monitor.min_effect,
            "statistic": column.q,
            "threshold": monitor.alpha,
            "text": column.reason,
            "judged_at": run.now,
        }
        for column in verdict.columns
    ]


def alarms_of(
    run: MonitorRun,
    champion: ModelVersion,
    grid: Cohorts,
    verdict: DriftVerdict,
    monitor: DriftMonitor,
    state: DriftState,
    *,
    kind: Monitor,
    subject: str,
    causes: Mapping[str, str] = _NO_CAUSES,
) -> list[Alarm]:
    """Make at most one alarm for new drift, naming all columns, and one when every column is well again.

    kind: name of the monitor; subject: what it watches. Drift that an incident of `causes` explains is a subject of its own.
    """
    explained = f"{subject}{_EXPLAINED}"
    found = (
        (subject, verdict.news, False),
        (explained, verdict.excused, False),
        (subject, verdict.recovered if not state.alarmed else (), True),
        (explained, verdict.forgiven if not state.excused else (), True),
    )
    return [
        _alarm(run, champion, grid, verdict, monitor, kind, own, names, causes, recovered=recovered)
        for own, names, recovered in found
        if names
    ]


def _alarm(
    run: MonitorRun,
    champion: ModelVersion,
    grid: Cohorts,
    verdict: DriftVerdict,
    monitor: DriftMonitor,
    kind: Monitor,
    subject: str,
    names: Sequence[str],
    causes: Mapping[str, str],
    *,
    recovered: bool,
) -> Alarm:
    reasons = {column.column: column.reason for column in verdict.columns}
    spoiled = subject.endswith(_EXPLAINED)
    what = "/explained" if spoiled else ""
    explained = spoiled and not recovered
    return Alarm(
        key=f"{run.model}/{kind}/{champion.version}/{verdict.cohort}{what}{'/recovered' if recovered else ''}",
        model=run.model,
        monitor=kind,
        subject=subject,
        version=champion.version,
        raised_at=run.now,
        start=_window_start(grid, verdict.cohort, monitor),
        end=grid.start(verdict.cohort + 1),
        text="; ".join(f"{name}: {reasons[name]}" for name in names),
        recovered=recovered,
        columns=tuple(names),
        explained_by=tuple(sorted({causes[name] for name in names})) if explained else (),
    )


def _window_start(grid: Cohorts, index: int, monitor: DriftMonitor) -> datetime:
    return grid.start(index - monitor.window + 1)
