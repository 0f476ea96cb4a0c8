"""Incidents made of faults: when one begins, when it is over, and which cohorts it spoiled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from toque.functions.monitoring.quality.faults import find_faults
from toque.functions.monitoring.quality.monitor import (
    CohortSummary,
    Fault,
    Incident,
    QualityMonitor,
    QualityState,
    QualityVerdict,
    Span,
)
from toque.functions.monitoring.quality.profile import ColumnProfile

_MAX_SPANS = 256  # incidents that the state keeps, for drift found later over the same rows


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
