"""Functions that inspect and retrain models: an alarm leads to challengers, the best of them to a rollout.

`inspect_model` is all that a schedule has to run for a model: it runs the monitors, ticks the rollout, and offers standing alarms
to retraining. `retrain` also listens to alarms by itself. Both may run as often as they like: the journal `retraining/{model}`
lets one retrain begin, and the next call resumes one that died. A durable inspection, as of a schedule, submits the retrain and
ends; called by hand it trains before it returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, Field

from toque.functions.alerting.jobs import tell_people
from toque.functions.arguments import Model, Reason
from toque.functions.monitoring import (
    TOPIC,
    Alarm,
    MonitorResult,
    QualityMonitor,
    alarms,
    estimate_performance,
    watch_answers,
    watch_drift,
    watch_embeddings,
    watch_operations,
    watch_performance,
    watch_quality,
    watch_skew,
)
from toque.functions.prediction_log import drain_predictions, shared_scans
from toque.functions.retraining.challengers import Challenger, best_of, train_challengers
from toque.functions.retraining.definition import InspectedModel, InspectedProject
from toque.functions.retraining.policy import (
    Finished,
    RetrainDecision,
    RetrainingPolicy,
    RetrainState,
    Running,
    Situation,
    decide,
)
from toque.functions.retraining.triggers import (
    champion_of,
    champion_since,
    due_alarms,
    heartbeats,
    last_seen,
    retrains,
    standing_against,
    submit_once,
)
from toque.functions.rollout import RolloutError, TickResult, rollout_status, start_rollout, tick_rollout
from toque.functions.runtime.clock import system_clock
from toque.functions.runtime.context import context
from toque.functions.runtime.declaration import Cron, OnEvent, Resources, Retries
from toque.functions.runtime.definitions import declarations, model_definition, pick
from toque.functions.runtime.durable.workflow import current_run
from toque.functions.runtime.function import function
from toque.functions.runtime.run.interruption import paused
from toque.functions.runtime.triggers.schedule import Schedule
from toque.registry import Fold, Refused

OWN_SCHEDULE_MODELS, MODELS_PER_RUN = 8, 50
"""Models with one cron expression up to which each has a schedule of its own, and how many share one beyond."""
_BEGINS = {"retrain", "resume"}


class RetrainResult(BaseModel, frozen=True):
    """Result of an alarm offered to retraining.

    version: the challenger that is being rolled out, if any; invocation: of the retrain, where action is "submitted" by this
    inspection or one before it.
    """

    model: str
    action: str
    rule: str
    text: str
    version: int | None = None
    challengers: tuple[Challenger, ...] = ()
    invocation: str | None = None


class InspectionResult(BaseModel, frozen=True):
    """Result of one inspection of a model: what was found and done."""

    model: str
    at: datetime
    watched: tuple[MonitorResult, ...]
    rollout: TickResult
    retraining: tuple[RetrainResult, ...] = ()


@function(http=True, timeout_s=3600, retries=Retries(max_attempts=3), max_concurrency=1)
def inspect_model(model: Model) -> InspectionResult:
    """Inspect a model: drain the log, tick the rollout, run the monitors, offer standing alarms to retraining.

    Raises: ProjectError if the project does not define the model.
    """
    definition: InspectedModel = model_definition(context().project, model)
    _drain()
    with shared_scans():
        seen = _inspect(definition)
    return _offer_alarms(definition, seen)


@function(timeout_s=3600, retries=Retries(max_attempts=3))
def inspect_models(
    models: Annotated[list[str], Field(description="Names of the models, each defined by the project.")],
) -> list[InspectionResult]:
    """Inspect several models on one scan of the labels; alarms are offered once all monitors ran.

    A model whose inspection fails does not stop the others. Raises: ExceptionGroup of what failed, at the end.
    """
    project = declarations(context().project)
    definitions: list[InspectedModel] = [pick(project.models, model, project.module) for model in models]
    _drain()
    inspected, failed = [], []
    with shared_scans():
        for definition in definitions:
            try:
                inspected.append((definition, _inspect(definition)))
            except Exception as error:  # noqa: BLE001 - one model's failure must not stop the others
                failed.append(_with_note(definition, error))
    found = []
    for definition, seen in inspected:
        try:
            found.append(_offer_alarms(definition, seen))
        except Exception as error:  # noqa: BLE001 - as above
            failed.append(_with_note(definition, error))
    if failed:
        raise ExceptionGroup(f"{len(failed)} of {len(models)} inspections failed", failed)
    return found


@function(resources=Resources(num_cpus=1), timeout_s=None, on=OnEvent(TOPIC, payload_as="alarm"))
def retrain(
    alarm: Annotated[
        Alarm, Field(description="Alarm of a monitor that may be a reason to retrain its model.")
    ],
) -> RetrainResult:
    """Decide whether `alarm` leads to a retrain, and if so train challengers, judge them, and roll the best one out.

    Raises: ProjectError if the project does not define the model; what training raises, after it was recorded.
    """
    definition: InspectedModel = model_definition(context().project, alarm.model)
    policy = definition.retraining
    if policy is None:
        return _result(alarm, "skip", "no_policy", "the model has no retraining policy")
    fold = retrains(alarm.model)
    decision, running = _begin(fold, alarm, policy)
    if running is None:
        return _result(alarm, decision.action, decision.rule, decision.text)
    try:
        with heartbeats(alarm.model, running, policy, system_clock):
            finished, challengers = _carry_out(definition, policy, running)
    except Exception as error:
        _end(fold, running, _finished(running, "failed", None, f"{type(error).__name__}: {error}"), ())
        raise
    _end(fold, running, finished, challengers)
    return _result(alarm, decision.action, finished.outcome, finished.text, finished.version, challengers)


@function(http=True, timeout_s=None)
def request_retrain(model: Model, reason: Reason) -> RetrainResult:
    """Request a retrain by hand, now; it is held back only while a retrain or a rollout is under way."""
    now = context().clock()
    champion = champion_of(model)
    alarm = Alarm(
        key=f"{model}/manual/{now.isoformat()}",
        model=model,
        monitor="manual",
        subject=reason,
        version=champion.version if champion is not None else 0,
        raised_at=now,
        start=now,
        end=now,
        text=f"asked for by {context().actor}: {reason}",
    )
    return retrain(alarm)


def inspections(project: InspectedProject) -> list[Schedule]:
    """Make the schedules of the models' inspections, by `ModelDefinition.inspect`.

    Of many models that are due at the same times `MODELS_PER_RUN` are inspected in one run, which reads what they share once.
    """
    due: dict[str, list[str]] = {}
    for name, definition in project.models.items():
        due.setdefault(definition.inspect, []).append(name)
    return [one for cron, names in due.items() for one in _schedules(cron, names)]


def _schedules(cron: str, names: list[str]) -> list[Schedule]:
    if len(names) <= OWN_SCHEDULE_MODELS:
        return [
            Schedule(f"inspect-{name}", inspect_model, Cron(cron, arguments={"model": name}))
            for name in names
        ]
    groups = [names[at : at + MODELS_PER_RUN] for at in range(0, len(names), MODELS_PER_RUN)]
    return [
        Schedule(
            f"inspect-{group[0]}-and-{len(group) - 1}-more",
            inspect_models,
            Cron(cron, arguments={"models": group}),
        )
        for group in groups
    ]


def _drain() -> None:
    if context().redis_url is not None:  # without Redis the tables are all there is
        drain_predictions()


def _inspect(definition: InspectedModel) -> InspectionResult:
    """Tick the rollout and run the monitors; alarms are not offered yet."""
    rollout = tick_rollout(definition.name)  # first: guardrails must not wait for a monitor that fails
    return InspectionResult(
        model=definition.name, at=context().clock(), watched=run_monitors(definition), rollout=rollout
    )


def _offer_alarms(definition: InspectedModel, seen: InspectionResult) -> InspectionResult:
    """Offer standing alarms to people, for whom a silence may have held them back, and to retraining."""
    if definition.alerts is not None:
        for alarm in alarms(definition.name).standing():
            tell_people(alarm)
    policy = definition.retraining
    if policy is None:
        return seen
    if (run := current_run()) is not None:
        offered = [_submit_due(alarm, policy, run.id) for alarm in due_alarms(definition)]
    else:
        with paused():  # a training takes as long as it takes
            offered = [retrain(alarm) for alarm in due_alarms(definition)]
    return seen.model_copy(update={"retraining": tuple(offered)})


def _submit_due(alarm: Alarm, policy: RetrainingPolicy, inspection: str) -> RetrainResult:
    """Submit the retrain of an alarm if one is due: trained within a durable inspection, it would hold up those of other models.

    The submitted one decides again, since it may wait for long. inspection: its invocation, which may run twice.
    """
    fold = retrains(alarm.model)
    decision, _ = _begin(fold, alarm, policy, here=False)
    if decision.action not in _BEGINS:
        return _result(alarm, decision.action, decision.rule, decision.text)
    invocation = submit_once(retrain, alarm, state=fold.state, inspection=inspection)
    made = _result(alarm, "submitted", decision.rule, decision.text)
    return made.model_copy(update={"invocation": invocation})


def _with_note(definition: InspectedModel, error: Exception) -> Exception:
    error.add_note(f"while model {definition.name!r} was inspected")
    return error


def _begin(
    fold: Fold[RetrainState], alarm: Alarm, policy: RetrainingPolicy, *, here: bool = True
) -> tuple[RetrainDecision, Running | None]:
    """Decide and append the decision to the journal; of concurrent callers one starts.

    here: whether the caller trains; if not, a decision to train is not appended, as whoever trains decides again.
    """
    now, situation = context().clock(), _situation(alarm.model, fold.refresh().running)
    decided: list[RetrainDecision] = []

    def choose(state: RetrainState) -> dict[str, Any] | None:
        decision = decide(state, alarm, situation, policy, now)
        decided.append(decision)
        if decision.action in _BEGINS and not here:
            return None
        body = {"at": now.isoformat(), "decision": decision.model_dump(mode="json")}
        body |= {"alarm": alarm.model_dump(mode="json")}
        body |= {"world": situation.model_dump(mode="json"), "policy": policy.model_dump(mode="json")}
        if decision.action == "retrain":
            running = Running(
                number=0, alarm=alarm, at=now, wall=situation.wall, champion=situation.champion or 0
            )
            return {"event": "started", "running": running.model_dump(mode="json"), **body}
        if decision.action == "resume":
            return {"event": "resumed", **body}
        # The first of many alike is recorded; a hundred alarms in a cooldown are not news.
        if decision.action == "skip" and decision.rule != state.last_skip:
            return {"event": "skipped", **body}
        return None

    fold.transact(choose)
    decision = decided[-1]
    return decision, fold.state.running if here and decision.action in _BEGINS else None


def _situation(model: str, running: Running | None) -> Situation:
    champion, history = champion_of(model), rollout_status(model)
    return Situation(
        champion=None if champion is None else champion.version,
        champion_since=champion_since(model),
        rollout_open=history.open is not None,
        ends={outcome.challenger: outcome.stage for outcome in history.outcomes},
        wall=system_clock(),
        seen=last_seen(model, running),
        incidents={
            name: one.text
            for one in alarms(model).standing()
            if one.monitor == "quality"
            for name in one.columns
        },
        standing=()
        if champion is None
        else tuple(f"{one.monitor}/{one.subject}" for one in standing_against(model, champion.version)),
    )


def _carry_out(
    definition: InspectedModel, policy: RetrainingPolicy, running: Running
) -> tuple[Finished, tuple[Challenger, ...]]:
    """Train on each window, judge by the gate, and roll out the best that passed."""
    challengers = train_challengers(definition, policy, running)
    best = best_of(challengers)
    if best is None:
        why = "; ".join(f"{one.window}: {one.problem}" for one in challengers)
        return _finished(running, "no_challenger", None, f"no challenger passed: {why}"), challengers
    return _roll_out(definition, policy, running, best), challengers


def _roll_out(
    definition: InspectedModel, policy: RetrainingPolicy, running: Running, best: Challenger
) -> Finished:
    """Approve in the policy's name where the model's registry policy lets it, and start the rollout."""
    version = best.version
    assert version is not None  # noqa: S101 — the one caller has checked it
    comment = f"passed gate {definition.gate.name!r}; retrain {running.number}: {running.alarm.text}"
    approval = _approve_automatically(definition.name, version, policy.approver, comment)
    rolled_out = _finished(
        running, "rolled_out", version, f"version {version} ({best.window}) is in shadow, {approval}"
    )
    if any(one.challenger == version for one in rollout_status(definition.name).outcomes):
        return rolled_out  # started before this retrain was killed, and has ended since
    try:
        start_rollout(
            definition.name, version, definition.rollout, reason=f"retrain {running.number} ({best.window})"
        )
    except RolloutError as error:
        return _finished(running, "failed", None, f"version {version} was not rolled out: {error}")
    return rolled_out


def _approve_automatically(model: str, version: int, approver: str | None, comment: str) -> str:
    """Approve a challenger without a person if the model's policy lets retraining do that; returns who approves."""
    if approver is None:
        return "and waits for a person's approval"
    try:
        context().registry().as_actor(approver).approve(model, version, comment=comment, automatic=True)
    except Refused as refused:
        return f"and waits for a person's approval: {refused}"
    return f"approved automatically as {approver!r}"


def _end(
    fold: Fold[RetrainState], running: Running, finished: Finished, challengers: Sequence[Challenger]
) -> None:
    body = {
        "event": "finished",
        "at": context().clock().isoformat(),
        "finished": finished.model_dump(mode="json"),
        "challengers": [one.model_dump(mode="json") for one in challengers],
    }
    _report_failure(running, finished)  # first: a retrain that is killed between the two is taken up again
    fold.transact(lambda state: body if state.running == running else None)


def _report_failure(running: Running, finished: Finished) -> None:
    """Raise the incident that a retrain failed, which stands until one does not."""
    recovered, model = finished.outcome != "failed", running.alarm.model
    subject, journal = "retraining", alarms(model)
    if recovered and not any(
        one.monitor == "operations" and one.subject == subject for one in journal.standing()
    ):
        return
    now = context().clock()
    journal.report(
        Alarm(
            key=f"{model}/operations/{subject}/{running.number}{'/recovered' if recovered else ''}",
            model=model,
            monitor="operations",
            subject=subject,
            version=running.champion,
            raised_at=now,
            start=running.at,
            end=max(now, running.at),
            text=f"retrain {running.number} {'ended' if recovered else 'failed'}: {finished.text}",
            recovered=recovered,
        )
    )


def _finished(running: Running, outcome: Any, version: int | None, text: str) -> Finished:
    return Finished(number=running.number, started_at=running.at, outcome=outcome, version=version, text=text)


def _result(
    alarm: Alarm,
    action: str,
    rule: str,
    text: str,
    version: int | None = None,
    challengers: Sequence[Challenger] = (),
) -> RetrainResult:
    return RetrainResult(
        model=alarm.model,
        action=action,
        rule=rule,
        text=text,
        version=version,
        challengers=tuple(challengers),
    )


def run_monitors(definition: InspectedModel) -> tuple[MonitorResult, ...]:
    """Run the monitors that a model declares; what each found."""
    watched = []
    if definition.quality is not None:  # first: its incidents explain what the others find
        watched.append(watch_quality(definition.name, definition.quality))
    if definition.skew is not None:
        watched.append(watch_skew(definition.name, definition.skew))
    if definition.operations is not None:
        watched.append(watch_operations(definition.name, definition.operations))
    if definition.performance is not None:
        watched.append(watch_performance(definition.name, definition.performance))
    if definition.estimate is not None:
        watched.append(estimate_performance(definition.name, definition.estimate))
    if definition.drift is not None:
        explained = definition.quality or QualityMonitor()
        watched.append(watch_drift(definition.name, definition.drift, explained))
    if definition.vectors is not None:
        watched.append(watch_embeddings(definition.name, definition.vectors))
    if definition.answers is not None:
        watched.append(watch_answers(definition.name, definition.answers))
    return tuple(watched)


__all__ = [
    "MODELS_PER_RUN",
    "InspectionResult",
    "RetrainResult",
    "inspect_model",
    "inspect_models",
    "inspections",
    "request_retrain",
    "retrain",
    "retrains",
]
