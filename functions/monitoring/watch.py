"""Run of a monitor: read the cohorts that are due, judge them, raise alarms, record findings, save the state.

A run reads each row once and keeps its state in the store. Alarms are raised first, then findings recorded, then the state
saved: a run that dies in between is repeated by the next to the same effect.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from toque.functions.evaluation.realised_loss import Scored, score
from toque.functions.monitoring.alarms import Alarm, Alarms
from toque.functions.monitoring.performance import (
    Cohort,
    PerformanceMonitor,
    PerformanceState,
    Verdict,
    judge,
)
from toque.functions.monitoring.results import COHORT_S, Cohorts, CohortState, HasCohort, record
from toque.functions.runtime.context import context
from toque.functions.runtime.triggers.events import publish
from toque.functions.stats.estimate import auc_with_error
from toque.registry import ModelVersion, ObjectStore
from toque.registry.times import EPOCH, epoch_us

_State = TypeVar("_State", bound=CohortState)
ReadRows = Callable[[datetime, datetime], pa.Table]


class MonitorResult(BaseModel):
    """Result of one run of a monitor.

    cohorts: judged in this run; alarms: raised, or recovered, for the first time.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    monitor: str
    version: int | None = None
    cohorts: int = 0
    text: str = ""
    alarms: tuple[Alarm, ...] = ()


@dataclass(frozen=True, slots=True)
class MonitorRun:
    """Run of a monitor: the model it watches, the store, the journal of alarms, and the time."""

    model: str
    store: ObjectStore
    alarms: Alarms
    now: datetime

    def find_state(self, monitor: str) -> bytes | None:
        """Read the state of `monitor` as it was saved, or None before its first run."""
        return self.store.find(self._key(monitor))

    def load_state(self, monitor: HasCohort, kind: type[_State]) -> _State | None:
        """Load the state of `monitor` on the grid of its cohorts, or None before its first run.

        A state that was saved with cohorts of another length is moved to this grid. One of an earlier release does not name
        its length: where its next cohort lies far from now it is of another grid, and the monitor begins anew.
        """
        kept = self.find_state(monitor.kind)
        if kept is None:
            return None
        content = json.loads(kept)
        length_s = content.pop(COHORT_S, None)
        state, grid = kind.model_validate(content), Cohorts(monitor.cohort)
        if length_s is None:
            return state if self._near(grid.start(state.next_cohort)) else None
        if length_s == monitor.cohort.total_seconds():
            return state
        saved = Cohorts(timedelta(seconds=length_s))
        return state.on_grid(lambda index: grid.index(saved.start(index)))

    def save_state(self, monitor: str, state: BaseModel, *, cohort: timedelta | None = None) -> None:
        """Save the state of `monitor`, replacing the last one. cohort: length of the cohorts that it numbers."""
        content = state.model_dump(mode="json")
        if cohort is not None:
            content[COHORT_S] = cohort.total_seconds()
        self.store.put(self._key(monitor), json.dumps(content).encode())

    def nothing_due(
        self, monitor: HasCohort, champion: ModelVersion, first: int, delay: timedelta = timedelta(0)
    ) -> MonitorResult:
        """Return the result of a run before cohort `first` is due, which says when that is.

        delay: from the cohort's end until it is judged.
        """
        text = f"no cohort is due: {Cohorts(monitor.cohort).when_due(first, delay)}"
        return MonitorResult(model=self.model, monitor=monitor.kind, version=champion.version, text=text)

    def conclude(
        self,
        monitor: HasCohort,
        champion: ModelVersion,
        state: BaseModel,
        cohorts: range,
        *,
        text: str,
        findings: Sequence[dict[str, Any]],
        alarms: Sequence[Alarm] = (),
    ) -> MonitorResult:
        """End a run over `cohorts`: raise alarms, record findings, and save the state last."""
        new = tuple(alarm for alarm in alarms if self.alarms.report(alarm))
        length_s = int(monitor.cohort.total_seconds())
        record(self.store, self.model, f"{monitor.kind}/{length_s}", findings, upto=cohorts.stop)
        self.save_state(monitor.kind, state, cohort=monitor.cohort)
        return MonitorResult(
            model=self.model,
            monitor=monitor.kind,
            version=champion.version,
            cohorts=len(cohorts),
            text=text,
            alarms=new,
        )

    def _near(self, at: datetime) -> bool:
        """Whether a time is as long after the epoch as now is, within a quarter: grids differ by a factor of two at least."""
        return abs(at - self.now) < (self.now - EPOCH) / 4

    def _key(self, monitor: str) -> str:
        return f"monitoring/{self.model}/state/{monitor}.json"


def watch_loss(
    run: MonitorRun, champion: ModelVersion, monitor: PerformanceMonitor, read: ReadRows
) -> MonitorResult:
    """Judge every cohort whose labels are due.

    read: predictions beside their labels, unlabelled ones included, predicted in [start, end).
    """
    grid = Cohorts(monitor.cohort)
    due = grid.index(run.now - monitor.label_delay)
    state = _loss_state(run, champion, monitor, grid)
    first = state.next_cohort
    if first >= due:
        return run.nothing_due(monitor, champion, first, monitor.label_delay)
    rows = score(read(grid.start(first), grid.start(due)), loss=monitor.loss, clip=monitor.clip)
    rows = rows.where((rows.version == champion.version) & ~rows.shadow)
    alarms, findings, last = [], [], ""
    for index, mine in by_cohort(rows, grid, first, due):
        cohort = Cohort.of(index, mine)
        state, verdicts = judge(state, cohort, monitor)
        if cohort.requests:
            findings += [_finding(run, champion, grid, cohort, verdict, monitor) for verdict in verdicts]
            alarms += [_alarm(run, champion, grid, index, v, monitor) for v in verdicts if v.kind == "alarm"]
            findings += _figures(run, champion, grid, index, mine, monitor)
            last = "; ".join(verdict.text for verdict in verdicts)
    return run.conclude(
        monitor, champion, state, range(first, due), text=last, findings=findings, alarms=alarms
    )


def by_cohort(rows: Scored, grid: Cohorts, first: int, due: int) -> Iterator[tuple[int, Scored]]:
    """Cut rows in order of time into the cohorts from `first` to before `due`, empty ones included."""
    bounds = np.searchsorted(rows.at, [epoch_us(grid.start(index)) for index in range(first, due + 1)])
    for place, index in enumerate(range(first, due)):
        yield index, rows.where(np.arange(bounds[place], bounds[place + 1]))


def _loss_state(
    run: MonitorRun, champion: ModelVersion, monitor: PerformanceMonitor, grid: Cohorts
) -> PerformanceState:
    validated = next((champion.metrics[name] for name in monitor.baseline if name in champion.metrics), None)
    state = run.load_state(monitor, PerformanceState)
    if state is None:
        begin = grid.index(run.now - monitor.label_delay - monitor.lookback)
        return PerformanceState.begin(champion.version, begin, validated_loss=validated)
    if state.version == champion.version:
        return state
    return state.of_version(champion.version, validated_loss=validated)


def _finding(
    run: MonitorRun,
    champion: ModelVersion,
    grid: Cohorts,
    cohort: Cohort,
    verdict: Verdict,
    monitor: PerformanceMonitor,
) -> dict[str, Any]:
    return {
        "monitor": monitor.kind,
        "subject": verdict.measure,
        "version": champion.version,
        "start": grid.start(cohort.index),
        "end": grid.start(cohort.index + 1),
        "rows": verdict.labels,
        "verdict": verdict.kind,
        "value": verdict.mean,
        "reference": verdict.baseline,
        "statistic": verdict.level,
        "threshold": monitor.threshold,
        "text": verdict.text,
        "judged_at": run.now,
    }


def _figures(
    run: MonitorRun,
    champion: ModelVersion,
    grid: Cohorts,
    index: int,
    rows: Scored,
    monitor: PerformanceMonitor,
) -> Iterator[dict[str, Any]]:
    """Measure AUC and calibration with intervals, where each row has one probability and enough have labels.

    The figures are on record and not judged: `surprise`, `overstated` and `understated` are.
    """
    known = np.isin(rows.label, (0.0, 1.0)) & np.isfinite(rows.expected)
    if known.sum() < monitor.min_labels:
        return
    label, p = rows.label[known], rows.output[known]
    gap = p - label
    figures = {"calibration": (float(gap.mean()), float(gap.std(ddof=1) / np.sqrt(len(gap))))}
    ranked = auc_with_error(label, p)
    if ranked is not None:
        figures["auc"] = ranked
    for name, (value, error) in figures.items():
        yield {
            "monitor": monitor.kind,
            "subject": name,
            "version": champion.version,
            "start": grid.start(index),
            "end": grid.start(index + 1),
            "rows": len(label),
            "verdict": "measured",
            "value": value,
            "statistic": error,
            "text": f"{name} {value:.4f}, 95 % interval {value - _Z_95 * error:.4f} to {value + _Z_95 * error:.4f}",
            "judged_at": run.now,
        }


_Z_95 = 1.96  # half width of a 95 % interval, in standard errors


def _alarm(
    run: MonitorRun,
    champion: ModelVersion,
    grid: Cohorts,
    index: int,
    verdict: Verdict,
    monitor: PerformanceMonitor,
) -> Alarm:
    return Alarm(
        key=f"{run.model}/{monitor.kind}/{verdict.measure}/{champion.version}/{index}",
        model=run.model,
        monitor=monitor.kind,
        subject=verdict.measure,
        version=champion.version,
        raised_at=run.now,
        start=grid.start(index),
        end=grid.start(index + 1),
        text=verdict.text,
        statistic=verdict.level,
        threshold=monitor.threshold,
    )


def monitor_run(model: str) -> MonitorRun:
    """Begin a run of a monitor now, in the context's store."""
    used = context()
    return MonitorRun(model=model, store=used.store, alarms=alarms(model), now=used.clock())


def alarms(model: str) -> Alarms:
    """Return the journal of alarms of `model` in the context's store."""
    used = context()
    return Alarms(model, store=used.store, clock=used.clock, actor=used.actor, publish=_publish)


def _publish(topic: str, payload: dict[str, object], key: str) -> object:
    return publish(topic, payload, key=key)
