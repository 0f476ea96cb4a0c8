"""Functions that write reports on a model, a rollout or an alarm.

The page of an alarm says what changed and when, ordered by the contribution to the loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, Field

from toque.featurestore import FeatureStore
from toque.functions.arguments import End, Model, Start
from toque.functions.evaluation.meanings import MEANINGS
from toque.functions.evaluation.outcome_kinds import OutcomeKind, outcome_kind
from toque.functions.evaluation.realised_loss import rescore
from toque.functions.model_formats.load import load_version
from toque.functions.monitoring import Alarm, PerformanceEstimate, alarms, performance_estimates
from toque.functions.monitoring.alarms import alarms_in
from toque.functions.monitoring.diagnosis import Causes, Changes, find_causes
from toque.functions.monitoring.quality.watch import Views
from toque.functions.monitoring.watch import MonitorRun
from toque.functions.pages.charts import draw_looks
from toque.functions.prediction_log import outcomes, predictions
from toque.functions.reporting.page import (
    Latency,
    answers,
    auc_of,
    by_request,
    labels,
    mean_loss,
    render,
    render_model,
    served,
    weeks,
    write_page,
)
from toque.functions.reporting.timeline import (
    TimelineEvent,
    from_alarms,
    from_model,
    from_retrains,
    from_rollouts,
    timeline,
)
from toque.functions.reporting.trace import trace_prediction
from toque.functions.rollout.evidence.sums import MetricSums
from toque.functions.rollout.judge.interval import metric_change
from toque.functions.rollout.judge.verdict import with_shared_alpha
from toque.functions.rollout.record import RolloutDecision, RolloutNumber, read_rollout, record_of
from toque.functions.runtime.context import context
from toque.functions.runtime.declaration.command import View
from toque.functions.runtime.function import function
from toque.registry import Entry, Journal, Registry


class Report(BaseModel, frozen=True):
    """Key of the page in the store, and the figures at its top.

    since: from when the second pair of figures counts (the first change of champion), None if there was none.
    """

    key: str
    labelled: int
    served_loss: float
    reference_loss: float
    since: datetime | None = None
    served_loss_since: float | None = None
    reference_loss_since: float | None = None
    served_auc_since: float | None = None
    summary: list[str] = []


class AlarmReport(BaseModel, frozen=True):
    """Key of an alarm's page in the store, and the causes on it."""

    key: str
    causes: Causes


@function(http=True, timeout_s=300)
def model_report(
    model: Model,
    start: Start,
    end: End,
    reference: Annotated[
        int,
        Field(
            ge=1,
            le=1_000_000_000,
            description="Version that served losses are held against, scored on the logged vectors.",
        ),
    ] = 1,
) -> Report:
    """Write the report of what `model` served in [start, end) into the store, as `reports/{model}.html`.

    What happened before `start` is left out; what came of that time later is not.
    Raises: ValueError if nothing served in that time has a label yet.
    """
    used = context()
    registry = used.registry()
    rows = served(outcomes(used.store, model, start, end))
    if not rows.num_rows:
        raise ValueError(
            f"nothing that {model!r} served from {start} to {end} has a label yet; drain the log first"
        )
    rows, kind = by_request(rows, outcome_kind(registry.get_version(model, reference)))
    scored = _reference_scores(registry, model, reference, rows)
    frozen = scored if kind.classes or kind.size > 1 else kind.by_unit(rows, scored[:, 0])
    events = _events(registry, model, alarms_in(_journal(registry, "alarms", model)))
    report = _figures(model, rows, frozen, _first_change(events), kind)
    versions = registry.list_versions(model)
    page = render_model(
        model=model,
        start=start,
        end=end,
        reference=reference,
        summary=report.summary,
        weeks=weeks(rows, frozen, kind),
        loss=kind.loss,
        events=[one for one in events if one.at >= start],
        latencies=_latencies(
            predictions(used.store, model, start, end, columns=["version", "shadow", "latency_ms"])
        ),
        versions=versions,
        trace=trace_prediction(registry, model, rows["prediction_id"][-1].as_py()),
        estimates=_estimates(model, start, end),
        link=used.page("models", model),
    )
    write_page(used.store, report.key, page)
    return report


@function(http=True, timeout_s=120, command="rollout page MODEL")
def rollout_report(model: Model, rollout: RolloutNumber = None) -> str:
    """Write the page of one rollout of `model` into the store; returns its key, `reports/{model}-rollout-{number}.html`.

    Raises: RolloutError if no rollout began there.
    """
    used = context()
    entries = Journal(used.store, f"rollouts/{model}", actor=used.actor).entries()
    state, decisions, changes = read_rollout(entries, rollout)
    key = f"reports/{model}-rollout-{state.rollout}.html"
    record = record_of(model, state, decisions, changes)
    last = decisions[-1] if decisions else None
    policy = with_shared_alpha(state.policy, state)
    sums = (
        {}
        if last is None
        else {each.name: last.evidence.metrics.get(each.name, MetricSums()) for each in policy.guardrails}
    )
    metrics = [
        (each, sums[each.name], metric_change(sums[each.name], each, policy, policy.alpha))
        for each in policy.guardrails
        if each.name in sums
    ]
    page = render(
        "rollout.html",
        record=record,
        chart=draw_looks(record.model_dump(mode="json")),
        last=last,
        alpha=policy.alpha,
        decisions=_decisions(decisions),
        metrics=metrics,
        rules=state.policy.model_dump(mode="json"),
        link=used.page("rollouts", model, rollout=str(state.rollout)),
    )
    write_page(used.store, key, page)
    return key


@function(
    http=True,
    timeout_s=300,
    command="monitor why MODEL",
    view=View(
        facts="alarm: causes.alarm.key | what: causes.text | labelled rows before: causes.rows_before"
        " | labelled rows in its window: causes.rows | loss before: causes.loss_before | loss in its window: causes.loss"
        " | page: key",
        rows="causes.causes",
        columns="since | kind | what | part in the loss: contribution | how it changed: text",
        wide="standard error: error",
        texts="what | how it changed",
    ),
)
def alarm_report(
    model: Model,
    alarm: Annotated[
        str | None,
        Field(description="Key of the alarm, as `standing_alarms` tells it; the newest one unless given."),
    ] = None,
    days_before: Annotated[
        int,
        Field(ge=1, le=36_500, description="Days before the alarm's window that the window is held against."),
    ] = 28,
) -> AlarmReport:
    """Say what changed behind an alarm, ordered by its part in the loss, and write that as a page into the store.

    Raises: ValueError if there is no such alarm, or no champion.
    """
    used = context()
    registry = used.registry()
    entries = alarms_in(_journal(registry, "alarms", model))
    raised = [one for one in entries if not one.recovered]
    found = next((one for one in reversed(raised) if alarm in (None, one.key)), None)
    champion = registry.find_version(model, "champion")
    if found is None or champion is None:
        wanted = "an alarm" if alarm is None else f"the alarm {alarm!r}"
        raise ValueError(
            f"{model!r} has no champion or not {wanted}; the last are {[one.key for one in raised[-5:]]}"
        )
    causes = find_causes(
        MonitorRun(model=model, store=used.store, alarms=alarms(model), now=used.clock()),
        champion,
        found,
        _changes(registry, model, raised),
        Views.of(FeatureStore(used.store, clock=used.clock, actor=used.actor), champion),
        lambda start, end: outcomes(used.store, model, start, end),
        before=timedelta(days=days_before),
        loss=MEANINGS[outcome_kind(champion).name].losses[0],
    )
    events = _events(registry, model, entries)
    key = f"reports/{model}-alarm-{sha256(found.key.encode()).hexdigest()[:12]}.html"
    page = render(
        "alarm.html",
        causes=causes,
        events=[each for each in events if causes.before <= each.at <= found.raised_at],
        link=used.page("monitors", model, monitor=found.monitor, subject=found.subject),
    )
    write_page(used.store, key, page)
    return AlarmReport(key=key, causes=causes)


def _decisions(decisions: Sequence[RolloutDecision]) -> list[tuple[RolloutDecision, int]]:
    """List the decisions that changed something and the last one, each with the number of those before it that only held."""
    rows, held = [], 0
    for each in decisions:
        if each.decision.action == "hold" and each is not decisions[-1]:
            held += 1
            continue
        rows.append((each, held))
        held = 0
    return rows


def _estimates(model: str, start: datetime, end: datetime) -> list[PerformanceEstimate]:
    """Estimates without labels of the cohorts that began in [start, end)."""
    days = max((context().clock() - start).days + 1, 1)
    return [each for each in performance_estimates(model, days=days) if start <= each.start < end]


def _changes(registry: Registry, model: str, raised: Sequence[Alarm]) -> Changes:
    """Collect the changes that the registry and the alarms recorded."""
    champions = [
        (int(entry.body["version"]), entry.at)
        for entry in registry.history(model)
        if entry.body.get("kind") in ("alias", "rollback") and entry.body.get("alias") == "champion"
    ]
    return Changes(
        champions=tuple(champions),
        code={one.version: one.lineage.code for one in registry.list_versions(model)},
        incidents=tuple(one for one in raised if one.monitor == "quality"),
    )


def _reference_scores(registry: Registry, model: str, reference: int, rows: pa.Table) -> np.ndarray:
    numbers = pc.unique(rows["version"]).to_pylist()
    signatures = {number: registry.get_version(model, number).signature for number in numbers}
    logged = {number: signature for number, signature in signatures.items() if signature is not None}
    return rescore(rows, load_version(registry, registry.get_version(model, reference)), logged)


def _journal(registry: Registry, kind: str, model: str) -> Iterator[Entry]:
    return Journal(registry.store, f"{kind}/{model}", actor=registry.actor).entries()


def _events(registry: Registry, model: str, raised: Sequence[Alarm]) -> list[TimelineEvent]:
    """List what happened to a model, by its journals and the alarms that were raised."""
    return timeline(
        from_model(registry.history(model)),
        from_rollouts(_journal(registry, "rollouts", model)),
        from_retrains(_journal(registry, "retraining", model)),
        from_alarms(raised),
    )


def _first_change(events: list[TimelineEvent]) -> datetime | None:
    """Find when the champion first changed, or None."""
    changes = [one.at for one in events if one.kind == "champion"]
    return changes[1] if len(changes) > 1 else None


def _figures(
    model: str, rows: pa.Table, frozen: np.ndarray, since: datetime | None, kind: OutcomeKind
) -> Report:
    label, own = labels(rows, kind), answers(rows, kind)
    whole = Report(
        key=f"reports/{model}.html",
        labelled=len(label),
        served_loss=mean_loss(kind, label, own),
        reference_loss=mean_loss(kind, label, frozen),
        since=since,
    )
    summary = [
        (
            f"{whole.labelled:,} labelled predictions: {kind.loss} {whole.served_loss:.4f} as served, "
            f"{whole.reference_loss:.4f} had the first model stayed."
        )
    ]
    if since is None:
        return whole.model_copy(
            update={"summary": [*summary, "No challenger replaced it; the reasons are below."]}
        )
    after = pc.greater_equal(
        kind.unit_rows(rows)["predicted_at"], pa.scalar(since, pa.timestamp("us", "UTC"))
    ).to_numpy()
    if not after.any():
        return whole.model_copy(update={"summary": summary})
    figures = {
        "served_loss_since": mean_loss(kind, label[after], own[after]),
        "reference_loss_since": mean_loss(kind, label[after], frozen[after]),
    }
    text = (
        f"Since the first retrained model took over on {since:%d %B} ({int(after.sum()):,} labels): {kind.loss} "
        f"{figures['served_loss_since']:.4f} against {figures['reference_loss_since']:.4f} frozen"
    )
    served_auc = auc_of(kind, label[after], own[after])
    if np.isfinite(served_auc):
        figures["served_auc_since"] = served_auc
        text += f", AUC {served_auc:.4f} against {auc_of(kind, label[after], frozen[after]):.4f}"
    return whole.model_copy(update={**figures, "summary": [*summary, f"{text}."]})


def _latencies(rows: pa.Table) -> list[Latency]:
    answered = rows.filter(pc.and_(pc.invert(rows["shadow"]), pc.is_valid(rows["latency_ms"])))
    found = []
    for version in sorted(pc.unique(answered["version"]).to_pylist()):
        times = answered.filter(pc.equal(answered["version"], version))["latency_ms"].to_numpy()
        p50, p95, p99 = np.percentile(times, [50, 95, 99])
        found.append(Latency(version, len(times), float(p50), float(p95), float(p99)))
    return found
