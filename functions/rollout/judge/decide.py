"""The judge: `decide(state, evidence, policy, now)`, a pure function whose every finding is recorded.

The rules are asked in the order of `RULES`; the first that fires decides. What protects users stands before the pause,
so a paused rollout still rolls back; what lets a challenger through stands after it and needs evidence that is there,
finite and enough, so no traffic, no labels and no numbers can only ever hold or end inconclusive.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from datetime import datetime, timedelta

from functions.rollout.evidence.sums import Evidence
from functions.rollout.judge.arms import combine, shared
from functions.rollout.judge.guards import errors, guardrails, mismatch, not_shown_harmless, slow
from functions.rollout.judge.interval import improvement
from functions.rollout.judge.rule_input import Finding, Look
from functions.rollout.judge.slo import budget_burns, budget_spent
from functions.rollout.judge.verdict import Action, Decision
from functions.rollout.policy import RolloutPolicy
from functions.rollout.state import RolloutState

__all__ = ["RULES", "Action", "Decision", "Finding", "decide"]


def decide(
    state: RolloutState,
    evidence: Evidence,
    policy: RolloutPolicy,
    now: datetime,
    *,
    rules: Collection[str] | None = None,
) -> Decision:
    """Judge an open rollout.

    rules: names of the rules to ask, all of them unless given; a decision of long ago is made again by those there were.
    Raises: ValueError if the rollout has ended or `now` has no time zone.
    """
    if not state.is_open:
        raise ValueError(f"rollout {state.rollout} ended as {state.stage}; there is nothing left to decide")
    if now.tzinfo is None:
        raise ValueError(f"now {now} has no time zone; pass an aware UTC time")
    policy = shared(policy, state)
    if not state.rivals:
        return _alone(state, evidence, policy, now, rules)
    each = {state.challenger: evidence} | {
        version: evidence.rivals.get(version, Evidence(champion=evidence.champion))
        for version in state.rivals
    }
    return combine(
        {version: _alone(state.only(version), found, policy, now, rules) for version, found in each.items()}
    )


def _alone(
    state: RolloutState,
    evidence: Evidence,
    policy: RolloutPolicy,
    now: datetime,
    rules: Collection[str] | None,
) -> Decision:
    look = Look(state, evidence, policy, now, improvement(evidence.loss, policy))
    findings = [(action, rule(look)) for name, action, rule in RULES if rules is None or name in rules]
    action, rule = next(((a, f.rule) for a, f in findings if f.fired), ("hold", "undecided"))
    return Decision(action=action, rule=rule, findings=tuple(finding for _, finding in findings))


def _challenger_unusable(look: Look) -> Finding:
    problem = look.evidence.challenger_problem
    text = f"challenger {look.state.challenger} is usable" if problem is None else problem
    return Finding(rule="challenger_unusable", fired=problem is not None, text=text)


def _champion_changed(look: Look) -> Finding:
    live, judged = look.evidence.champion, look.state.champion
    text = f"the champion is {live}, this rollout compares with {judged}"
    return Finding(rule="champion_changed", fired=live != judged, text=text)


def _worse(look: Look) -> Finding:
    gain = look.improvement
    if gain is None or not math.isfinite(gain.upper):
        return Finding(rule="worse", fired=False, text=_unjudged(look))
    text = f"improvement is below {gain.upper:.5f} at level {_level(look)}"
    return Finding(rule="worse", fired=gain.upper < 0, text=text, statistic=gain.upper, threshold=0.0)


def _paused(look: Look) -> Finding:
    paused = look.state.paused
    return Finding(rule="paused", fired=paused, text="paused by hand" if paused else "not paused")


def _clock_went_back(look: Look) -> Finding:
    fired = look.in_stage < timedelta(0)
    text = f"{look.in_stage} in stage {look.state.stage}"
    return Finding(rule="clock_went_back", fired=fired, text=text)


def _shadow_good_enough(look: Look) -> Finding:
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


def _better(look: Look) -> Finding:
    gain, policy = look.improvement, look.policy
    if look.state.stage != "canary":
        return Finding(rule="better", fired=False, text="not in canary")
    thin = _thin_evidence(look) or _thin_canary(look) or not_shown_harmless(look)
    if gain is None or thin is not None:
        return Finding(rule="better", fired=False, text=thin or _unjudged(look))
    if not math.isfinite(gain.lower):
        return Finding(rule="better", fired=False, text=_unjudged(look))
    text = f"improvement is above {gain.lower:.5f} at level {_level(look)} ({gain.labels} paired labels)"
    fired = gain.lower > policy.min_effect
    return Finding(rule="better", fired=fired, text=text, statistic=gain.lower, threshold=policy.min_effect)


def _too_small(look: Look) -> Finding:
    gain, floor = look.improvement, look.policy.min_effect
    if gain is None or not math.isfinite(gain.upper):
        return Finding(rule="too_small", fired=False, text=_unjudged(look))
    text = f"improvement is below {gain.upper:.5f}; {floor} would be worth a promotion"
    fired = gain.upper < floor
    return Finding(rule="too_small", fired=fired, text=text, statistic=gain.upper, threshold=floor)


def _timed_out(look: Look) -> Finding:
    policy, stage = look.policy, look.state.stage
    limit = policy.canary_timeout if stage == "canary" else policy.shadow_timeout
    seconds, limit_s = look.in_stage.total_seconds(), limit.total_seconds()
    text = f"{look.in_stage} in {stage}, at most {limit}"
    return Finding(
        rule="timed_out", fired=seconds >= limit_s, text=text, statistic=seconds, threshold=limit_s
    )


def _thin_evidence(look: Look) -> str | None:
    """Why the loss must not let a challenger through, or None."""
    loss, policy = look.evidence.loss, look.policy
    if loss.pairs < policy.min_shadow_share * loss.requests:
        return f"the shadow scored {loss.pairs} of {loss.requests} requests; {policy.min_shadow_share:.0%} are needed"
    if loss.labels < policy.min_label_share * loss.pairs:
        return f"{loss.labels} of {loss.pairs} pairs have a label; {policy.min_label_share:.0%} are needed"
    return None


def _thin_canary(look: Look) -> str | None:
    """Why the canary has not been seen enough by users, or None."""
    counts, policy = look.evidence.canary, look.policy
    if counts.challenger < policy.canary_min_requests:
        return f"the canary answered {counts.challenger} of {policy.canary_min_requests} requests"
    if counts.champion == 0:
        return "the champion answered no request beside the canary; there is nothing to compare with"
    if look.in_stage < policy.canary_min:
        return f"{look.in_stage} in canary, at least {policy.canary_min}"
    return None


def _level(look: Look) -> str:
    """Alpha as a person reads it. Alone it is printed as the policy has it: recorded texts are made again to the letter."""
    alpha = look.policy.alpha
    return f"{alpha:.4g}" if look.state.entered else f"{alpha}"


def _unjudged(look: Look) -> str:
    loss = look.evidence.loss
    return (
        f"the loss is not judged: {loss.labels} paired labels in {loss.by_cohort.clusters} cohorts "
        f"(from {look.policy.burn_in} on, and only where they are finite and vary)"
    )


RULES: tuple[tuple[str, Action, Callable[[Look], Finding]], ...] = (
    ("challenger_unusable", "roll_back", _challenger_unusable),
    ("champion_changed", "inconclusive", _champion_changed),
    ("errors", "roll_back", errors),
    ("slow", "roll_back", slow),
    ("guardrails", "roll_back", guardrails),
    ("budget_burns", "roll_back", budget_burns),
    ("worse", "roll_back", _worse),
    ("mismatch", "inconclusive", mismatch),
    ("paused", "hold", _paused),
    ("clock_went_back", "hold", _clock_went_back),
    ("budget_spent", "hold", budget_spent),
    ("shadow_done", "advance", _shadow_good_enough),
    ("better", "promote", _better),
    ("too_small", "inconclusive", _too_small),
    ("timed_out", "inconclusive", _timed_out),
)
