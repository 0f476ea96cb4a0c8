"""Drift monitor of a version's answers, whatever their outcome: later cohorts are held against its own first ones.

Answers on the training set are surer than any that follow, so they are no reference. What is compared follows from the
outcome: a probability, number, rate or score as it is; of classes the one that is most probable and how probable it is; of several
labels each one; of a vector its figures; of a text its length.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, model_validator

from toque.functions.evaluation.outcome_kinds import OutcomeKind, outcome_kind
from toque.functions.monitoring.budget import budgeted
from toque.functions.monitoring.drift.monitor import DriftMonitor, DriftState, alarms_of, findings_of, judge
from toque.functions.monitoring.drift.reference import Reference
from toque.functions.monitoring.logged_features import summaries
from toque.functions.monitoring.results import Cohorts
from toque.functions.monitoring.settings import (
    Bins,
    CohortLength,
    Delay,
    FalseDiscovery,
    LastWindows,
    Lookback,
    MinEffect,
    MinNullChange,
    Window,
    WindowsDrifted,
    check_windows,
)
from toque.functions.monitoring.watch import MonitorResult, MonitorRun, ReadRows
from toque.functions.stats.sketch import TableSketch
from toque.registry import ModelVersion
from toque.registry.times import epoch_us

ANSWERED = ("prediction_id", "version", "shadow", "predicted_at", "latency_ms", "outputs")
"""Columns of the log that tell of answers."""
_SUBJECT = "answers"
_MOST_LABELS = 20  # that are watched one by one
_LIKELY = 0.5
_PATIENCE = 4  # times as many cohorts are searched for enough with answers


class AnswerMonitor(BaseModel):
    """Settings of the drift monitor of answers, which judges windows as `DriftMonitor` does."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["answers"] = Field(default="answers", description="Kind of the monitor.")
    cohort: CohortLength = timedelta(days=1)
    delay: Delay = timedelta(hours=1)
    reference_cohorts: int = Field(
        default=7,
        ge=2,
        description="First cohorts of a version with `min_rows` answers, which later ones are held against.",
    )
    window: Window = 3
    bins: Bins = 20
    alpha: FalseDiscovery = 0.01
    min_effect: MinEffect = 0.15
    min_null_change: MinNullChange = 0.1
    min_rows: int = Field(
        default=30,
        ge=2,
        description=(
            "Answers, counted by what they are worth, below which a column is insufficient; "
            "also those of a reference cohort."
        ),
    )
    k: WindowsDrifted = 1
    n: LastWindows = 1
    lookback: Lookback = timedelta(days=10)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_windows(self.k, self.n)
        return self

    @property
    def windows(self) -> DriftMonitor:
        """Monitor by which windows of answers are judged, once there is a reference."""
        return DriftMonitor(**self.model_dump(exclude={"kind", "reference_cohorts"}))


def watch_version(
    run: MonitorRun, champion: ModelVersion, monitor: AnswerMonitor, read: ReadRows
) -> MonitorResult:
    """Judge the window that ends with each cohort of answers that is due.

    read: columns to compare of the champion's answers in [start, end), with `predicted_at`, in order of time, as `answer_table`
    makes them.
    """
    grid, windows = Cohorts(monitor.cohort), monitor.windows
    due = grid.index(run.now - monitor.delay)
    state = _state(run, champion, monitor, due)
    if state.next_cohort >= due:
        return run.nothing_due(monitor, champion, state.next_cohort, monitor.delay)
    rows = read(grid.start(state.next_cohort), grid.start(due))
    cohorts = _by_cohort(rows, grid, state.next_cohort, due)
    reference = _find_reference(run, champion, monitor)
    if reference is None:
        filled = [(index, part) for index, part in cohorts if part.num_rows >= monitor.min_rows]
        if len(filled) < monitor.reference_cohorts:
            text = f"{len(filled)} of the {monitor.reference_cohorts} first cohorts, which later ones are held against, have answers"
            return MonitorResult(model=run.model, monitor=monitor.kind, version=champion.version, text=text)
        reference = _made_reference(run, champion, monitor, filled[: monitor.reference_cohorts])
        last = filled[monitor.reference_cohorts - 1][0]
        cohorts = [(index, part) for index, part in cohorts if index > last]
    decide = budgeted(run, champion, monitor)
    first, findings, alarms, text = state.next_cohort, [], [], "no window is whole yet"
    for index, part in cohorts:
        state, verdict = judge(state, reference, reference.sketch.window(part), index, windows, decide=decide)
        findings += findings_of(run, champion, grid, verdict, windows, kind=monitor.kind)
        alarms += alarms_of(run, champion, grid, verdict, windows, state, kind=monitor.kind, subject=_SUBJECT)
        text = (
            f"{verdict.rows} answers; drifted in k of n windows: {', '.join(verdict.confirmed) or 'nothing'}"
        )
    state = state.model_copy(update={"next_cohort": due})
    return run.conclude(
        monitor, champion, state, range(first, due), text=text, findings=findings, alarms=alarms
    )


def answer_table(rows: pa.Table, version: ModelVersion) -> pa.Table:
    """Turn the answers of a version that callers saw into columns to compare, in order of prediction time.

    Rows without an answer, or with one of another size, are left out.
    """
    kind = outcome_kind(version)
    width = len(kind.classes) or kind.size
    own = pc.and_(pc.equal(rows["version"], version.version), pc.invert(rows["shadow"]))
    whole = pc.equal(pc.fill_null(pc.list_value_length(rows["outputs"]), 0), width)
    seen = rows.filter(pc.and_(own, whole)).sort_by([("predicted_at", "ascending")])
    flat = pc.list_flatten(seen["outputs"]).to_numpy().astype(np.float64)
    return pa.table(
        {"predicted_at": seen["predicted_at"], **_columns(kind, version.model, flat.reshape(-1, width))}
    )


def _columns(kind: OutcomeKind, model: str, values: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Columns to compare of answers (rows, values), by name."""
    if kind.name == "multiclass":
        names = np.array(kind.classes)
        return {
            "class": pa.array(names[values.argmax(axis=1)].tolist(), pa.string()),
            "confidence": values.max(axis=1),
        }
    if kind.name == "multilabel" and len(kind.classes) <= _MOST_LABELS:
        by_name = {f"label {name}": values[:, place] for place, name in enumerate(kind.classes)}
        return {**by_name, "labels": (values >= _LIKELY).sum(axis=1).astype(np.float64)}
    if kind.name in {"multilabel", "vector"}:
        return dict(summaries(model, kind.output, values))
    return {"length" if kind.name == "text" else kind.output: values[:, 0]}


def _by_cohort(rows: pa.Table, grid: Cohorts, first: int, due: int) -> list[tuple[int, pa.Table]]:
    at = rows["predicted_at"].cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
    bounds = np.searchsorted(at, [epoch_us(grid.start(index)) for index in range(first, due + 1)])
    return [
        (index, rows.slice(bounds[place], bounds[place + 1] - bounds[place]))
        for place, index in enumerate(range(first, due))
    ]


def _state(run: MonitorRun, champion: ModelVersion, monitor: AnswerMonitor, due: int) -> DriftState:
    """State of this version's windows; a new champion begins where it may have answered as a canary."""
    state = run.load_state(monitor, DriftState)
    needed = _PATIENCE * monitor.reference_cohorts + monitor.window
    if state is not None and state.version == champion.version:
        if _find_reference(run, champion, monitor) is None:  # cohorts of long ago are no beginning any more
            begin = max(state.next_cohort, due - needed)
            return state.model_copy(update={"next_cohort": begin, "sketches": ()})
        return state
    begin = due - (max(needed, monitor.lookback // monitor.cohort) if state is not None else needed)
    return DriftState(version=champion.version, next_cohort=begin)


def _key(run: MonitorRun, champion: ModelVersion) -> str:
    return f"monitoring/{run.model}/answers/{champion.version}.json"


def _layout(monitor: AnswerMonitor) -> dict[str, Any]:
    """Settings that a kept reference must have been made with."""
    return {
        "bins": monitor.bins,
        "cohort_s": monitor.cohort.total_seconds(),
        "cohorts": monitor.reference_cohorts,
    }


def _find_reference(run: MonitorRun, champion: ModelVersion, monitor: AnswerMonitor) -> Reference | None:
    kept = run.store.find(_key(run, champion))
    stored: dict[str, Any] = {} if kept is None else json.loads(kept)
    fits = stored and all(stored.get(name) == value for name, value in _layout(monitor).items())
    return Reference.from_dict(stored) if fits else None


def _made_reference(
    run: MonitorRun, champion: ModelVersion, monitor: AnswerMonitor, cohorts: Sequence[tuple[int, pa.Table]]
) -> Reference:
    """Make the reference of a version's first cohorts, and keep it."""
    rows = pa.concat_tables([part for _, part in cohorts]).drop_columns(["predicted_at"])
    sketch = TableSketch.reference(rows, bins=monitor.bins)
    reference = Reference.of(sketch, [sketch.window(part) for _, part in cohorts])
    run.store.put(_key(run, champion), json.dumps(_layout(monitor) | reference.to_dict()).encode())
    return reference
