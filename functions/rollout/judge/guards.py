"""The rules that protect users, and the one that protects the experiment: errors, latency, business metrics, the split."""

from __future__ import annotations

import math
from typing import Literal

from functions.rollout.evidence.sums import MetricSums
from functions.rollout.judge.interval import excess_p_value, metric_change
from functions.rollout.judge.rule_input import Finding, Look
from functions.rollout.policy import Guardrail
from functions.stats import sequential_counts


def errors(look: Look) -> Finding:
    """More answers without an output than the champion's."""
    return _count(look, "errors")


def slow(look: Look) -> Finding:
    """More answers above `policy.slow_ms` than the champion's."""
    return _count(look, "slow")


def guardrails(look: Look) -> Finding:
    """A business metric is proven worse than the champion's by more than its margin."""
    chosen = look.policy.guardrails
    if not chosen or look.state.stage != "canary":
        return Finding(rule="guardrails", fired=False, text="no business metric is judged here")
    alpha = look.policy.guard_alpha / len(chosen)
    found = [_harm(look, guardrail, alpha) for guardrail in chosen]
    return next((finding for finding in found if finding.fired), _all_of(found))


def mismatch(look: Look) -> Finding:
    """The units are not split between champion and canary as declared: then nothing else that was counted can be believed.

    Source: Lindon and Malek, Anytime-valid inference for multinomial count data, 2022.
    """
    units, policy = look.evidence.units, look.policy
    if look.state.stage != "canary" or units.champion + units.challenger == 0:
        return Finding(rule="mismatch", fired=False, text="no unit has met a split yet")
    share = canary_share(look)
    test = sequential_counts(
        [units.challenger, units.champion], [share, 1 - share], alpha=policy.mismatch_alpha
    )
    text = (
        f"{units.challenger} of {units.challenger + units.champion} units are on the canary, {test.expected[0]:.1f} expected "
        f"at a share of {share:.3g}, p = {test.p:.3g}"
    )
    if test.reject:
        text = f"sample-ratio mismatch: {text}; find out why before another rollout, nothing it counted can be believed"
    return Finding(
        rule="mismatch", fired=test.reject, text=text, statistic=test.p, threshold=policy.mismatch_alpha
    )


def not_shown_harmless(look: Look) -> str | None:
    """Why a business metric does not let the challenger through yet, or None."""
    for guardrail in look.policy.guardrails:
        sums = look.evidence.metrics.get(guardrail.name, MetricSums())
        if sums.rows < look.policy.min_label_share * sums.requests:
            return f"guardrail {guardrail.name}: {sums.rows} of {sums.requests} answers have a value"
        change = metric_change(sums, guardrail, look.policy, look.policy.alpha)
        if change is None or not math.isfinite(change.lower):
            return f"guardrail {guardrail.name}: not judged yet, {_behind(sums)}"
        if change.lower <= -guardrail.margin:
            return f"guardrail {guardrail.name}: its change may be {change.lower:.5g}, the margin is {guardrail.margin:.5g}"
    return None


def canary_share(look: Look) -> float:
    """The canary's declared share of what it and the champion answer."""
    noted = look.evidence.canary_share
    return look.policy.canary_share if noted is None else noted


def _count(look: Look, event: Literal["errors", "slow"]) -> Finding:
    """Count test in the stage that runs; a shadow's latency is off the users' path and is not judged."""
    stage = look.state.stage
    counts = look.evidence.canary if stage == "canary" else look.evidence.shadow
    # A shadow scores the champion's own requests: under the null an error is either version's with equal chance.
    share = canary_share(look) if stage == "canary" else 0.5
    ours, theirs = getattr(counts, f"challenger_{event}"), getattr(counts, f"champion_{event}")
    if event == "slow" and (look.policy.slow_ms is None or stage == "shadow"):
        return Finding(rule=event, fired=False, text="latency is not judged here")
    p = excess_p_value(ours, theirs, share)
    text = (
        f"{event} in {stage}: challenger {ours}, champion {theirs}, expected share {share:.3g}, p = {p:.3g}"
    )
    threshold = look.policy.guard_alpha
    return Finding(rule=event, fired=p < threshold, text=text, statistic=p, threshold=threshold)


def _harm(look: Look, guardrail: Guardrail, alpha: float) -> Finding:
    sums = look.evidence.metrics.get(guardrail.name, MetricSums())
    change = metric_change(sums, guardrail, look.policy, alpha)
    if change is None or not math.isfinite(change.upper):
        return Finding(
            rule="guardrails", fired=False, text=f"{guardrail.name} is not judged yet: {_behind(sums)}"
        )
    means = f"{sums.challenger_total / (sums.rows - sums.champion_rows):.5g} against {sums.champion_total / sums.champion_rows:.5g}"
    text = (
        f"{guardrail.name} ({guardrail.better} is better): {means}, change {change.estimate:.5g}, at most {change.upper:.5g} "
        f"at level {alpha:.3g}; a worsening of {guardrail.margin:.5g} is allowed"
    )
    return Finding(
        rule="guardrails",
        fired=change.upper < -guardrail.margin,
        text=text,
        statistic=change.upper,
        threshold=-guardrail.margin,
    )


def _all_of(found: list[Finding]) -> Finding:
    return Finding(rule="guardrails", fired=False, text="; ".join(finding.text for finding in found))


def _behind(sums: MetricSums) -> str:
    return f"{sums.champion_units} and {sums.challenger_units} units in {sums.difference.clusters} cohorts"
