"""From faults to incidents: when one begins, when it is over, and what later looks at the same rows must know of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from functions.monitoring.quality.faults import find_faults
from functions.monitoring.quality.monitor import (
    CohortLook,
    Fault,
    Incident,
    QualityMonitor,
    QualityState,
    QualityVerdict,
    Span,
)
from functions.monitoring.quality.profile import ColumnProfile

_SPANS = 256  # incidents that the state keeps, for drift found later over the same rows


def judge(
    state: QualityState, look: CohortLook, monitor: QualityMonitor
) -> tuple[QualityState, QualityVerdict]:
    """The state after one more cohort, and what it shows. What could not be judged stays as it was."""
    answers = dict(find_faults(state, look, monitor))
    found = {key: fault for key, fault in answers.items() if fault is not None}
    over = {
        key
        for key, one in state.open.items()
        if _gone(one, look)
        or (key in answers and key not in found and look.index - one.seen >= monitor.recover)
    }
    still = {key: one for key, one in state.open.items() if key not in over}
    opened = {key: _continued(state.open.get(key), fault) for key, fault in found.items()}
    after = still | opened
    verdict = QualityVerdict(
        cohort=look.index,
        rows=look.rows,
        faults=tuple(opened.values()),
        changed=_changed(state.open, after),
    )
    history, volumes = _healthy(state, look, monitor, after)
    remembered = {
        "next_cohort": look.index + 1,
        "history": history,
        "volumes": volumes,
        "open": after,
        "spans": _spans(state, after, over, look.index),
    }
    return state.model_copy(update=remembered), verdict


def spoiled(state: QualityState | None, first: int, last: int) -> Mapping[str, str]:
    """For each column that was spoiled in one of the cohorts `first` to `last`: the name of the alarm that told it."""
    spans = () if state is None else state.spans
    return {
        span.column: span.told
        for span in spans
        if span.first <= last and (span.last is None or span.last >= first)
    }


def told_as(fault: Fault, index: int) -> str:
    """The name of the alarm that cohort `index` raises about `fault`."""
    return f"quality/{fault}/{index}"


def _gone(incident: Incident, look: CohortLook) -> bool:
    """Whether the model no longer reads any of the columns."""
    return bool(incident.columns) and not any(name in look.columns for name in incident.columns)


def _continued(before: Incident | None, now: Incident) -> Incident:
    return now if before is None else now.model_copy(update={"since": before.since})


def _changed(
    before: Mapping[str, Incident], after: Mapping[str, Incident]
) -> dict[Fault, tuple[Incident, ...]]:
    kinds = {before[key].fault if key in before else after[key].fault for key in before.keys() ^ after.keys()}
    return {kind: tuple(one for one in after.values() if one.fault == kind) for kind in sorted(kinds)}


def _healthy(
    state: QualityState, look: CohortLook, monitor: QualityMonitor, incidents: Mapping[str, Incident]
) -> tuple[dict[str, tuple[ColumnProfile, ...]], tuple[int, ...]]:
    """History with what of this cohort is healthy: a broken feed must not become the norm it is held against."""
    broken = {column for one in incidents.values() for column in one.columns}
    history = dict(state.history)
    for name, profile in look.columns.items():
        if name not in broken and profile.rows >= monitor.min_rows:
            history[name] = (*history.get(name, ()), profile)[-monitor.history :]
    before_any = not state.volumes and look.rows == 0
    if "volume:rows" in incidents or before_any:
        return history, state.volumes
    return history, (*state.volumes, look.rows)[-monitor.history :]


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
            told = told_as(one.fault, index)
            kept += [Span(column=name, incident=key, told=told, first=one.since) for name in one.columns]
    return tuple(kept[-_SPANS:])
