"""Run of the data-quality monitor: the prediction log and the views behind it, cohort by cohort.

Faults make incidents, which say when they began, when they were over, and which cohorts they spoiled. A check that cannot be
answered yields nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from toque.featurestore import FeatureStore, FeatureView, Freshness, InRange, UnknownDefinition, newest_event
from toque.functions.monitoring.drift.watch import TIMES
from toque.functions.monitoring.logged_features import FeatureColumns, feature_table, has_vector_length
from toque.functions.monitoring.quality.monitor import (
    JUMP,
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
    jump_of,
)
from toque.functions.monitoring.results import Cohorts
from toque.functions.monitoring.watch import Course, MonitorResult, MonitorRun, ReadRows
from toque.functions.stats.drift import compare_rates
from toque.registry import ModelVersion, ObjectStore, Table

_CHANCE = 1e-4  # p-value of a share of nulls above which it is no incident
_GONE_SHARE = 0.95  # share of the usual values that must be missing for a column to be gone, however often nulls were usual
_MAX_USUAL_NULLS = 0.8  # share of nulls in a healthy cohort above which a whole cohort of nulls is no fault
_MAX_VARYING_SHARE = 0.9  # a column varies if its most frequent value never had a larger share
_CONSTANT_SHARE = 0.999
_NO_ROW_S = 1e12  # age of a view without a row: 30,000 years, as no alarm holds infinity
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
        """Find the age of the newest row of each view that has a limit on it: its expectation, or its ttl, after which no value may be used."""
        found = []
        for view, columns in self.columns:
            expected = next((one.most for one in view.expectations if isinstance(one, Freshness)), view.ttl)
            most = monitor.max_age.get(view.name, expected)
            if most is not None:
                newest = newest_event(self.store, view)
                age = None if newest is None else self.store.now() - newest
                found.append(ViewAge(view=view.name, columns=tuple(columns.values()), age=age, most=most))
        return tuple(found)


def watch_rows(
    run: MonitorRun, champion: ModelVersion, monitor: QualityMonitor, read: ReadRows, views: Views
) -> MonitorResult:
    """Judge each cohort that is due, and raise and close incidents.

    read: logged predictions in [start, end), with `numeric` and `categorical`.
    """
    course = Course(run, champion, monitor.model_copy(update={"ranges": views.ranges() | monitor.ranges}))
    state, grid, due = _begun(course), course.grid, course.due
    first = state.next_cohort
    if first >= due:
        return course.nothing_due(first)
    ages = views.ages(monitor)
    for cohort in _summaries(read(grid.start(first), grid.start(due)), course, first):
        newest = cohort.model_copy(update={"views": ages}) if cohort.index == due - 1 else cohort
        state, verdict = judge(state, newest, course.monitor)
        _tell(course, verdict)
    text = "; ".join(incident.text for incident in state.open.values()) or "no incident"
    return course.conclude(state, range(first, due), text)


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


def _summaries(rows: pa.Table, course: Course[QualityMonitor], first: int) -> Iterator[CohortSummary]:
    """Summarise each cohort, empty ones included."""
    logged, version = FeatureColumns.of(course.champion), course.champion.version
    rows = rows.filter(pc.invert(rows["shadow"])).sort_by([("predicted_at", "ascending")])
    own = rows.filter(pc.equal(rows["version"], version))  # others may read other features
    kept = logged.select(course.monitor.columns)
    parts = (course.grid.cut(table, first, course.due) for table in (rows, own, feature_table(rows, logged)))
    for (index, cohort), (_, own_cohort), (_, features) in zip(*parts, strict=True):
        yield CohortSummary(
            index=index,
            rows=cohort.num_rows,
            misfit=own_cohort.num_rows - int(pc.sum(has_vector_length(own_cohort, logged)).as_py() or 0),
            duplicates=cohort.num_rows - pc.count_distinct(cohort["prediction_id"]).as_py(),
            columns=_profiles(index, features, kept, course.monitor),
        )


def _profiles(
    index: int, rows: pa.Table, columns: FeatureColumns, monitor: QualityMonitor
) -> dict[str, ColumnProfile]:
    """Profile the columns that `rows` has."""
    there = set(rows.column_names)
    numbers = {
        name: pc.fill_null(rows[name].cast(pa.float64(), safe=False), float("nan")).to_numpy()
        for name in columns.numeric
        if name in there
    }
    found = {
        name: ColumnProfile.of_numbers(index, values, allowed=monitor.ranges.get(name, (None, None)))
        for name, values in numbers.items()
    }
    words = {name: rows[name].cast(pa.string()) for name in columns.categorical if name in there}
    return found | {name: ColumnProfile.of_words(index, column) for name, column in words.items()}


def _begun(course: Course[QualityMonitor]) -> QualityState:
    """Load the state; a new champion is compared with the rows it learnt from."""
    state, version = course.load(QualityState), course.champion.version
    if state is not None and state.version == version and state.history:
        return state
    history = _training_history(course.run.store, course.champion, course.monitor)
    if state is None:
        return QualityState(version=version, next_cohort=course.begin, history=history)
    return state.model_copy(update={"version": version, "history": state.history | history})


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


def _tell(course: Course[QualityMonitor], verdict: QualityVerdict) -> None:
    """Add a finding on the cohort and on each fault, and an alarm for all open incidents of a kind, or for their end."""
    index, rows = verdict.cohort, verdict.rows
    course.find("rows", "incident" if verdict.faults else "ok", index, rows=rows, value=float(rows))
    for fault in verdict.faults:
        course.find(
            fault.key,
            "incident",
            index,
            rows=rows,
            value=fault.value,
            threshold=fault.limit,
            text=fault.text,
        )
    for kind, incidents in verdict.changed.items():
        course.alarm(
            f"{kind}/{index}",
            kind,
            index,
            window=index - min((incident.since for incident in incidents), default=index) + 1,
            text="; ".join(incident.text for incident in incidents) or f"{kind}: all is well again",
            statistic=incidents[0].value if incidents else None,
            threshold=incidents[0].limit if incidents else None,
            recovered=not incidents,
            columns=tuple(sorted({name for incident in incidents for name in incident.columns})),
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
        if (one.columns and cohort.columns.keys().isdisjoint(one.columns))  # the model reads none of them now
        or (key in answers and key not in found and cohort.index - one.seen >= monitor.recover)
    }
    still = {key: one for key, one in state.open.items() if key not in over}
    opened = {
        key: fault.model_copy(update={"since": state.open.get(key, fault).since})
        for key, fault in found.items()
    }
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
            told = f"quality/{one.fault}/{index}"  # the alarm's key, behind the model
            kept += [Span(column=name, incident=key, told=told, first=one.since) for name in one.columns]
    return tuple(kept[-_MAX_SPANS:])


def find_faults(
    state: QualityState, cohort: CohortSummary, monitor: QualityMonitor
) -> Iterator[tuple[str, Incident | None]]:
    """Run every check that can be answered on a cohort; yield its key, and the fault or None."""
    yield from _of_rows(state, cohort, monitor)
    for age in cohort.views:
        yield f"freshness:{age.view}", _stale(age, cohort.index)
    for name, profile in cohort.columns.items():
        if profile.rows >= monitor.min_rows:
            past = [
                one for one in state.history.get(name, ()) if one.index >= cohort.index - 2 * monitor.history
            ]
            yield from _of_column(name, profile, past, state, monitor)


def _of_rows(
    state: QualityState, cohort: CohortSummary, monitor: QualityMonitor
) -> Iterator[tuple[str, Incident | None]]:
    if len(state.volumes) >= monitor.min_history and max(state.volumes) >= monitor.min_rows:
        yield "volume:rows", _wrong_volume(state.volumes, cohort, monitor)
    if cohort.rows < monitor.min_rows:
        return
    shares: tuple[tuple[Fault, int, float, str], ...] = (
        ("schema", cohort.misfit, monitor.max_misfit, "have vectors of another length than the signature"),
        ("duplicates", cohort.duplicates, monitor.max_duplicates, "repeat the id of an earlier one"),
    )
    for fault, count, most, what in shares:
        share = count / cohort.rows
        text = f"{count} of {cohort.rows} rows {what}; at most {most:.1%}"
        yield (
            f"{fault}:rows",
            _incident(fault, "rows", (), text, share, most, cohort.index) if share > most else None,
        )


def _wrong_volume(volumes: Sequence[int], cohort: CohortSummary, monitor: QualityMonitor) -> Incident | None:
    fewest, most = min(volumes) * monitor.min_volume, max(volumes) * monitor.max_volume
    if fewest <= cohort.rows <= most:
        return None
    limit = fewest if cohort.rows < fewest else most
    usual = f"healthy cohorts had {min(volumes)} to {max(volumes)}"
    text = f"{cohort.rows} rows; {usual}, and {limit:.0f} is the {'least' if cohort.rows < fewest else 'most'} allowed"
    return _incident("volume", "rows", (), text, cohort.rows, limit, cohort.index)


def _stale(age: ViewAge, index: int) -> Incident | None:
    if age.age is not None and age.age <= age.most:
        return None
    text = (
        f"view {age.view}: "
        + ("it has no row" if age.age is None else f"the newest row is {age.age} old")
        + f"; at most {age.most}"
    )
    seconds = _NO_ROW_S if age.age is None else age.age.total_seconds()
    return _incident("freshness", age.view, age.columns, text, seconds, age.most.total_seconds(), index)


def _of_column(
    name: str,
    now: ColumnProfile,
    past: Sequence[ColumnProfile],
    state: QualityState,
    monitor: QualityMonitor,
) -> Iterator[tuple[str, Incident | None]]:
    if past:
        yield f"nulls:{name}", _too_many_nulls(name, now, past, monitor)
    if now.present < monitor.min_rows:
        return
    share, most = now.outside / now.present, monitor.max_outside
    text = f"{name}: {now.outside} of {now.present} values are beyond the declared range or infinite"
    found = _incident("ranges", name, (name,), text, share, most, now.index) if share > most else None
    yield f"ranges:{name}", found
    if len(past) >= monitor.min_history:
        yield f"constant:{name}", _constant(name, now, past)
        if (
            name in monitor.units
        ):  # a delay jumps tenfold in a storm: without a declared unit that is no fault
            yield from _changed_unit(
                name, now, past, monitor.units[name], already=f"unit:{name}" in state.open
            )


def _too_many_nulls(
    name: str, now: ColumnProfile, past: Sequence[ColumnProfile], monitor: QualityMonitor
) -> Incident | None:
    worst = max(past, key=lambda one: one.null_share)
    usual = worst.null_share
    limit = min(usual + max(monitor.max_null_rise, 2 * usual), usual + _GONE_SHARE * (1 - usual))
    if now.null_share <= limit or usual > _MAX_USUAL_NULLS:
        return None
    if compare_rates((worst.nulls, now.nulls), (worst.rows, now.rows)).p > _CHANCE:
        return None
    text = f"{name}: {now.null_share:.1%} of {now.rows} values are missing; at most {usual:.1%} were"
    return _incident("nulls", name, (name,), text, now.null_share, limit, now.index)


def _constant(name: str, now: ColumnProfile, past: Sequence[ColumnProfile]) -> Incident | None:
    if now.top_share < _CONSTANT_SHARE or max(one.top_share for one in past) > _MAX_VARYING_SHARE:
        return None
    text = f"{name}: {now.top_share:.1%} of {now.present} values are the same; it always varied"
    return _incident("constant", name, (name,), text, now.top_share, _CONSTANT_SHARE, now.index)


def _changed_unit(
    name: str, now: ColumnProfile, past: Sequence[ColumnProfile], unit: str, *, already: bool
) -> Iterator[tuple[str, Incident | None]]:
    """Check for a changed unit; once found, it is over when the values are back."""
    quartiles = [one.quartiles for one in past if one.quartiles]
    jump = jump_of(quartiles, now.quartiles, unit=unit) if now.quartiles and len(quartiles) > 1 else None
    if jump is None:
        return
    if not jump.is_jump or (jump.conversion is None and not already):
        yield f"unit:{name}", None
        return
    conversion = jump.conversion
    what = "another unit" if conversion is None else f"{conversion.source} to {conversion.target}"
    text = (
        f"{name}: unit changed ({what}): its quartiles jumped by {jump.spreads:.1f} spreads between cohorts"
    )
    yield f"unit:{name}", _incident("unit", name, (name,), text, jump.spreads, JUMP, now.index)


def _incident(
    fault: Fault, about: str, columns: tuple[str, ...], text: str, value: float, limit: float, index: int
) -> Incident:
    return Incident(
        fault=fault,
        about=about,
        columns=columns,
        text=text,
        value=value,
        limit=limit,
        since=index,
        seen=index,
    )
