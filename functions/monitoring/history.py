"""Functions that look back: alarms of every model that stand, those of one model in time, what monitors found and estimated."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

import pyarrow.compute as pc
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from toque.functions.arguments import Model
from toque.functions.monitoring.alarms import Alarm, alarm_journal, alarms_in, models_in
from toque.functions.monitoring.estimate_monitor import COVARIATE_SHIFT, LABEL_SHIFT, SHARE_OF, interval
from toque.functions.monitoring.results import results_table
from toque.functions.runtime.context import context
from toque.functions.runtime.function import function
from toque.registry import Entry, Table

CohortDays = Annotated[
    int, Field(ge=1, le=36_500, description="Days, counted back from now, in which the cohorts ended.")
]
_SHOWN = ("monitor", "subject", "version", "start", "end", "rows", "verdict", "value", "reference", "statistic", "threshold", "text")  # fmt: skip


class Finding(BaseModel):
    """Finding of a monitor on one subject, a measure or a column, in one cohort; see `RESULTS`."""

    model_config = ConfigDict(frozen=True)

    monitor: str
    subject: str
    version: int
    start: AwareDatetime
    end: AwareDatetime
    rows: int
    verdict: str
    value: float | None = None
    reference: float | None = None
    statistic: float | None = None
    threshold: float | None = None
    text: str | None = None


class PerformanceEstimate(BaseModel):
    """Estimate of a measure for one cohort before its labels, and what the labels said.

    low, high: 95 % interval, None for the AUC; realised, agreed: None until labels are there; assumes: when the estimate is right.
    """

    model_config = ConfigDict(frozen=True)

    measure: str
    version: int
    start: AwareDatetime
    end: AwareDatetime
    rows: int
    estimate: float
    low: float | None = None
    high: float | None = None
    realised: float | None = None
    agreed: bool | None = None
    assumes: str


class AlarmEntry(BaseModel):
    """Alarm or recovery with its number in the journal of its model's alarms."""

    model_config = ConfigDict(frozen=True)

    number: int
    alarm: Alarm


@function(http=True, role="viewer", timeout_s=60, in_thread=True)
def open_alarms() -> list[Alarm]:
    """List the alarms of all models that were raised and have not recovered, newest first."""
    used = context()
    folds = (
        alarm_journal(model, store=used.store, clock=used.clock, actor=used.actor)
        for model in models_in(used.store, "alarms")
    )
    found = [alarm for fold in folds for alarm in fold.refresh().standing.values()]
    return sorted(found, key=lambda alarm: alarm.raised_at, reverse=True)


@function(http=True, role="viewer", timeout_s=60, in_thread=True)
def alarm_history(
    model: Model,
    before: Annotated[
        int | None,
        Field(
            ge=0,
            le=1_000_000_000,
            description="Number of an entry of the journal, before which the list begins; at the newest unless given.",
        ),
    ] = None,
    limit: Annotated[
        int, Field(ge=1, le=1_000, description="Most entries of the list, from 1 to 1,000.")
    ] = 50,
) -> list[AlarmEntry]:
    """List alarms and recoveries of a model, newest first."""
    used = context()
    fold = alarm_journal(model, store=used.store, clock=used.clock, actor=used.actor)
    fold.refresh()
    last = fold.next if before is None else min(before, fold.next)
    numbers = range(last - 1, max(-1, last - 1 - limit), -1)
    entries: list[Entry] = [fold.journal.entry(number) for number in numbers]
    alarms = alarms_in(entries)
    return [AlarmEntry(number=each.number, alarm=alarm) for each, alarm in zip(entries, alarms, strict=True)]


@function(http=True, role="viewer", timeout_s=60, in_thread=True)
def monitor_findings(
    model: Model,
    monitor: Annotated[str, Field(description="Kind of the monitor, such as `drift`.")],
    subject: Annotated[
        str | None, Field(description="Measure or column whose findings are listed; all unless given.")
    ] = None,
    days: CohortDays = 60,
) -> list[Finding]:
    """List what a monitor found in the cohorts of the last days, oldest first."""
    used = context()
    table = Table(used.store, results_table(model))
    if not table.exists():
        return []
    where = (pc.field("monitor") == monitor) & (pc.field("end") >= used.clock() - timedelta(days=days))
    if subject is not None:
        where = where & (pc.field("subject") == subject)
    rows = table.read(columns=list(_SHOWN), where=where).sort_by(
        [("end", "ascending"), ("subject", "ascending")]
    )
    return [Finding.model_validate(row) for row in rows.to_pylist()]


@function(http=True, role="viewer", timeout_s=60)
def performance_estimates(model: Model, days: CohortDays = 60) -> list[PerformanceEstimate]:
    """List what was estimated of the cohorts of the last days without labels, oldest first, beside what their labels said."""
    found = monitor_findings(model, "estimate", days=days)
    settled = {(each.version, each.start, each.subject): each for each in found if each.value is not None}
    estimates = []
    for each in found:
        if each.verdict != "estimate" or each.reference is None:
            continue
        low, high = interval(each.reference, each.statistic) if each.statistic is not None else (None, None)
        labelled = settled.get((each.version, each.start, each.subject))
        estimates.append(
            PerformanceEstimate(
                measure=each.subject,
                version=each.version,
                start=each.start,
                end=each.end,
                rows=each.rows,
                estimate=each.reference,
                low=low,
                high=high,
                realised=labelled.value if labelled else None,
                agreed=labelled.verdict == "agreed" if labelled else None,
                assumes=LABEL_SHIFT if each.subject.startswith(SHARE_OF) else COVARIATE_SHIFT,
            )
        )
    return estimates
