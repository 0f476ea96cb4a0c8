"""Run of the drift monitor: logged feature vectors, cohort by cohort, against the sketch of the training set."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from toque.functions.monitoring.budget import budgeted
from toque.functions.monitoring.drift.monitor import DriftMonitor, DriftState, judge, tell
from toque.functions.monitoring.drift.reference import (
    LARGE_ROWS,
    Cycle,
    DatasetRows,
    Months,
    NumberedSketch,
    Reference,
    Season,
    season_of,
    sketch_rows,
)
from toque.functions.monitoring.logged_features import FeatureColumns, feature_table, with_summaries
from toque.functions.monitoring.watch import Course, MonitorResult, MonitorRun, ReadRows
from toque.functions.stats.sketch import TableSketch
from toque.registry import ModelVersion, ObjectStore, Table

_SUBJECT = "features"
TIMES = ("event_timestamp", "prediction_time")
"""Columns of a training set that may hold its rows' time."""
_REFERENCE_COHORTS = 120  # cohorts of the training set from which the likeness of rows is taken
# 0.1 recorded no `reference_rows`: under its default its sketches stay, since their training sets may be gone.
_UNRECORDED_ROWS = 200_000


FindSpoiled = Callable[[datetime, datetime], Mapping[str, str]]
"""For columns that a data-quality incident spoiled between two times, the key of its alarm."""

ReadLogged = Callable[[datetime, datetime], DatasetRows | None]
"""The log between two times as rows of a table that need not be read at once; None before there is one."""


def watch_features(
    run: MonitorRun,
    champion: ModelVersion,
    monitor: DriftMonitor,
    read: ReadRows,
    spoiled: FindSpoiled,
    logged_rows: ReadLogged = lambda _start, _end: None,
) -> MonitorResult:
    """Judge the window that ends with each cohort that is due.

    read: logged predictions in [start, end), with `numeric` and `categorical`. logged_rows: the same, not read yet: of more
    than `LARGE_ROWS` each cohort is sketched in parts.
    """
    course = Course(run, champion, monitor)
    state, grid, due, text = _begun(course), course.grid, course.due, ""
    if state.next_cohort >= due:
        return course.nothing_due(state.next_cohort)
    reference = reference_of(run, champion, monitor)
    state = _in_bins_of(reference.sketch, state, monitor)
    first, decide = state.next_cohort, budgeted(course)
    for index, sketch in _sketches(reference.sketch, course, first, read, logged_rows):
        causes = spoiled(grid.start(index - monitor.window * monitor.n + 1), grid.start(index + 1))
        state, verdict = judge(state, reference, sketch, index, monitor, spoiled=causes, decide=decide)
        tell(course, verdict, state, _SUBJECT, causes)
        text = f"{verdict.rows} rows; drifted in k of n windows: {', '.join(verdict.confirmed) or 'nothing'}"
    return course.conclude(state, range(first, due), text)


def _in_bins_of(like: TableSketch, state: DriftState, monitor: DriftMonitor) -> DriftState:
    """Have the window's cohorts counted again if they were in other bins, as under other settings; none is judged twice."""
    if all(_bins(TableSketch.from_dict(one)) == _bins(like) for one in state.sketches[-1:]):
        return state
    again = min(len(state.sketches), monitor.kept - 1)
    return state.model_copy(update={"sketches": (), "next_cohort": state.next_cohort - again})


def _bins(sketch: TableSketch) -> dict[str, tuple[str, tuple[Any, ...]]]:
    return {name: (column.kind, column.bins) for name, column in sketch.columns.items()}


def _sketches(
    like: TableSketch, course: Course[DriftMonitor], first: int, read: ReadRows, logged: ReadLogged
) -> Iterator[NumberedSketch]:
    """Sketch each of the cohorts that are due, in order."""
    grid, due, columns = course.grid, course.due, FeatureColumns.of(course.champion)
    start, end = grid.start(first), grid.start(due)
    whole = logged(start, end)
    if whole is not None and whole.count() > LARGE_ROWS:
        for index in range(first, due):
            part = logged(grid.start(index), grid.start(index + 1)) or whole
            yield index, sketch_rows(part, like, prepare=partial(feature_table, columns=columns))
        return
    for index, rows in grid.cut(feature_table(read(start, end), columns), first, due):
        yield index, like.window(rows)


def reference_of(
    run: MonitorRun, version: ModelVersion, monitor: DriftMonitor, *, folder: str = ""
) -> Reference:
    """Load the reference of a version from the store, or build it from its training set.

    folder: where a monitor with settings of its own keeps it, as in "skew/", so that two do not replace each other's.
    Raises: ValueError if the version has no training set on record; NotFound if that is gone and no sketch was kept.
    """
    columns = FeatureColumns.of(version).select(monitor.columns)
    names = [*columns.numeric, *columns.categorical, *columns.summaries]
    made = {
        "columns": names,
        "bins": monitor.bins,
        "cohort_s": monitor.cohort.total_seconds(),
        "season": monitor.season,
        "reference_rows": monitor.reference_rows,
    }
    key = f"monitoring/{run.model}/reference/{folder}{version.version}.json"
    kept = run.store.find(key)
    if kept is not None:
        stored: dict[str, Any] = {"reference_rows": _UNRECORDED_ROWS} | json.loads(kept)
        if all(stored.get(name) == value for name, value in made.items()):
            return Reference.from_dict(stored)
    reference = _build(run.store, version, columns, monitor)
    content = made | reference.to_dict()
    run.store.put(key, json.dumps(content).encode())
    return reference


def _build(
    store: ObjectStore, version: ModelVersion, columns: FeatureColumns, monitor: DriftMonitor
) -> Reference:
    if not version.lineage.datasets:
        raise ValueError(
            f"{version.model}@{version.version} has no training set in its lineage; drift is held against it: "
            "register the version with Lineage(datasets=[…])"
        )
    snapshot = version.lineage.datasets[0]
    table = Table(store, snapshot.name)
    there = set(table.schema().names)
    time = next((name for name in TIMES if name in there), None)
    wanted = [*columns.numeric, *columns.categorical, *columns.tensors, *([time] if time else [])]
    present = tuple(name for name in wanted if name in there)
    rows = with_summaries(
        DatasetRows(table, snapshot.version, present).sample(monitor.reference_rows), columns
    )
    numeric = (*columns.numeric, *columns.summaries)
    sketch = TableSketch.reference(rows, numeric=numeric, categorical=columns.categorical, bins=monitor.bins)
    cohorts = _cohort_sketches(rows, sketch, time, monitor) if time else []
    season = _season(cohorts, monitor)
    if season is not None and cohorts:
        return Reference.seasonal(cohorts, season)
    return Reference.of(sketch, [one for _, one in cohorts])


def _season(cohorts: Sequence[NumberedSketch], monitor: DriftMonitor) -> Season | None:
    """Return the declared season, or find one in the training set if it is "auto"."""
    if monitor.season == "year":
        return Months(monitor.cohort)
    if monitor.season == "auto":
        return season_of(cohorts, monitor.periods)
    return Cycle(monitor.periods[0]) if monitor.periods else None


def _cohort_sketches(
    rows: pa.Table, sketch: TableSketch, time: str, monitor: DriftMonitor
) -> list[NumberedSketch]:
    """Sketch each cohort of the training set, or evenly spread ones if there are many and no season is possible."""
    at = rows[time].cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
    index = at // (monitor.cohort // timedelta(microseconds=1))
    order = np.argsort(index, kind="stable")
    present, first = np.unique(index[order], return_index=True)
    places = np.arange(len(present))
    if not monitor.periods and monitor.season != "year":
        places = np.unique(np.linspace(0, len(present) - 1, _REFERENCE_COHORTS).astype(int))
    ends, rows = np.append(first[1:], len(order)), rows.take(pa.array(order))
    return [
        (int(present[one]), sketch.window(rows.slice(first[one], ends[one] - first[one]))) for one in places
    ]


def _begun(course: Course[DriftMonitor]) -> DriftState:
    state, version = course.load(DriftState), course.champion.version
    if state is None:
        return DriftState(version=version, next_cohort=course.begin)
    if state.version == version:
        return state
    # A new champion has another training set: its windows are judged anew, as far back as one window needs.
    begin = min(state.next_cohort, course.due - course.monitor.kept + 1)
    return DriftState(version=version, next_cohort=begin)
