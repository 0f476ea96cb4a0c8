"""Run of a monitor: read the cohorts that are due, judge them, raise alarms, record findings, save the state.

A run reads each row once and keeps its state in the store. Alarms are raised first, then findings recorded, then the state
saved: a run that dies in between is repeated by the next to the same effect.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from toque.functions.monitoring.alarms import Alarm, Alarms
from toque.functions.monitoring.results import COHORT_S, Cohorts, CohortState, record
from toque.functions.monitoring.settings import CohortMonitor
from toque.functions.runtime.context import context
from toque.functions.runtime.triggers.events import publish
from toque.registry import ModelVersion, ObjectStore
from toque.registry.times import EPOCH

_State = TypeVar("_State", bound=CohortState)
_Monitor = TypeVar("_Monitor", bound=CohortMonitor)
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

    def load_state(self, monitor: CohortMonitor, kind: type[_State]) -> _State | None:
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

    def _near(self, at: datetime) -> bool:
        """Whether a time is as long after the epoch as now is, within a quarter: grids differ by a factor of two at least."""
        return abs(at - self.now) < (self.now - EPOCH) / 4

    def _key(self, monitor: str) -> str:
        return f"monitoring/{self.model}/state/{monitor}.json"


@dataclass(slots=True)
class Course(Generic[_Monitor]):
    """Course of a run: which cohorts are due, what was found in them, and the alarms that it leads to."""

    run: MonitorRun
    champion: ModelVersion
    monitor: _Monitor
    findings: list[dict[str, Any]] = field(default_factory=list)
    alarms: list[Alarm] = field(default_factory=list)

    @property
    def grid(self) -> Cohorts:
        """Cohorts that the monitor judges."""
        return Cohorts(self.monitor.cohort)

    @property
    def due(self) -> int:
        """Number of the first cohort that is not judged yet, whatever the state: those before it have ended and waited."""
        return self.grid.index(self.run.now - self.monitor.wait)

    @property
    def begin(self) -> int:
        """Number of the first cohort of a monitor without a state."""
        return self.grid.index(self.run.now - self.monitor.wait - self.monitor.lookback)

    def load(self, kind: type[_State]) -> _State | None:
        """Load the state of the monitor, as of `MonitorRun.load_state`."""
        return self.run.load_state(self.monitor, kind)

    def find(self, subject: str, verdict: str, cohort: int, *, window: int = 1, **figures: Any) -> None:
        """Add a finding on the `window` cohorts up to one, included. figures: other columns of `RESULTS`."""
        self.findings.append(
            {
                "monitor": self.monitor.kind,
                "subject": subject,
                "version": self.champion.version,
                "start": self.grid.start(cohort - window + 1),
                "end": self.grid.start(cohort + 1),
                "verdict": verdict,
                "judged_at": self.run.now,
                **figures,
            }
        )

    def alarm(self, name: str, subject: str, cohort: int, *, window: int = 1, **fields: Any) -> None:
        """Add an alarm on the `window` cohorts up to one, included. name: ends its key; fields: other fields of `Alarm`."""
        about: dict[str, Any] = {"monitor": self.monitor.kind} | fields
        self.alarms.append(
            Alarm(
                key=f"{self.run.model}/{self.monitor.kind}/{name}",
                model=self.run.model,
                subject=subject,
                version=self.champion.version,
                raised_at=self.run.now,
                start=self.grid.start(cohort - window + 1),
                end=self.grid.start(cohort + 1),
                **about,
            )
        )

    def result(self, text: str, **fields: Any) -> MonitorResult:
        """Make the result of the run."""
        about = {"monitor": self.monitor.kind, "version": self.champion.version, "text": text}
        return MonitorResult(model=self.run.model, **about | fields)

    def nothing_due(self, first: int) -> MonitorResult:
        """Return the result of a run before cohort `first` is due, which says when that is."""
        return self.result(f"no cohort is due: {self.grid.when_due(first, self.monitor.wait)}")

    def conclude(self, state: BaseModel, cohorts: range, text: str) -> MonitorResult:
        """End a run over `cohorts`: raise alarms, record findings, and save the state last."""
        run, monitor = self.run, self.monitor
        new = tuple(alarm for alarm in self.alarms if run.alarms.report(alarm))
        length_s = int(monitor.cohort.total_seconds())
        record(run.store, run.model, f"{monitor.kind}/{length_s}", self.findings, upto=cohorts.stop)
        run.save_state(monitor.kind, state, cohort=monitor.cohort)
        return self.result(text, cohorts=len(cohorts), alarms=new)


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
