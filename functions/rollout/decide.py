"""The judge: `decide(state, evidence, policy, now)`, a pure function whose every finding is recorded.

The rules are asked in the order of `RULES`; the first that fires decides. What protects users stands before the pause,
so a paused rollout still rolls back; what lets a challenger through stands after it and needs evidence that is there,
finite and enough, so no traffic, no labels and no numbers can only ever hold or end inconclusive.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from pydantic import BaseModel, ConfigDict

from functions.rollout.evidence import Evidence
from functions.rollout.interval import Improvement, excess_p_value, improvement
from functions.rollout.policy import RolloutPolicy
from functions.rollout.state import RolloutState

Action = Literal["hold", "advance", "promote", "roll_back", "inconclusive"]


class Finding(BaseModel):
    """What one rule found: a statistic, the threshold it was held against, and the sentence a person reads."""

    model_config = ConfigDict(frozen=True)

    rule: str
    fired: bool
    text: str
    statistic: float | None = None
    threshold: float | None = None


class Decision(BaseModel):
    """What to do, by which rule, and what every rule found."""

    model_config = ConfigDict(frozen=True)

    action: Action
    rule: str
    findings: tuple[Finding, ...]

    @property
    def text(self) -> str:
        """The sentence of the rule that decided."""
        return next((finding.text for finding in self.findings if finding.rule == self.rule), "no rule fired")


@dataclass(frozen=True, slots=True)
class _Look:
    state: RolloutState
    evidence: Evidence
    policy: RolloutPolicy
    now: datetime
    improvement: Improvement | None

    @property
    def in_stage(self) -> timedelta:
        return self.now - self.state.stage_since


def decide(state: RolloutState, evidence: Evidence, policy: RolloutPolicy, now: datetime) -> Decision:
    """Judge an open rollout.

    Raises: ValueError if the rollout has ended or `now` has no time zone.
    """
    if not state.is_open:
        raise ValueError(f"rollout {state.rollout} ended as {state.stage}; there is nothing left to decide")
    if now.tzinfo is None:
        raise ValueError(f"now {now} has no time zone; pass an aware UTC time")
    look = _Look(state, evidence, policy, now, improvement(evidence.loss, policy))
    findings = [(action, rule(look)) for action, rule in RULES]
    action, rule = next(((a, f.rule) for a, f in findings if f.fired), ("hold", "undecided"))
    return Decision(action=action, rule=rule, findings=tuple(finding for _, finding in findings))


def _challenger_unusable(look: _Look) -> Finding:
    problem = look.evidence.challenger_problem
    text = f"challenger {look.state.challenger} is usable" if problem is None else problem
    return Finding(rule="challenger_unusable", fired=problem is not None, text=text)


def _champion_changed(look: _Look) -> Finding:
    live, judged = look.evidence.champion, look.state.champion
    text = f"the champion is {live}, this rollout compares with {judged}"
    return Finding(rule="champion_changed", fired=live != judged, text=text)


def _errors(look: _Look) -> Finding:
    return _guard(look, "errors")


def _slow(look: _Look) -> Finding:
    return _guard(look, "slow")


def _guard(look: _Look, event: Literal["errors", "slow"]) -> Finding:
    """Count test in the stage that runs; a shadow's latency is off the users' path and is not judged."""
    stage = look.state.stage
    counts = look.evidence.canary if stage == "canary" else look.evidence.shadow
    # A shadow scores the champion's own requests: under the null an error is either version's with equal chance.
    share = look.policy.canary_share if stage == "canary" else 0.5
    ours, theirs = getattr(counts, f"challenger_{event}"), getattr(counts, f"champion_{event}")
    if event == "slow" and (look.policy.slow_ms is None or stage == "shadow"):
        return Finding(rule=event, fired=False, text="latency is not judged here")
    p = excess_p_value(ours, theirs, share)
    text = (
        f"{event} in {stage}: challenger {ours}, champion {theirs}, expected share {share:.3g}, p = {p:.3g}"
    )
    return Finding(
        rule=event,
        fired=p < look.policy.guard_alpha,
        text=text,
        statistic=p,
        threshold=look.policy.guard_alpha,
    )


def _worse(look: _Look) -> Finding:
    gain = look.improvement
    if gain is None or not math.isfinite(gain.upper):
        return Finding(rule="worse", fired=False, text=_unjudged(look))
    text = f"improvement is below {gain.upper:.5f} at level {look.policy.alpha}"
    return Finding(rule="worse", fired=gain.upper < 0, text=text, statistic=gain.upper, threshold=0.0)


def _paused(look: _Look) -> Finding:
    paused = look.state.paused
    return Finding(rule="paused", fired=paused, text="paused by hand" if paused else "not paused")


def _clock_went_back(look: _Look) -> Finding:
    fired = look.in_stage < timedelta(0)
    text = f"{look.in_stage} in stage {look.state.stage}"
    return Finding(rule="clock_went_back", fired=fired, text=text)


def _shadow_good_enough(look: _Look) -> Finding:
    gain, policy = look.improvement, look.policy
    if look.state.stage != "shadow":
        return Finding(rule="shadow_done", fired=False, text="not in shadow")
    thin = _thin_evidence(look)
    if gain is None or thin is not None:
        return Finding(rule="shadow_done", fired=False, text=thin or _unjudged(look))
    enough = gain.labels >= policy.shadow_min_labels
    text = f"estimated improvement {gain.estimate:.5f} on {gain.labels} of {policy.shadow_min_labels} paired labels"
    return Finding(
        rule="shadow_done",
        fired=enough and gain.estimate > policy.min_effect,
        text=text,
        statistic=gain.estimate,
        threshold=policy.min_effect,
    )


def _better(look: _Look) -> Finding:
    gain, policy = look.improvement, look.policy
    if look.state.stage != "canary":
        return Finding(rule="better", fired=False, text="not in canary")
    thin = _thin_evidence(look) or _thin_canary(look)
    if gain is None or thin is not None:
        return Finding(rule="better", fired=False, text=thin or _unjudged(look))
    if not math.isfinite(gain.lower):
        return Finding(rule="better", fired=False, text=_unjudged(look))
    text = f"improvement is above {gain.lower:.5f} at level {policy.alpha} ({gain.labels} paired labels)"
    fired = gain.lower > policy.min_effect
    return Finding(rule="better", fired=fired, text=text, statistic=gain.lower, threshold=policy.min_effect)


def _too_small(look: _Look) -> Finding:
    gain, floor = look.improvement, look.policy.min_effect
    if gain is None or not math.isfinite(gain.upper):
        return Finding(rule="too_small", fired=False, text=_unjudged(look))
    text = f"improvement is below {gain.upper:.5f}; {floor} would be worth a promotion"
    fired = gain.upper < floor
    return Finding(rule="too_small", fired=fired, text=text, statistic=gain.upper, threshold=floor)


def _timed_out(look: _Look) -> Finding:
    policy, stage = look.policy, look.state.stage
    limit = policy.canary_timeout if stage == "canary" else policy.shadow_timeout
    seconds, limit_s = look.in_stage.total_seconds(), limit.total_seconds()
    text = f"{look.in_stage} in {stage}, at most {limit}"
    return Finding(
        rule="timed_out", fired=seconds >= limit_s, text=text, statistic=seconds, threshold=limit_s
    )


def _thin_evidence(look: _Look) -> str | None:
    """Why the loss must not let a challenger through, or None."""
    loss, policy = look.evidence.loss, look.policy
    if loss.pairs < policy.min_shadow_share * loss.requests:
        return f"the shadow scored {loss.pairs} of {loss.requests} requests; {policy.min_shadow_share:.0%} are needed"
    if loss.labels < policy.min_label_share * loss.pairs:
        return f"{loss.labels} of {loss.pairs} pairs have a label; {policy.min_label_share:.0%} are needed"
    return None


def _thin_canary(look: _Look) -> str | None:
    """Why the canary has not been seen enough by users, or None."""
    counts, policy = look.evidence.canary, look.policy
    if counts.challenger < policy.canary_min_requests:
        return f"the canary answered {counts.challenger} of {policy.canary_min_requests} requests"
    if counts.champion == 0:
        return "the champion answered no request beside the canary; there is nothing to compare with"
    if look.in_stage < policy.canary_min:
        return f"{look.in_stage} in canary, at least {policy.canary_min}"
    return None


def _unjudged(look: _Look) -> str:
    loss = look.evidence.loss
    return (
        f"the loss is not judged: {loss.labels} paired labels in {loss.by_cohort.clusters} cohorts "
        f"(from {look.policy.burn_in} on, and only where they are finite and vary)"
    )


RULES: tuple[tuple[Action, Callable[[_Look], Finding]], ...] = (
    ("roll_back", _challenger_unusable),
    ("inconclusive", _champion_changed),
    ("roll_back", _errors),
    ("roll_back", _slow),
    ("roll_back", _worse),
    ("hold", _paused),
    ("hold", _clock_went_back),
    ("advance", _shadow_good_enough),
    ("promote", _better),
    ("inconclusive", _too_small),
    ("inconclusive", _timed_out),
)
