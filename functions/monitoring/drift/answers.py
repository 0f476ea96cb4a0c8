"""Drift monitor of a version's answers, whatever their outcome: later cohorts are held against its own first ones.

Answers on the training set are surer than any that follow, so they are no reference. What is compared follows from the
outcome: a probability, number, rate or score as it is; of classes the one that is most probable and how probable it is; of several
labels each one; of a vector its figures; of a text its length.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from toque.functions.evaluation.outcome_kinds import OutcomeKind, outcome_kind
from toque.functions.monitoring.budget import budgeted
from toque.functions.monitoring.drift.monitor import DriftMonitor, DriftState, judge, tell
from toque.functions.monitoring.drift.reference import Reference
from toque.functions.monitoring.logged_features import summaries
from toque.functions.monitoring.settings import ColumnMonitor, Window
from toque.functions.monitoring.watch import Course, MonitorResult, MonitorRun, ReadRows
from toque.functions.stats.sketch import TableSketch
from toque.registry import ModelVersion

ANSWERED = ("prediction_id", "version", "shadow", "predicted_at", "latency_ms", "outputs")
"""Columns of the log that tell of answers."""
_SUBJECT = "answers"
_MOST_LABELS = 20  # that are watched one by one
_LIKELY = 0.5
_PATIENCE = 4  # times as many cohorts are searched for enough with answers


class AnswerMonitor(ColumnMonitor):
    """Settings of the drift monitor of answers, which judges windows as `DriftMonitor` does."""

    kind: Literal["answers"] = Field(default="answers", description="Kind of the monitor.")
    window: Window = 3
    reference_cohorts: int = Field(
        le=100_000,
        default=7,
        ge=2,
        description="First cohorts of a version with `min_rows` answers, which later ones are held against.",
    )
    min_rows: int = Field(
        default=30,
        ge=2,
        description=(
            "Answers, counted by what they are worth, below which a column is insufficient; "
            "also those of a reference cohort."
        ),
    )

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
    course, windows = Course(run, champion, monitor), monitor.windows
    grid, due, text = course.grid, course.due, "no window is whole yet"
    reference = _find_reference(course)
    state = _begun(course, reference)
    first = state.next_cohort
    if first >= due:
        return course.nothing_due(first)
    cohorts = list(grid.cut(read(grid.start(first), grid.start(due)), first, due))
    if reference is None:
        filled = [(index, part) for index, part in cohorts if part.num_rows >= monitor.min_rows]
        if len(filled) < monitor.reference_cohorts:
            return course.result(
                f"{len(filled)} of the {monitor.reference_cohorts} first cohorts, which later ones are held against, have answers"
            )
        reference = _made_reference(course, [part for _, part in filled[: monitor.reference_cohorts]])
        last = filled[monitor.reference_cohorts - 1][0]
        cohorts = [(index, part) for index, part in cohorts if index > last]
    decide = budgeted(course)
    for index, part in cohorts:
        state, verdict = judge(state, reference, reference.sketch.window(part), index, windows, decide=decide)
        tell(course, verdict, state, _SUBJECT)
        text = (
            f"{verdict.rows} answers; drifted in k of n windows: {', '.join(verdict.confirmed) or 'nothing'}"
        )
    return course.conclude(state.model_copy(update={"next_cohort": due}), range(first, due), text)


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


def _begun(course: Course[AnswerMonitor], reference: Reference | None) -> DriftState:
    """State of this version's windows; a new champion begins where it may have answered as a canary."""
    state, version, monitor = course.load(DriftState), course.champion.version, course.monitor
    needed = _PATIENCE * monitor.reference_cohorts + monitor.window
    if state is not None and state.version == version:
        if reference is None:  # cohorts of long ago are no beginning any more
            begin = max(state.next_cohort, course.due - needed)
            return state.model_copy(update={"next_cohort": begin, "sketches": ()})
        return state
    back = needed if state is None else max(needed, monitor.lookback // monitor.cohort)
    return DriftState(version=version, next_cohort=course.due - back)


def _key(course: Course[AnswerMonitor]) -> str:
    return f"monitoring/{course.run.model}/answers/{course.champion.version}.json"


def _layout(monitor: AnswerMonitor) -> dict[str, Any]:
    """Settings that a kept reference must have been made with."""
    return {
        "bins": monitor.bins,
        "cohort_s": monitor.cohort.total_seconds(),
        "cohorts": monitor.reference_cohorts,
    }


def _find_reference(course: Course[AnswerMonitor]) -> Reference | None:
    kept = course.run.store.find(_key(course))
    stored: dict[str, Any] = {} if kept is None else json.loads(kept)
    fits = stored and all(stored.get(name) == value for name, value in _layout(course.monitor).items())
    return Reference.from_dict(stored) if fits else None


def _made_reference(course: Course[AnswerMonitor], cohorts: Sequence[pa.Table]) -> Reference:
    """Make the reference of a version's first cohorts, and keep it."""
    monitor, rows = course.monitor, pa.concat_tables(cohorts).drop_columns(["predicted_at"])
    sketch = TableSketch.reference(rows, bins=monitor.bins)
    reference = Reference.of(sketch, [sketch.window(part) for part in cohorts])
    course.run.store.put(_key(course), json.dumps(_layout(monitor) | reference.to_dict()).encode())
    return reference
