"""Decision on an open rollout: `decide(state, evidence, policy, now)`, a pure function whose every finding is recorded.

The rules are asked in the order of `RULES`; the first that fires decides. What protects users stands before the pause,
so a paused rollout still rolls back; what lets a challenger through stands after it and needs evidence that is there,
finite and enough, so no traffic, no labels and no numbers can only ever hold or end inconclusive.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from datetime import datetime, timedelta

from toque.functions.rollout.evidence.sums import Evidence
from toque.functions.rollout.judge.guard_rules import (
    LIVE_GUARDS,
    errors,
    guardrails,
    live_errors,
    live_latency,
    live_missing,
    mismatch,
    not_shown_harmless,
    ramp,
    service_done,
    service_shadow_done,
    slow,
)
from toque.functions.rollout.judge.interval import improvement
from toque.functions.rollout.judge.slo import budget_burns, budget_spent
from toque.functions.rollout.judge.verdict import (
    Action,
    Decision,
    Finding,
    RuleInput,
    combine_decisions,
    with_shared_alpha,
)
from toque.functions.rollout.policy import RolloutPolicy
from toque.functions.rollout.state import RolloutState

__all__ = ["LIVE_RULES", "RULES", "Action", "Decision", "Finding", "decide"]


def decide(
    state: RolloutState,
    evidence: Evidence,
    policy: RolloutPolicy,
    now: datetime,
    *,
    rules: Collection[str] | None = None,
) -> Decision:
    """Judge an open rollout by its evidence.

    rules: names of the rules to ask, all of them unless given; an old decision is replayed by the rules of its time.
    Raises: ValueError if the rollout has ended or `now` has no time zone.
    """
    if not state.is_open:
        raise ValueError(f"rollout {state.rollout} ended as {state.stage}; there is nothing left to decide")
    if now.tzinfo is None:
        raise ValueError(f"now {now} has no time zone; pass an aware UTC time")
    policy = with_shared_alpha(policy, state)
    if not state.rivals:
        return _decide_one(state, evidence, policy, now, rules)
    each = {state.challenger: evidence} | {
        version: evidence.rivals.get(version, Evidence(champion=evidence.champion))
        for version in state.rivals
    }
    return combine_decisions(
        {
            version: _decide_one(state.only(version), found, policy, now, rules)
            for version, found in each.items()
        }
    )


def _decide_one(
    state: RolloutState,
    evidence: Evidence,
    policy: RolloutPolicy,
    now: datetime,
    rules: Collection[str] | None,
) -> Decision:
    inputs = RuleInput(state, evidence, policy, now, improvement(evidence.loss, policy))
    findings = [(action, rule(inputs)) for name, action, rule in RULES if rules is None or name in rules]
    action, rule = next(((a, f.rule) for a, f in findings if f.fired), ("hold", "undecided"))
    return Decision(action=action, rule=rule, findings=tuple(finding for _, finding in findings))


def _challenger_unusable(inputs: RuleInput) -> Finding:
    problem = inputs.evidence.challenger_problem
    text = f"challenger {inputs.state.challenger} is usable" if problem is None else problem
    return Finding(rule="challenger_unusable", fired=problem is not None, text=text)


def _champion_changed(inputs: RuleInput) -> Finding:
    live, judged = inputs.evidence.champion, inputs.state.champion
    text = f"the champion is {live}, this rollout compares with {judged}"
    return Finding(rule="champion_changed", fired=live != judged, text=text)


def _worse(inputs: RuleInput) -> Finding:
    gain = inputs.improvement
    if gain is None or not math.isfinite(gain.upper):
        return Finding(rule="worse", fired=False, text=_not_judged_text(inputs))
    text = f"improvement is below {gain.upper:.5f} at level {_level(inputs)}"
    return Finding(rule="worse", fired=gain.upper < 0, text=text, statistic=gain.upper, threshold=0.0)


def _paused(inputs: RuleInput) -> Finding:
    paused = inputs.state.paused
    return Finding(rule="paused", fired=paused, text="paused by hand" if paused else "not paused")


def _clock_went_back(inputs: RuleInput) -> Finding:
    fired = inputs.in_stage < timedelta(0)
    text = f"{inputs.in_stage} in stage {inputs.state.stage}"
    return Finding(rule="clock_went_back", fired=fired, text=text)


def _shadow_good_enough(inputs: RuleInput) -> Finding:
    gain, policy = inputs.improvement, inputs.policy
    if inputs.state.stage != "shadow":
        return Finding(rule="shadow_done", fired=False, text="not in shadow")
    thin = _missing_evidence(inputs)
    if gain is None or thin is not None:
        return Finding(rule="shadow_done", fired=False, text=thin or _not_judged_text(inputs))
    enough = gain.labels >= policy.shadow_min_labels
    text = f"estimated improvement {gain.estimate:.5f} on {gain.labels} of {policy.shadow_min_labels} paired labels"
    return Finding(
        rule="shadow_done",
        fired=enough and gain.estimate > policy.min_effect,
        text=text,
        statistic=gain.estimate,
        threshold=policy.min_effect,
    )


def _better(inputs: RuleInput) -> Finding:
    gain, policy = inputs.improvement, inputs.policy
    if inputs.state.stage != "canary":
        return Finding(rule="better", fired=False, text="not in canary")
    thin = (
        _missing_evidence(inputs)
        or _missing_canary_evidence(inputs)
        or _missing_season(inputs)
        or not_shown_harmless(inputs)
    )
    if gain is None or thin is not None:
        return Finding(rule="better", fired=False, text=thin or _not_judged_text(inputs))
    if not math.isfinite(gain.lower):
        return Finding(rule="better", fired=False, text=_not_judged_text(inputs))
    text = f"improvement is above {gain.lower:.5f} at level {_level(inputs)} ({gain.labels} paired labels)"
    fired = gain.lower > policy.min_effect
    return Finding(rule="better", fired=fired, text=text, statistic=gain.lower, threshold=policy.min_effect)


def _too_small(inputs: RuleInput) -> Finding:
    gain, floor = inputs.improvement, inputs.policy.min_effect
    if gain is None or not math.isfinite(gain.upper):
        return Finding(rule="too_small", fired=False, text=_not_judged_text(inputs))
    text = f"improvement is below {gain.upper:.5f}; {floor} would be worth a promotion"
    fired = gain.upper < floor
    return Finding(rule="too_small", fired=fired, text=text, statistic=gain.upper, threshold=floor)


def _timed_out(inputs: RuleInput) -> Finding:
    policy, stage = inputs.policy, inputs.state.stage
    limit = policy.canary_timeout if stage == "canary" else policy.shadow_timeout
    seconds, limit_s = inputs.in_stage.total_seconds(), limit.total_seconds()
    text = f"{inputs.in_stage} in {stage}, at most {limit}"
    return Finding(
        rule="timed_out", fired=seconds >= limit_s, text=text, statistic=seconds, threshold=limit_s
    )


def _missing_evidence(inputs: RuleInput) -> str | None:
    """Say why the loss must not let a challenger through yet, or None."""
    loss, policy = inputs.evidence.loss, inputs.policy
    if loss.pairs < policy.min_shadow_share * loss.requests:
        return f"the shadow scored {loss.pairs} of {loss.requests} requests; {policy.min_shadow_share:.0%} are needed"
    if loss.labels < policy.min_label_share * loss.pairs:
        return f"{loss.labels} of {loss.pairs} pairs have a label; {policy.min_label_share:.0%} are needed"
    return _missing_answers(inputs)


def _missing_answers(inputs: RuleInput) -> str | None:
    """Say that more of the challenger's requests than of the champion's have no finite answer, or None.

    By requests: units may be one caller. Its losses say nothing of those requests, as they have none.
    """
    loss, canary, margin = inputs.evidence.loss, inputs.evidence.canary, inputs.policy.error_margin
    both = loss.pairs + loss.champion_unanswered + loss.challenger_unanswered
    ours, theirs = loss.challenger_unanswered, loss.champion_unanswered
    if ours > theirs + margin * both:
        return (
            f"{ours} of {both} requests that both scored have no finite answer of the challenger alone, {theirs} of the "
            f"champion alone; at most {margin:.2%} more are allowed"
        )
    if not canary.champion:
        return None
    usual = canary.champion_unanswered / canary.champion
    ours, noise = (
        canary.challenger_unanswered,
        usual * (1 - usual) * (1 + canary.challenger / canary.champion),
    )
    if ours > (usual + margin) * canary.challenger + 2 * math.sqrt(noise * canary.challenger):
        return (
            f"{ours} of {canary.challenger} requests of the canary have no finite answer, {usual:.2%} of the champion's; "
            f"at most {margin:.2%} more are allowed"
        )
    return None


def _missing_canary_evidence(inputs: RuleInput) -> str | None:
    """Say why the canary has not met enough users yet, or None."""
    counts, policy = inputs.evidence.canary, inputs.policy
    if counts.challenger < policy.canary_min_requests:
        return f"the canary answered {counts.challenger} of {policy.canary_min_requests} requests"
    if counts.champion == 0:
        return "the champion answered no request beside the canary; there is nothing to compare with"
    if inputs.in_stage < policy.canary_min:
        return f"{inputs.in_stage} in canary, at least {policy.canary_min}"
    if not inputs.state.is_last_step:
        return f"step {inputs.state.step + 1} of {len(policy.shares)} of the ramp"
    return None


def _missing_season(inputs: RuleInput) -> str | None:
    """Say how much of a whole season is missing, or None."""
    season, cohorts = inputs.policy.season, inputs.evidence.loss.by_cohort
    judged = cohorts.span * inputs.policy.cohort
    if not cohorts.span or judged >= season:
        return None
    return f"labels of {judged} were judged; a whole season of {season} is needed"


def _level(inputs: RuleInput) -> str:
    """Format alpha; that of a single challenger as the policy has it, since recorded texts are replayed to the letter."""
    alpha = inputs.policy.alpha
    return f"{alpha:.4g}" if inputs.state.entered else f"{alpha}"


def _not_judged_text(inputs: RuleInput) -> str:
    loss = inputs.evidence.loss
    return (
        f"the loss is not judged: {loss.labels} paired labels in {loss.by_cohort.clusters} cohorts "
        f"(from {inputs.policy.burn_in} on, and only where they are finite and vary)"
    )


RULES: tuple[tuple[str, Action, Callable[[RuleInput], Finding]], ...] = (
    ("challenger_unusable", "roll_back", _challenger_unusable),
    ("champion_changed", "inconclusive", _champion_changed),
    ("errors", "roll_back", errors),
    ("slow", "roll_back", slow),
    ("live_errors", "roll_back", live_errors),
    ("live_missing", "roll_back", live_missing),
    ("live_latency", "roll_back", live_latency),
    ("guardrails", "roll_back", guardrails),
    ("budget_burns", "roll_back", budget_burns),
    ("worse", "roll_back", _worse),
    ("mismatch", "inconclusive", mismatch),
    ("paused", "hold", _paused),
    ("clock_went_back", "hold", _clock_went_back),
    ("budget_spent", "hold", budget_spent),
    ("shadow_done", "advance", _shadow_good_enough),
    ("better", "promote", _better),
    ("service_shadow_done", "advance", service_shadow_done),
    ("service_done", "promote", service_done),
    ("ramp", "ramp", ramp),
    ("too_small", "inconclusive", _too_small),
    ("timed_out", "inconclusive", _timed_out),
)

# What can be asked every ten seconds, without reading the log. What lets a challenger through is asked again with all evidence.
LIVE_RULES = frozenset(
    {"challenger_unusable", "champion_changed", *LIVE_GUARDS, "paused", "clock_went_back"}
    | {"service_shadow_done", "service_done", "ramp"}
)
