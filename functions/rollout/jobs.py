"""Functions that start, tick, pause, end and explain rollouts, for retraining, the schedule and people."""

from __future__ import annotations

import time
from typing import Annotated, Literal, Protocol

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from toque.functions.arguments import Model, Reason
from toque.functions.evaluation.meanings import MEANINGS
from toque.functions.generative import is_generative
from toque.functions.live_counts import live_reader
from toque.functions.monitoring.alarms import models_in
from toque.functions.monitoring.language.sample import monitors_journal
from toque.functions.prediction_log import outcomes
from toque.functions.rollout.controller import Rollouts
from toque.functions.rollout.errors import RolloutError
from toque.functions.rollout.evidence.live import ReadLive
from toque.functions.rollout.evidence.metrics import (
    MetricRows,
    MetricValue,
    read_metric,
    read_score,
    write_metric,
)
from toque.functions.rollout.explain import Explanation
from toque.functions.rollout.policy import MetricName, RolloutPolicy
from toque.functions.rollout.record import RolloutNumber, RolloutRecord, read_rollout, record_of
from toque.functions.rollout.state import Budget, History, RolloutState
from toque.functions.rollout.status import RolloutStatus, TickResult
from toque.functions.runtime.clock import system_clock
from toque.functions.runtime.context import Context, context
from toque.functions.runtime.declaration.command import View
from toque.functions.runtime.definitions import declarations
from toque.functions.runtime.function import function

STATE_VIEW = View(
    facts="rollout | version: challenger | rivals | against: champion | stage | paused | started: started_at"
    " | in this stage since: stage_since | labels judged: judged_labels | why: reason",
    wide="canary since: canary_since | policy",
    texts="why",
)
_COLUMNS = ("prediction_id", "version", "arm", "shadow", "unit", "predicted_at", "latency_ms", "outputs")


class RolloutSummary(BaseModel):
    """Summary of a model's newest rollout. since: when its stage began, or it ended."""

    model_config = ConfigDict(frozen=True)

    model: str
    rollout: int
    champion: int
    challenger: int
    stage: str
    is_open: bool
    paused: bool
    started_at: AwareDatetime
    since: AwareDatetime
    reason: str

    @classmethod
    def of(cls, model: str, state: RolloutState) -> RolloutSummary:
        """Summarise the state of a rollout of `model`."""
        return cls(
            model=model,
            rollout=state.rollout,
            champion=state.champion,
            challenger=state.challenger,
            stage=state.stage,
            is_open=state.is_open,
            paused=state.paused,
            started_at=state.started_at,
            since=state.stage_since,
            reason=state.reason,
        )


class HasRollout(Protocol):
    """Definition of a model that declares how challengers are rolled out."""

    @property
    def rollout(self) -> RolloutPolicy:
        """The policy of the model's rollouts."""
        ...


def rollouts(model: str, *, read_live: ReadLive | None = None) -> Rollouts:
    """Return the controller of the rollouts of `model` in the context's store, on its clock.

    read_live: reads live counts; by default those of the context's Redis.
    """
    used = context()
    return Rollouts(
        model,
        store=used.store,
        registry=used.registry(),
        read=lambda start, end: outcomes(
            used.store, model, start, end, labelled_only=False, columns=_COLUMNS
        ),
        read_metric=lambda guardrail, since: (
            read_score(used, model, guardrail.name, since)
            if guardrail.source == "score"
            else MetricRows(read_metric(used.store, guardrail.name, since))
        ),
        read_live=read_live or live_counts(used),
        clock=used.clock,
        actor=used.actor,
    )


def live_counts(used: Context) -> ReadLive | None:
    """Return the reader of live counts; None without Redis, or on a replayed clock, which has no last minutes."""
    if used.redis_url is None or used.clock is not system_clock:
        return None
    reader = live_reader(used.redis_url, used.workspace)
    return lambda model, windows: reader.windows(model, windows, time.time())


def declared_policy(model: str) -> RolloutPolicy:
    """Find the rollout policy that the project declares for `model`; the default one where it defines no such model.

    Raises: ProjectError if the project is set and cannot be imported.
    """
    module = context().project
    definition: HasRollout | None = declarations(module).models.get(model) if module else None
    return RolloutPolicy() if definition is None else definition.rollout


@function(http=True, timeout_s=120, command="rollout start MODEL VERSION", view=STATE_VIEW)
def start_rollout(
    model: Model,
    version: Annotated[
        int,
        Field(
            ge=1, le=1_000_000_000, description="Version that is tried, first as a shadow of the champion."
        ),
    ],
    policy: Annotated[
        RolloutPolicy | None,
        Field(description="Rules of the rollout; the model's declared ones unless given."),
    ] = None,
    reason: Reason = "",
    rivals: Annotated[
        tuple[Annotated[int, Field(ge=1, le=1_000_000_000)], ...],
        Field(
            description=(
                "Further versions that compete with it in the shadow; "
                "the best goes on alone, at alpha over their number."
            )
        ),
    ] = (),
) -> RolloutState:
    """Start a rollout of `version`, first as a shadow of the champion.

    Raises: RolloutActive while another version is under way; RolloutError if one cannot be served, the loss is none of texts
    and the version a language model's, or a guardrail names a score that nobody makes.
    """
    policy = fitting_policy(policy or declared_policy(model), model, version)
    _check_scores(policy, model)
    return rollouts(model).start(version, policy, reason=reason, rivals=rivals)


@function(http=True, role="viewer", timeout_s=60, in_thread=True)
def list_rollouts() -> list[RolloutSummary]:
    """List the newest rollout of each model of the workspace, those under way first, then the newest."""
    found = [
        RolloutSummary.of(model, state)
        for model in models_in(context().store, "rollouts")
        if (state := rollouts(model).history().current) is not None
    ]
    return sorted(found, key=lambda each: (each.is_open, each.since), reverse=True)


@function(http=True, role="viewer", timeout_s=60)
def rollout_budget(
    model: Model,
    policy: Annotated[
        RolloutPolicy | None,
        Field(description="Rules that bound the wrong promotions; the model's declared ones unless given."),
    ] = None,
) -> Budget:
    """Report how many wrong promotions the past year's rollouts may have made, and what is left of the budget."""
    return rollouts(model).budget(policy or declared_policy(model))


@function(http=True, timeout_s=60)
def record_metric(
    name: Annotated[MetricName, Field(description="Name of the metric, as its guardrail has it.")],
    values: Annotated[
        list[MetricValue],
        Field(description="Values of single predictions, which are added to the metric's table."),
    ],
) -> int:
    """Add values of a business metric that a guardrail with source "table" reads; returns how many."""
    return write_metric(context().store, name, values)


@function(
    http=True,
    timeout_s=120,
    command="rollout tick MODEL",
    view=View(
        facts="model | rollout | version: challenger | stage | action | decided by: rule | why: text | labels"
        " | improvement in loss: estimate | from: lower | to: upper | entry",
        texts="why",
    ),
)
def tick_rollout(model: Model) -> TickResult:
    """Judge the open rollout once: hold, advance, promote, roll back, or give up; appends at most one journal entry."""
    return rollouts(model).tick()


@function(http=True, timeout_s=60, command="rollout pause MODEL", view=STATE_VIEW)
def pause_rollout(model: Model, reason: Reason) -> RolloutState:
    """Stop advancing and promoting, while the guardrails go on. Raises: NoRollout."""
    return rollouts(model).pause(reason=reason)


@function(http=True, timeout_s=60, command="rollout resume MODEL", view=STATE_VIEW)
def resume_rollout(model: Model, reason: Reason) -> RolloutState:
    """Go on with a rollout after a pause. Raises: NoRollout."""
    return rollouts(model).resume(reason=reason)


@function(
    http=True,
    timeout_s=60,
    command=(
        "rollout end MODEL ACTION",
        "rollout promote MODEL action=promote",
        "rollout abort MODEL action=roll_back",
    ),
    view=STATE_VIEW,
)
def end_rollout(
    model: Model,
    action: Annotated[
        Literal["promote", "roll_back", "inconclusive"],
        Field(
            description=(
                'How it ends: "promote" makes the challenger the champion, '
                "the other two take it out of the traffic."
            )
        ),
    ],
    reason: Reason,
) -> RolloutState:
    """End the open rollout by hand. Raises: NoRollout."""
    return rollouts(model).end(action, reason=reason)


@function(http=True, role="viewer", timeout_s=60, in_thread=True)
def rollout_status(model: Model) -> History:
    """Return the newest rollout and how the last ones ended."""
    return rollouts(model).history()


@function(http=True, role="viewer", timeout_s=60, in_thread=True)
def rollout_record(model: Model, rollout: RolloutNumber = None) -> RolloutRecord:
    """Give the looks, decisions and changes of one rollout of `model`; looks that only held are thinned out.

    Raises: RolloutError if no rollout began there.
    """
    return record_of(model, *read_rollout(rollouts(model).entries(), rollout))


@function(http=True, role="viewer", timeout_s=120)
def look_at_rollout(model: Model) -> RolloutStatus:
    """Report how the newest rollout stands: samples of each arm, effect, guards, what comes next; decides nothing.

    Raises: NoRollout if there never was one.
    """
    return rollouts(model).status()


@function(
    http=True, role="viewer", timeout_s=60, command="rollout explain MODEL ENTRY", view=View(text="{text}")
)
def explain_rollout(
    model: Model,
    entry: Annotated[
        int,
        Field(
            ge=0,
            le=1_000_000_000,
            description="Number of the entry of the rollout's journal that records the decision.",
        ),
    ],
) -> Explanation:
    """Replay the decision of a journal entry from the journal alone. Raises: RolloutError."""
    return rollouts(model).explain(entry)


def fitting_policy(policy: RolloutPolicy, model: str, version: int) -> RolloutPolicy:
    """Give a language model's rollout a loss of texts: what users correct is paired with both answers, thumbs are not a truth.

    Raises: RolloutError if the policy names another loss.
    """
    found = context().registry().find_version(model, version)
    losses = MEANINGS["text"].losses
    if found is None or not is_generative(found) or policy.loss in losses:
        return policy
    if "loss" in policy.model_fields_set:
        raise RolloutError(
            f"policy.loss={policy.loss!r}: {model}@{version} is a language model, whose answers are texts; leave it out, or name "
            f"one of {', '.join(losses)}"
        )
    return policy.model_copy(update={"loss": losses[0]})


def _check_scores(policy: RolloutPolicy, model: str) -> None:
    """Refuse guardrails by scores that are not made of the model's live answers. Raises: RolloutError."""
    wanted = [each.name for each in policy.guardrails if each.source == "score"]
    if not wanted:
        return
    used = context()
    monitors = monitors_journal(used.store, model, actor=used.actor).refresh().monitors
    known = [] if monitors is None else [each.label for each in monitors.scorers]
    if missing := sorted(set(wanted) - set(known)):
        raise RolloutError(
            f"guardrails: {missing} with source='score', and the live answers of {model!r} are scored by {known}; have "
            "set_language_monitors score them first"
        )
