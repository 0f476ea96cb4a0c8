"""Guard rules: errors, latency and business metrics protect users; the check of the split protects the experiment."""

from __future__ import annotations

import math
from typing import Literal

from toque.functions.rollout.evidence.metrics import exposure
from toque.functions.rollout.evidence.sums import MetricSums
from toque.functions.rollout.judge.interval import excess_p_value, metric_change
from toque.functions.rollout.judge.rule_input import Finding, RuleInput
from toque.functions.rollout.policy import Guardrail
from toque.functions.stats import LARGEST, sequential_counts


def errors(inputs: RuleInput) -> Finding:
    """Check for more answers without an output than the champion's."""
    return _event_finding(inputs, "errors")


def slow(inputs: RuleInput) -> Finding:
    """Check for more answers above `policy.slow_ms` than the champion's."""
    return _event_finding(inputs, "slow")


def guardrails(inputs: RuleInput) -> Finding:
    """Check for a business metric that is proven worse than the champion's by more than its margin."""
    chosen = inputs.policy.guardrails
    if not chosen or inputs.state.stage != "canary":
        return Finding(rule="guardrails", fired=False, text="no business metric is judged here")
    alpha = inputs.policy.guard_alpha / len(chosen)
    found = [_guardrail_finding(inputs, guardrail, alpha) for guardrail in chosen]
    return next((finding for finding in found if finding.fired), _joined_findings(found))


def mismatch(inputs: RuleInput) -> Finding:
    """Check for a sample-ratio mismatch: units that are not split as declared make every other count unreliable.

    Source: Lindon and Malek, Anytime-valid inference for multinomial count data, 2022.
    """
    units, policy = inputs.evidence.units, inputs.policy
    if inputs.state.stage != "canary" or units.champion + units.challenger == 0:
        return Finding(rule="mismatch", fired=False, text="no unit has met a split yet")
    share = canary_share(inputs)
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


def not_shown_harmless(inputs: RuleInput) -> str | None:
    """Say why a business metric does not let the challenger through yet, or None."""
    for guardrail in inputs.policy.guardrails:
        sums = inputs.evidence.metrics.get(guardrail.name, MetricSums())
        if sums.rows < inputs.policy.min_label_share * sums.requests:
            return f"guardrail {guardrail.name}: {sums.rows} of {sums.requests} answers have a value"
        unlike = _unlike_exposure(inputs, guardrail)
        if unlike is not None:
            return unlike
        change = metric_change(sums, guardrail, inputs.policy, inputs.policy.alpha)
        if change is None or not math.isfinite(change.lower):
            return f"guardrail {guardrail.name}: not judged yet, {_sample_sizes(sums)}"
        if change.lower <= -guardrail.margin:
            return f"guardrail {guardrail.name}: its change may be {change.lower:.5g}, the margin is {guardrail.margin:.5g}"
    return None


def _unlike_exposure(inputs: RuleInput, guardrail: Guardrail) -> str | None:
    """Say that one arm's answers have a value too seldom, or more seldom than the other's, or None.

    Which values are missing may be the very difference, as where only what sold is reported.
    """
    sums, policy = inputs.evidence.metrics.get(exposure(guardrail.name), MetricSums()), inputs.policy
    if not sums.rows:
        return None
    ours = sums.challenger_total / (sums.rows - sums.champion_rows)
    theirs = sums.champion_total / sums.champion_rows
    text = f"guardrail {guardrail.name}: {ours:.1%} of the canary's answers have a value, {theirs:.1%} of the champion's"
    if min(ours, theirs) < policy.min_label_share:
        return f"{text}; {policy.min_label_share:.0%} are needed"
    gap = metric_change(sums, guardrail, policy, policy.mismatch_alpha / 2)
    if gap is None or gap.lower <= 0.0 <= gap.upper:
        return None
    return f"{text}; find out which are missing before the values of the two are compared"


def canary_share(inputs: RuleInput) -> float:
    """Return the canary's declared share of what it and the champion answer."""
    noted = inputs.evidence.canary_share
    return inputs.policy.canary_share if noted is None else noted


def _event_finding(inputs: RuleInput, event: Literal["errors", "slow"]) -> Finding:
    """Test the event counts of the current stage; a shadow's latency, off the users' path, is not judged."""
    stage = inputs.state.stage
    counts = inputs.evidence.canary if stage == "canary" else inputs.evidence.shadow
    # A shadow scores the champion's own requests: under the null an error is either version's with equal chance.
    share = canary_share(inputs) if stage == "canary" else 0.5
    ours, theirs = getattr(counts, f"challenger_{event}"), getattr(counts, f"champion_{event}")
    if event == "slow" and (inputs.policy.slow_ms is None or stage == "shadow"):
        return Finding(rule=event, fired=False, text="latency is not judged here")
    p = excess_p_value(ours, theirs, share)
    text = (
        f"{event} in {stage}: challenger {ours}, champion {theirs}, expected share {share:.3g}, p = {p:.3g}"
    )
    threshold = inputs.policy.guard_alpha
    return Finding(rule=event, fired=p < threshold, text=text, statistic=p, threshold=threshold)


def _guardrail_finding(inputs: RuleInput, guardrail: Guardrail, alpha: float) -> Finding:
    sums = inputs.evidence.metrics.get(guardrail.name, MetricSums())
    change = metric_change(sums, guardrail, inputs.policy, alpha)
    if change is None or not math.isfinite(change.upper):
        return Finding(
            rule="guardrails", fired=False, text=f"{guardrail.name} is not judged yet: {_sample_sizes(sums)}"
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


def _joined_findings(found: list[Finding]) -> Finding:
    return Finding(rule="guardrails", fired=False, text="; ".join(finding.text for finding in found))


def _sample_sizes(sums: MetricSums) -> str:
    sizes = f"{sums.champion_units} and {sums.challenger_units} units in {sums.difference.clusters} cohorts"
    if not sums.too_large:
        return sizes
    return f"{sizes}; {sums.too_large} values are beyond {LARGEST:g}: give the guardrail of the next rollout a floor and a cap"
