"""Status of a rollout for a person: what was counted so far, and what a tick did or would do; decides nothing."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict

from toque.functions.rollout.evidence.sums import Evidence, LateRows
from toque.functions.rollout.judge.decide import Decision, decide
from toque.functions.rollout.judge.interval import improvement
from toque.functions.rollout.judge.verdict import Finding
from toque.functions.rollout.record import Effect
from toque.functions.rollout.state import History, RolloutState, Stage
from toque.functions.rollout.traffic import CurrentTraffic
from toque.registry import Entry


class ArmStatus(BaseModel):
    """Counts of one version in the current stage.

    share: of the units that the rollout has; None for a shadow, which answers no request. errors, slow: units that met one.
    units: that met the split, each counted once; None in the shadow.
    """

    model_config = ConfigDict(frozen=True)

    arm: str
    version: int
    share: float | None
    answers: int
    errors: int
    slow: int
    units: int | None = None


class RolloutStatus(BaseModel):
    """Status of a rollout at one moment.

    reach: the part of all units that the arms share: less than 1 in a layer or beside a holdout. findings: of every rule.
    action, rule, text: the decision of now, or the last one of an ended rollout. next: what the rollout waits for, in a sentence.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    at: AwareDatetime
    rollout: int
    stage: str
    since: AwareDatetime
    is_open: bool
    paused: bool
    champion: int
    challengers: tuple[int, ...]
    reach: float
    arms: tuple[ArmStatus, ...] = ()
    effects: tuple[Effect, ...] = ()
    findings: tuple[Finding, ...] = ()
    action: str
    rule: str
    text: str
    next: str


def open_status(
    model: str, state: RolloutState, evidence: Evidence, traffic: CurrentTraffic, now: datetime
) -> RolloutStatus:
    """Describe an open rollout as of `evidence`."""
    decision = decide(state, evidence, state.policy, now)
    each = {state.challenger: evidence} | {
        version: evidence.rivals.get(version, Evidence(champion=evidence.champion))
        for version in state.rivals
    }
    return RolloutStatus(
        **_common_fields(model, state, now),
        reach=traffic.reach,
        arms=_arms(state, each, traffic),
        effects=tuple(Effect.of(version, found.loss, state) for version, found in each.items()),
        findings=decision.findings,
        action=decision.action,
        rule=decision.rule,
        text=decision.text,
        next=_next(state) + _late(evidence.late),
    )


def ended_status(
    model: str, state: RolloutState, history: History, traffic: CurrentTraffic, now: datetime
) -> RolloutStatus:
    """Describe how a rollout ended."""
    last = history.outcomes[-1]
    return RolloutStatus(
        **_common_fields(model, state, now),
        reach=traffic.reach,
        action=state.stage,
        rule=last.rule,
        text=last.note
        or f"ended {last.ended_at:%Y-%m-%d %H:%M} UTC as {state.stage.replace('_', ' ')} by {last.rule}",
        next="",
    )


def _common_fields(model: str, state: RolloutState, now: datetime) -> dict[str, object]:
    return {
        "model": model,
        "at": now,
        "rollout": state.rollout,
        "stage": state.stage,
        "since": state.stage_since,
        "is_open": state.is_open,
        "paused": state.paused,
        "champion": state.champion,
        "challengers": state.alive,
    }


def _arms(state: RolloutState, each: dict[int, Evidence], traffic: CurrentTraffic) -> tuple[ArmStatus, ...]:
    shares = {arm.version: (arm.name, arm.share) for arm in reversed(traffic.arms)}
    in_canary, own = state.stage == "canary", each[state.challenger]
    name, share = shares.get(state.champion, ("champion", 0.0))
    champion = _arm(own, "champion", state, name, state.champion, share, units=own.units.champion)
    others = [
        _arm(
            found,
            "challenger",
            state,
            *_name_and_share(shares, version, in_canary=in_canary),
            units=found.units.challenger,
        )
        for version, found in each.items()
    ]
    return (champion, *others)


def _name_and_share(
    shares: dict[int, tuple[str, float]], version: int, *, in_canary: bool
) -> tuple[str, int, float | None]:
    name, share = shares.get(version, ("canary", 0.0))
    return (name, version, share) if in_canary else ("shadow", version, None)


def _arm(
    evidence: Evidence,
    side: Literal["champion", "challenger"],
    state: RolloutState,
    name: str,
    version: int,
    share: float | None,
    *,
    units: int,
) -> ArmStatus:
    in_canary = state.stage == "canary"
    counts = evidence.canary if in_canary else evidence.shadow
    return ArmStatus(
        arm=name,
        version=version,
        share=share,
        answers=getattr(counts, side),
        errors=getattr(counts, f"{side}_errors"),
        slow=getattr(counts, f"{side}_slow"),
        units=units if in_canary else None,
    )


def _late(late: LateRows) -> str:
    """Say what the sums of the loss leave out, where that is anything."""
    if not late.late_rows and not late.late_labels:
        return ""
    return (
        f". Too late for the loss, of {late.cohorts} cohorts: {late.late_labels} of {late.labels} labels and "
        f"{late.late_rows} of {late.rows} answers; a longer label_delay would wait for them"
    )


def _next(state: RolloutState) -> str:
    policy = state.policy
    if state.paused:
        return "paused: nothing lets it through until it is resumed; what protects users goes on"
    if state.stage == "shadow":
        until = state.stage_since + policy.shadow_timeout
        return (
            f"a canary of {state.canary_share:.0%}, from {policy.shadow_min_labels} paired labels on, while the estimate is "
            f"above {policy.min_effect:g}; given up at {until:%Y-%m-%d %H:%M} UTC"
        )
    if not state.is_last_step:
        after = policy.shares[state.step + 1]
        return f"a share of {after:.2%}, when it is shown to serve as the champion does at {state.canary_share:.2%}"
    if policy.promote_by == "service":
        return "promoted when it is shown to serve as the champion does, whatever its answers are worth"
    until, opens = state.stage_since + policy.canary_timeout, state.stage_since + policy.canary_min
    return (
        f"promoted from {opens:%Y-%m-%d %H:%M} UTC on, when the improvement is above {policy.min_effect:g} for sure; "
        f"given up at {until:%Y-%m-%d %H:%M} UTC"
    )


class TickResult(BaseModel):
    """Result of one tick: what it found and did.

    entry: number of the journal entry it wrote; None: it wrote nothing.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    rollout: int | None = None
    challenger: int | None = None
    stage: str = "none"
    action: str = "hold"
    rule: str = "no_rollout"
    text: str = "no rollout is open"
    labels: int = 0
    estimate: float | None = None
    lower: float | None = None
    upper: float | None = None
    entry: int | None = None


def tick_result(
    model: str, state: RolloutState, stage: Stage, evidence: Evidence, decision: Decision, entry: Entry | None
) -> TickResult:
    """Say what a decision on evidence led to. entry: of the journal, or None if nothing was written."""
    gain = improvement(evidence.loss, state.policy)
    return TickResult(
        model=model,
        rollout=state.rollout,
        challenger=state.challenger,
        stage=stage,
        action=decision.action,
        rule=decision.rule,
        text=decision.text,
        labels=evidence.loss.labels,
        estimate=None if gain is None else gain.estimate,
        lower=None if gain is None else gain.lower,
        upper=None if gain is None else gain.upper,
        entry=None if entry is None else entry.number,
    )
