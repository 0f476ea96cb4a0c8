"""Training–serving skew monitor: compares served feature values with those of training, from a version's first hour on.

Two checks, both of the pipeline, so that neither leads to a retrain. First hours: are the served values distributed as those of
the training set, but for what an hour may differ from a month? Recomputed: does the offline store, asked for the same moment,
give the values that were logged?
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from toque.featurestore import skew_report
from toque.functions.monitoring.alarms import Alarm
from toque.functions.monitoring.drift.monitor import DriftMonitor, compare_window
from toque.functions.monitoring.drift.watch import reference_of
from toque.functions.monitoring.logged_features import (
    FeatureColumns,
    feature_table,
    has_vector_length,
    sample_rows,
)
from toque.functions.monitoring.quality.watch import Views
from toque.functions.monitoring.watch import MonitorResult, MonitorRun, ReadRows
from toque.registry import ModelVersion

Subject = Literal["skew in the first hours", "skew against the offline store"]
FIRST: Subject = "skew in the first hours"
RECOMPUTED: Subject = "skew against the offline store"


class SkewMonitor(BaseModel):
    """Settings of the skew monitor: of its look at a version's first hours, and of the rows that it has recomputed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["skew"] = Field(default="skew", description="Kind of the monitor.")
    hours: float = Field(
        le=876_000,
        default=1.0,
        gt=0,
        description="Hours of a version's first answers that are compared with its training set.",
    )
    alpha: float = Field(
        default=0.001,
        gt=0,
        lt=0.5,
        description="False-discovery level over the columns that are compared with the training set.",
    )
    min_effect: float = Field(
        default=0.4,
        gt=0,
        lt=1,
        description=(
            "Difference of shares, also of nulls, below which nothing is skew; "
            "high, as an hour differs from a month."
        ),
    )
    min_rows: int = Field(
        default=50, ge=2, description="Rows of the first hours below which more are waited for."
    )
    sample: int = Field(
        le=10_000_000,
        default=500,
        ge=0,
        description="Most logged rows since the last run that are recomputed from the offline store; 0 for none.",
    )
    max_mismatch: float = Field(
        default=0.01, ge=0, lt=1, description="Share of the recomputed rows in which a feature may differ."
    )
    delay: timedelta = Field(
        default=timedelta(hours=1),
        description=(
            "Age below which rows are recomputed by a later run, as the "
            "offline store may not have all they saw."
        ),
    )


class SkewState(BaseModel):
    """State of the skew monitor. since: start of the version's first hours; looked: until when rows were recomputed.

    judged: whether the first hours were judged; broken: columns, by subject, with an alarm that stands.
    """

    model_config = ConfigDict(frozen=True)

    version: int
    since: AwareDatetime
    looked: AwareDatetime
    judged: bool = False
    broken: dict[str, tuple[str, ...]] = {}


@dataclass(frozen=True, slots=True)
class SkewFinding:
    """Finding of one check: the columns with skew, and a sentence. rows: that were checked."""

    subject: Subject
    rows: int
    columns: tuple[str, ...]
    text: str


def watch_skewed(
    run: MonitorRun, champion: ModelVersion, monitor: SkewMonitor, read: ReadRows, views: Views
) -> MonitorResult:
    """Make both checks on the rows since the last run.

    read: logged predictions in [start, end), with vectors, `missing` and `entities`.
    """
    state = before = _state(run, champion, monitor)
    until = run.now - monitor.delay
    found: list[SkewFinding] = []
    first = _first_hours(run, champion, monitor, state, read)
    if first is not None:
        found.append(first)
        state = state.model_copy(update={"judged": not first.columns})
    if monitor.sample and until > state.looked and views.columns:
        again = _recomputed(champion, monitor, read(state.looked, until), views)
        state = state.model_copy(update={"looked": until})
        found += [again] if again is not None else []
    alarms = [
        _alarm(run, champion, one, before)
        for one in found
        if one.columns != before.broken.get(one.subject, ())
    ]
    broken = state.broken | {one.subject: one.columns for one in found}
    state = state.model_copy(
        update={"broken": {name: columns for name, columns in broken.items() if columns}}
    )
    for alarm in alarms:
        run.alarms.report(alarm)
    run.save_state(monitor.kind, state)
    text = "; ".join(one.text for one in found) or "nothing new to look at"
    return MonitorResult(
        model=run.model,
        monitor=monitor.kind,
        version=champion.version,
        cohorts=len(found),
        text=text,
        alarms=tuple(alarms),
    )


def _state(run: MonitorRun, champion: ModelVersion, monitor: SkewMonitor) -> SkewState:
    """Load the state; a new champion's first hours begin when it is first seen here, less the delay."""
    kept = run.find_state(monitor.kind)
    state = None if kept is None else SkewState.model_validate_json(kept)
    if state is not None and state.version == champion.version:
        return state
    since = run.now - monitor.delay - timedelta(hours=monitor.hours)
    broken = {} if state is None else state.broken
    return SkewState(version=champion.version, since=since, looked=since, broken=broken)


def _first_hours(
    run: MonitorRun, champion: ModelVersion, monitor: SkewMonitor, state: SkewState, read: ReadRows
) -> SkewFinding | None:
    """Check the first hours, and after a finding the last hours, until the skew is over."""
    if state.judged:
        return None
    hours = timedelta(hours=monitor.hours)
    start = max(state.since, run.now - hours) if state.broken.get(FIRST) else state.since
    rows = _answered_rows(read(start, run.now), champion)
    if rows.num_rows < monitor.min_rows:
        return None
    drift = DriftMonitor(
        window=1, alpha=monitor.alpha, min_effect=monitor.min_effect, min_null_change=monitor.min_effect
    )
    reference = reference_of(run, champion, drift, folder="skew/")
    window = reference.sketch.window(feature_table(rows, FeatureColumns.of(champion)))
    report, _ = compare_window(reference, [(0, window)], drift)
    reasons = {one.column: one.reason for one in report.columns}
    wrong = report.drifted
    text = "; ".join(f"{name}: {reasons[name]}" for name in wrong) or "served as learnt"
    return SkewFinding(FIRST, rows.num_rows, wrong, text)


def _recomputed(
    champion: ModelVersion, monitor: SkewMonitor, rows: pa.Table, views: Views
) -> SkewFinding | None:
    """Compare logged features with the offline store as of then; None if no row names its keys."""
    rows = _answered_rows(rows, champion)
    rows = sample_rows(rows.filter(rows["entities"].is_valid()), monitor.sample)
    if not rows.num_rows:
        return None
    logged, keys = feature_table(rows, FeatureColumns.of(champion)), _keys(rows["entities"])
    wrong: dict[str, float] = {}
    for view, columns in views.columns:
        names = [key.name for key in view.join_keys]
        if not set(names) <= set(keys.column_names):
            continue
        served = keys.select(names).append_column("event_timestamp", logged["predicted_at"])
        for feature, column in columns.items():
            served = served.append_column(
                feature, _null_where_missing(logged[column], rows["missing"], column)
            )
        report = skew_report(views.store, served, view)
        shares = {
            columns[name]: count / report.rows for name, count in report.mismatches.items() if name in columns
        }
        wrong |= {name: share for name, share in shares.items() if share > monitor.max_mismatch}
    text = "; ".join(
        f"{name}: {share:.1%} of {rows.num_rows} rows differ" for name, share in sorted(wrong.items())
    )
    return SkewFinding(
        RECOMPUTED, rows.num_rows, tuple(sorted(wrong)), text or f"{rows.num_rows} rows are as recomputed"
    )


def _answered_rows(rows: pa.Table, champion: ModelVersion) -> pa.Table:
    """Select what the version answered, in order of time, with vectors of its signature."""
    own_rows = rows.filter(pc.and_(pc.invert(rows["shadow"]), pc.equal(rows["version"], champion.version)))
    own_rows = own_rows.filter(has_vector_length(own_rows, FeatureColumns.of(champion)))
    return own_rows.sort_by([("predicted_at", "ascending"), ("prediction_id", "ascending")])


def _keys(entities: pa.ChunkedArray) -> pa.Table:
    """Parse the logged JSON objects into one column per key."""
    return pa.Table.from_pylist([json.loads(one) for one in entities.to_pylist()])


def _null_where_missing(values: pa.ChunkedArray, missing: pa.ChunkedArray, column: str) -> pa.Array:
    """Set values to null where the log says that the feature was missing, whatever was used instead."""
    missing_mask = pa.array([column in (one or ()) for one in missing.to_pylist()])
    return pc.if_else(missing_mask, pa.scalar(None, values.type), values.combine_chunks())


def _alarm(run: MonitorRun, champion: ModelVersion, found: SkewFinding, state: SkewState) -> Alarm:
    names: Sequence[str] = found.columns or state.broken.get(found.subject, ())
    start: datetime = state.since if found.subject == FIRST else state.looked
    what = "recovered" if not found.columns else ",".join(names)
    key = f"{run.model}/quality/{found.subject}/{champion.version}/{start.isoformat()}/{what}"
    fields: dict[str, Any] = {"columns": tuple(names), "recovered": not found.columns, "text": found.text}
    return Alarm(
        key=key, model=run.model, monitor="quality", subject=found.subject, version=champion.version,
        raised_at=run.now, start=start, end=run.now, **fields,
    )  # fmt: skip
