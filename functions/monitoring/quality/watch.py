"""Run of the data-quality monitor: the prediction log and the views behind it, cohort by cohort.

Faults make incidents, which say when they began, when they were over, and which cohorts they spoiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from toque.featurestore import FeatureStore, FeatureView, Freshness, InRange, UnknownDefinition, newest_event
from toque.functions.monitoring.alarms import Alarm
from toque.functions.monitoring.drift.watch import TIMES
from toque.functions.monitoring.logged_features import FeatureColumns, feature_table, has_vector_length
from toque.functions.monitoring.quality.faults import find_faults
from toque.functions.monitoring.quality.monitor import (
    CohortSummary,
    ColumnProfile,
    Fault,
    Incident,
    QualityMonitor,
    QualityState,
    QualityVerdict,
    Range,
    Span,
    ViewAge,
)
from toque.functions.monitoring.results import Cohorts
from toque.functions.monitoring.watch import MonitorResult, MonitorRun, ReadRows
from toque.registry import ModelVersion, ObjectStore, Table
from toque.registry.times import epoch_us

_MAX_SPANS = 256  # incidents that the state keeps, for drift found later over the same rows


@dataclass(frozen=True, slots=True)
class Views:
    """Feature views behind a model's columns. columns: for each view, its features and the model's columns they are.

    service: the feature service that names them; None without a service.
    """

    store: FeatureStore
    columns: Sequence[tuple[FeatureView, Mapping[str, str]]]
    service: str | None = None

    @classmethod
    def of(cls, store: FeatureStore, version: ModelVersion) -> Views:
        """Find the views of the version's feature service; empty if it names no service, or the service is gone."""
        name = version.tags.get("feature_service")
        try:
            projections = () if name is None else store.get_feature_service(name).projections
        except UnknownDefinition:
            projections = ()
        logged = FeatureColumns.of(version)
        read, found = {*logged.numeric, *logged.categorical}, []
        for one in projections:
            columns = {a: b for a, b in zip(one.features, one.columns, strict=True) if b in read}
            if columns and isinstance(one.view, FeatureView):
                found.append((one.view, columns))
        return cls(store, found, name if projections else None)

    def ranges(self) -> dict[str, Range]:
        """Ranges that the views expect of the model's columns (`InRange`)."""
        return {
            columns[one.column]: (one.least, one.most)
            for view, columns in self.columns
            for one in view.expectations
            if isinstance(one, InRange) and one.column in columns
        }

    def digests(self) -> dict[str, str]:
        """Return the digest of each view's current definition."""
        return {} if self.service is None else self.store.definitions_digest(self.service)

    def ages(self, monitor: QualityMonitor) -> tuple[ViewAge, ...]:
        """Find the age of the newest row of each view that has a limit on it."""
        limited = [
            (view, columns, monitor.max_age.get(view.name, _most_age(view))) for view, columns in self.columns
        ]
        return tuple(
            ViewAge(view=view.name, columns=tuple(columns.values()), age=self._age(view), most=most)
            for view, columns, most in limited
            if most is not None
        )

    def _age(self, view: FeatureView) -> timedelta | None:
        newest = newest_event(self.store, view)
        return None if newest is None else self.store.now() - newest


def _most_age(view: FeatureView) -> timedelta | None:
    """Return the age that the view expects of its newest row; else its ttl, after which no value may be used."""
    return next((one.most for one in view.expectations if isinstance(one, Freshness)), view.ttl)


def watch_rows(
    run: MonitorRun, champion: ModelVersion, monitor: QualityMonitor, read: ReadRows, views: Views
) -> MonitorResult:
    """Judge each cohort that is due, and raise and close incidents.

    read: logged predictions in [start, end), with `numeric` and `categorical`.
    """
    grid, due = Cohorts(monitor.cohort), Cohorts(monitor.cohort).index(run.now - monitor.delay)
    monitor = monitor.model_copy(update={"ranges": views.ranges() | monitor.ranges})
    state = _state(run, champion, monitor, grid)
    first = state.next_cohort
    if first >= due:
        return run.nothing_due(monitor, champion, first, monitor.delay)
    ages = views.ages(monitor)
    alarms, findings = [], []
    for cohort in _summaries(read(grid.start(first), grid.start(due)), champion, monitor, first, due):
        newest = cohort.model_copy(update={"views": ages}) if cohort.index == due - 1 else cohort
        state, verdict = judge(state, newest, monitor)
        findings += _findings(run, champion, grid, verdict)
        alarms += [_alarm(run, champion, grid, kind, verdict) for kind in verdict.changed]
    return run.conclude(
        monitor,
        champion,
        state,
        range(first, due),
        text="; ".join(one.text for one in state.open.values()) or "no incident",
        findings=findings,
        alarms=alarms,
    )


def spoiled_columns(
    run: MonitorRun, monitor: QualityMonitor
) -> Callable[[datetime, datetime], Mapping[str, str]]:
    """Return a lookup of the columns that an incident spoiled between two times, with the key of its alarm."""
    state, grid = run.load_state(monitor, QualityState), Cohorts(monitor.cohort)

    def between(start: datetime, end: datetime) -> Mapping[str, str]:
        last = grid.index(end - timedelta(microseconds=1))
        alarm_names = spoiled(state, grid.index(start), last)
        return {column: f"{run.model}/{name}" for column, name in alarm_names.items()}

    return between


def _summaries(
    rows: pa.Table, champion: ModelVersion, monitor: QualityMonitor, first: int, due: int
) -> Iterator[CohortSummary]:
    """Summarise each cohort, empty ones included."""
    logged, grid = FeatureColumns.of(champion), Cohorts(monitor.cohort)
    rows = rows.filter(pc.invert(rows["shadow"])).sort_by([("predicted_at", "ascending")])
    own = rows.filter(pc.equal(rows["version"], champion.version))  # others may read other features
    features = feature_table(rows, logged)
    edges = [epoch_us(grid.start(index)) for index in range(first, due + 1)]
    kept = logged.select(monitor.columns)
    for place, index in enumerate(range(first, due)):
        whole_cohort, own_cohort = _cut(rows, edges, place), _cut(own, edges, place)
        yield CohortSummary(
            index=index,
            rows=whole_cohort.num_rows,
            misfit=own_cohort.num_rows - int(pc.sum(has_vector_length(own_cohort, logged)).as_py() or 0),
            duplicates=whole_cohort.num_rows - pc.count_distinct(whole_cohort["prediction_id"]).as_py(),
            columns=_profiles(index, _cut(features, edges, place), kept, monitor),
        )


def _cut(rows: pa.Table, edges: Sequence[int], place: int) -> pa.Table:
    """Cut the rows of one cohort out of rows in order of time."""
    at = rows["predicted_at"].cast(pa.int64()).to_numpy()
    start, end = np.searchsorted(at, edges[place : place + 2])
    return rows.slice(start, end - start)


def _profiles(
    index: int, rows: pa.Table, columns: FeatureColumns, monitor: QualityMonitor
) -> dict[str, ColumnProfile]:
    """Profile the columns that `rows` has."""
    there = set(rows.column_names)
    found = {
        name: ColumnProfile.of_numbers(
            index, _numbers(rows[name]), allowed=monitor.ranges.get(name, (None, None))
        )
        for name in columns.numeric
        if name in there
    }
    words = {name: rows[name].cast(pa.string()) for name in columns.categorical if name in there}
    return found | {name: ColumnProfile.of_words(index, column) for name, column in words.items()}


def _numbers(column: pa.ChunkedArray) -> Any:
    return pc.fill_null(column.cast(pa.float64(), safe=False), float("nan")).to_numpy()


def _state(run: MonitorRun, champion: ModelVersion, monitor: QualityMonitor, grid: Cohorts) -> QualityState:
    """Load the state; a new champion is compared with the rows it learnt from."""
    state = run.load_state(monitor, QualityState)
    if state is None:
        begin = grid.index(run.now - monitor.delay - monitor.lookback)
        history = _training_history(run.store, champion, monitor)
        return QualityState(version=champion.version, next_cohort=begin, history=history)
    if state.version == champion.version and state.history:
        return state
    history = state.history | _training_history(run.store, champion, monitor)
    return state.model_copy(update={"version": champion.version, "history": history})


def _training_history(
    store: ObjectStore, version: ModelVersion, monitor: QualityMonitor
) -> dict[str, tuple[ColumnProfile, ...]]:
    """Profile the last cohorts of the version's training set; empty without a training set, or without times."""
    if not version.lineage.datasets:
        return {}
    snapshot = version.lineage.datasets[0]
    table = Table(store, snapshot.name)
    there = set(table.schema().names) if table.exists() else set()
    time = next((name for name in TIMES if name in there), None)
    if time is None:
        return {}
    columns = FeatureColumns.of(version).select(monitor.columns)
    wanted = [name for name in (*columns.numeric, *columns.categorical, time) if name in there]
    rows = table.read(version=snapshot.version, columns=wanted)
    at = rows[time].cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
    index = at // (monitor.cohort // timedelta(microseconds=1))
    found: dict[str, list[ColumnProfile]] = {}
    for one in np.unique(index)[-monitor.history :].tolist():
        cohort = rows.filter(pa.array(index == one))
        for name, profile in _profiles(one, cohort, columns, monitor).items():
            if profile.rows >= monitor.min_rows:
                found.setdefault(name, []).append(profile)
    return {name: tuple(profiles) for name, profiles in found.items()}


def _findings(
    run: MonitorRun, champion: ModelVersion, grid: Cohorts, verdict: QualityVerdict
) -> list[dict[str, Any]]:
    """Make one row for the cohort, and one for each fault."""
    faults = [
        {
            "subject": one.key,
            "verdict": "incident",
            "value": one.value,
            "threshold": one.limit,
            "text": one.text,
        }
        for one in verdict.faults
    ]
    whole: dict[str, Any] = {
        "subject": "rows",
        "verdict": "incident" if faults else "ok",
        "value": float(verdict.rows),
    }
    common = {
        "monitor": "quality",
        "version": champion.version,
        "start": grid.start(verdict.cohort),
        "end": grid.start(verdict.cohort + 1),
        "rows": verdict.rows,
        "judged_at": run.now,
    }
    return [common | one for one in (whole, *faults)]


def _alarm(
    run: MonitorRun, champion: ModelVersion, grid: Cohorts, kind: Fault, verdict: QualityVerdict
) -> Alarm:
    """Make one alarm for all open incidents of a kind, or for their end."""
    incidents = verdict.changed[kind]
    columns = sorted({name for one in incidents for name in one.columns})
    return Alarm(
        key=f"{run.model}/{alarm_name(kind, verdict.cohort)}",
        model=run.model,
        monitor="quality",
        subject=kind,
        version=champion.version,
        raised_at=run.now,
        start=grid.start(min((one.since for one in incidents), default=verdict.cohort)),
        end=grid.start(verdict.cohort + 1),
        text="; ".join(one.text for one in incidents) or f"{kind}: all is well again",
        statistic=incidents[0].value if incidents else None,
        threshold=incidents[0].limit if incidents else None,
        recovered=not incidents,
        columns=tuple(columns),
    )


def judge(
    state: QualityState, cohort: CohortSummary, monitor: QualityMonitor
) -> tuple[QualityState, QualityVerdict]:
    """Judge one more cohort: return the state after it and the verdict; what could not be judged stays as it was."""
    answers = dict(find_faults(state, cohort, monitor))
    found = {key: fault for key, fault in answers.items() if fault is not None}
    over = {
        key
        for key, one in state.open.items()
        if _no_longer_read(one, cohort)
        or (key in answers and key not in found and cohort.index - one.seen >= monitor.recover)
    }
    still = {key: one for key, one in state.open.items() if key not in over}
    opened = {key: _continued(state.open.get(key), fault) for key, fault in found.items()}
    after = still | opened
    verdict = QualityVerdict(
        cohort=cohort.index,
        rows=cohort.rows,
        faults=tuple(opened.values()),
        changed=_changed(state.open, after),
    )
    history, volumes = _healthy(state, cohort, monitor, after)
    remembered = {
        "next_cohort": cohort.index + 1,
        "history": history,
        "volumes": volumes,
        "open": after,
        "spans": _spans(state, after, over, cohort.index),
    }
    return state.model_copy(update=remembered), verdict


def spoiled(state: QualityState | None, first: int, last: int) -> Mapping[str, str]:
    """Find the columns spoiled in one of the cohorts `first` to `last`, each with the name of its alarm."""
    spans = () if state is None else state.spans
    return {
        span.column: span.told
        for span in spans
        if span.first <= last and (span.last is None or span.last >= first)
    }


def alarm_name(fault: Fault, index: int) -> str:
    """Return the name of the alarm that cohort `index` raises about `fault`."""
    return f"quality/{fault}/{index}"


def _no_longer_read(incident: Incident, cohort: CohortSummary) -> bool:
    """Whether the model no longer reads any of the columns."""
    return bool(incident.columns) and not any(name in cohort.columns for name in incident.columns)


def _continued(before: Incident | None, now: Incident) -> Incident:
    return now if before is None else now.model_copy(update={"since": before.since})


def _changed(
    before: Mapping[str, Incident], after: Mapping[str, Incident]
) -> dict[Fault, tuple[Incident, ...]]:
    kinds = {before[key].fault if key in before else after[key].fault for key in before.keys() ^ after.keys()}
    return {kind: tuple(one for one in after.values() if one.fault == kind) for kind in sorted(kinds)}


def _healthy(
    state: QualityState, cohort: CohortSummary, monitor: QualityMonitor, incidents: Mapping[str, Incident]
) -> tuple[dict[str, tuple[ColumnProfile, ...]], tuple[int, ...]]:
    """Add the healthy columns of this cohort to the history; a broken feed must not become its own norm."""
    broken = {column for one in incidents.values() for column in one.columns}
    history = dict(state.history)
    for name, profile in cohort.columns.items():
        if name not in broken and profile.rows >= monitor.min_rows:
            history[name] = (*history.get(name, ()), profile)[-monitor.history :]
    before_any = not state.volumes and cohort.rows == 0
    if "volume:rows" in incidents or before_any:
        return history, state.volumes
    return history, (*state.volumes, cohort.rows)[-monitor.history :]


def _spans(
    state: QualityState, incidents: Mapping[str, Incident], over: Iterable[str], index: int
) -> tuple[Span, ...]:
    ended = {key: state.open[key].seen for key in over}
    kept = [
        span.model_copy(update={"last": ended[span.incident]})
        if span.last is None and span.incident in ended
        else span
        for span in state.spans
    ]
    for key, one in incidents.items():
        if key not in state.open:
            told = alarm_name(one.fault, index)
            kept += [Span(column=name, incident=key, told=told, first=one.since) for name in one.columns]
    return tuple(kept[-_MAX_SPANS:])
