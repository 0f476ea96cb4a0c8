"""Rules that guard a rollout: errors, missing answers, latency, business metrics and the split; and steps of a ramp.

Those of the last minutes need no label. Such a guard is a test over five to ten minutes, and the next one begins halfway
through; each is given a part of alpha that depends on how many were begun before it, so their sum stays within
`policy.live_alpha` however long the rollout takes. The test counts units, and is blind where they are few; so a challenger that
plainly fails, as requests count, needs no test. What lets a challenger through counts requests.
The check of the split protects the experiment; the others protect users.
"""

from __future__ import annotations

import math
from typing import Literal

from toque.functions.live_counts import quantile_ms, slower
from toque.functions.rollout.evidence.live import LiveCounts, LiveEvent, LiveEvidence, guard_at
from toque.functions.rollout.evidence.metrics import exposure
from toque.functions.rollout.evidence.sums import MetricSums
from toque.functions.rollout.judge.interval import excess_p_value, metric_change
from toque.functions.rollout.judge.verdict import Finding, RuleInput
from toque.functions.rollout.policy import Guardrail
from toque.functions.stats import (
    LARGEST,
    counted_quantile_p,
    excess_p,
    rate_below_p,
    rate_floor,
    sequential_counts,
)

LIVE_GUARDS = {"live_errors": 0.5, "live_missing": 0.25, "live_latency": 0.25}
"""Rules that roll back, and the part of alpha that each has."""
QUANTILES = (0.5, 0.95)
_STAGES = {"shadow": 0.2, "canary": 0.8}  # parts of alpha
# Of the challenger's requests that fail, at twice the champion's share, which needs no test.
_PLAIN_SHARE = 0.2
_PLAIN_REQUESTS = 50  # that have failed by then


def live_errors(inputs: RuleInput) -> Finding:
    """Check for more errors in the last minutes than the champion's."""
    return _excess_finding(inputs, "errors")


def live_missing(inputs: RuleInput) -> Finding:
    """Check for more requests without a usable answer in the last minutes than the champion's."""
    return _excess_finding(inputs, "missing")


def live_latency(inputs: RuleInput) -> Finding:
    """Check for a median or a 95th percentile that is proven slower by `policy.slow_ratio`; a shadow's is not judged."""
    live = inputs.evidence.live
    if live is None or inputs.state.stage == "shadow":
        return _not_judged("live_latency")
    alpha = guard_level(inputs, "live_latency") / len(QUANTILES)
    ratio = inputs.policy.slow_ratio
    slowed, ours = slower(live.champion.bins(), ratio), live.challenger.bins()
    found = [  # 1 also where an arm has no answer
        counted_quantile_p(slowed, ours, q=q) if quantile_ms(ours, q) > quantile_ms(slowed, q) else 1.0
        for q in QUANTILES
    ]
    text = (
        f"latency of the last minutes: {_latencies(live.challenger)} against {_latencies(live.champion)}, "
        f"slower by {ratio:g}: p = {', '.join(f'{p:.3g}' for p in found)}"
    )
    return Finding(
        rule="live_latency", fired=min(found) <= alpha, text=text, statistic=min(found), threshold=alpha
    )


def service_shadow_done(inputs: RuleInput) -> Finding:
    """Let a challenger that is promoted without labels into its canary, once its shadow is shown to answer."""
    if inputs.state.stage != "shadow" or inputs.policy.promote_by != "service":
        return Finding(rule="service_shadow_done", fired=False, text="not in a shadow judged without labels")
    thin = _not_held(inputs) or _not_shown_to_answer(inputs)
    return Finding(
        rule="service_shadow_done", fired=thin is None, text=thin or "it answers what the champion answers"
    )


def ramp(inputs: RuleInput) -> Finding:
    """Go on to the next share of the ramp, once this one was held and the challenger is shown to serve as well."""
    state, policy = inputs.state, inputs.policy
    if state.stage != "canary" or state.is_last_step:
        return Finding(rule="ramp", fired=False, text="no further step of a ramp")
    share, next_share = policy.shares[state.step], policy.shares[state.step + 1]
    thin = _not_held(inputs) or not_shown_to_serve(inputs)
    text = thin or f"from {share:.2%} to {next_share:.2%}: it serves as the champion does"
    return Finding(rule="ramp", fired=thin is None, text=text)


def service_done(inputs: RuleInput) -> Finding:
    """Promote without labels where the policy says so, once the last step was held and the challenger serves as well.

    Business metrics, where the policy has some, must be shown harmless first.
    """
    state, policy = inputs.state, inputs.policy
    if state.stage != "canary" or policy.promote_by != "service" or not state.is_last_step:
        return Finding(
            rule="service_done", fired=False, text="not at the last step of a rollout without labels"
        )
    thin = _not_held(inputs) or not_shown_to_serve(inputs)
    if thin is None and inputs.in_stage < policy.canary_min:
        thin = f"{inputs.in_stage} in canary, at least {policy.canary_min}"
    thin = thin or not_shown_harmless(inputs)
    return Finding(rule="service_done", fired=thin is None, text=thin or "it serves as the champion does")


def guard_level(inputs: RuleInput, rule: str) -> float:
    """Return the level of a rule's guard that runs now: its alpha over k (k + 1), which sums to it, for the k-th one begun."""
    state = inputs.state
    since = state.started_at if state.canary_since is None else state.canary_since
    begun = max(0, guard_at(inputs.now) - guard_at(since)) + state.step + 1
    return inputs.policy.live_alpha * _STAGES[state.stage] * LIVE_GUARDS[rule] / (begun * (begun + 1))


def not_shown_to_serve(inputs: RuleInput) -> str | None:
    """Say why the challenger is not shown to serve as well as the champion in this split, or None."""
    live = inputs.evidence.live
    if live is None:
        return "no live counts are there"
    counts, policy = live.split_challenger, inputs.policy
    if counts.requests < policy.canary_min_requests:
        return f"the canary was sent {counts.requests} of {policy.canary_min_requests} requests in this split"
    return _not_shown_to_answer(inputs) or _not_shown_as_fast(live, policy.slow_ratio, policy.alpha)


def _not_shown_to_answer(inputs: RuleInput) -> str | None:
    """Say why it is not shown that at most `error_margin` more of the challenger's requests go unanswered, or None."""
    live, policy = inputs.evidence.live, inputs.policy
    if live is None:
        return "no live counts are there"
    ours, theirs = live.split_challenger, live.split_champion
    if not theirs.requests:
        return "the champion was sent no request beside it"
    # A champion's caller that is broken itself must not raise what the challenger is allowed.
    floor = rate_floor(theirs.unanswered - theirs.repeats, theirs.requests - theirs.repeats, policy.alpha / 2)
    if theirs.counts_requests and (
        floor >= _PLAIN_SHARE or _is_plain(live.champion.unanswered, live.champion.requests)
    ):
        return (
            f"the champion is broken: {live.champion.unanswered} of {live.champion.requests} requests of the last minutes went "
            "unanswered, which is no level to be as good as; promote by hand if the challenger serves"
        )
    limit = min(floor + policy.error_margin, 0.999)
    p = float(rate_below_p(ours.unanswered, ours.requests, limit))
    if p <= policy.alpha / 2:
        return None
    return (
        f"{ours.unanswered} of {ours.requests} requests went unanswered, the champion's {theirs.unanswered} of "
        f"{theirs.requests}; that this is below {limit:.3%} is not shown yet, p = {p:.3g}"
    )


def _not_shown_as_fast(live: LiveEvidence, ratio: float, alpha: float) -> str | None:
    """Say why a quantile of latency is not shown to stay below `ratio` times the champion's, or None."""
    for q in QUANTILES:
        slowed, ours = slower(live.split_champion.bins(), ratio), live.split_challenger.bins()
        p = counted_quantile_p(slowed, ours, q=q)
        if not (p <= alpha and quantile_ms(ours, q) < quantile_ms(slowed, q)):
            return (
                f"latency: {_latencies(live.split_challenger)} against {_latencies(live.split_champion)}; "
                f"that the {q:.0%} quantile is not {ratio:g} times the champion's is not shown yet, p = {p:.3g}"
            )
    return None


def _not_held(inputs: RuleInput) -> str | None:
    held, hold = inputs.now - inputs.state.split_since, inputs.policy.ramp_hold
    return f"{held} in this split, at least {hold}" if held < hold else None


def _excess_finding(inputs: RuleInput, event: LiveEvent) -> Finding:
    rule, live, stage = f"live_{event}", inputs.evidence.live, inputs.state.stage
    if live is None:
        return _not_judged(rule)
    # A shadow scores the champion's own requests: under the null an error is either version's with equal chance.
    share = canary_share(inputs) if stage == "canary" else 0.5
    ours, theirs = getattr(live.challenger, event), getattr(live.champion, event)
    p, alpha = float(excess_p(ours, theirs, share)), guard_level(inputs, rule)
    text = (
        f"{event} of the last minutes: challenger {ours} of {live.challenger.requests}, champion {theirs} of "
        f"{live.champion.requests}, expected share {share:.3g}, p = {p:.3g}"
    )
    plain = _plain_excess(live, event)
    if plain is not None:
        return Finding(rule=rule, fired=True, text=f"{plain}; by unit, {text}", statistic=p, threshold=alpha)
    return Finding(rule=rule, fired=p <= alpha, text=text, statistic=p, threshold=alpha)


def _plain_excess(live: LiveEvidence, event: LiveEvent) -> str | None:
    """Say that requests of the challenger fail on a scale that needs no test, and the champion's do not; or None.

    Asked of the last minute or two, which show soonest what has begun, of the guard, and of the split, where few requests come.
    """
    spans = [
        *((champion, challenger, "the last minutes") for champion, challenger in live.latest),
        (live.champion, live.challenger, "the last minutes"),
        (live.split_champion, live.split_challenger, "this split"),
    ]
    for theirs, ours, when in spans:
        failed, others = ours.failed(event) - ours.usual, theirs.failed(event)
        if _is_plain(failed, ours.requests) and 2 * others * ours.requests <= failed * theirs.requests:
            return (
                f"{failed} of {ours.requests} requests of the challenger in {when}, {others} of the champion's "
                f"{theirs.requests}"
            )
    return None


def _is_plain(failed: int, requests: int) -> bool:
    """Whether so many requests fail that no test is needed."""
    return failed >= max(_PLAIN_REQUESTS, _PLAIN_SHARE * requests)


def _latencies(counts: LiveCounts) -> str:
    found = [quantile_ms(counts.bins(), q) for q in QUANTILES]
    if any(map(math.isnan, found)):
        return "no answer"
    return " and ".join(f"p{q * 100:.0f} {ms:.3g} ms" for q, ms in zip(QUANTILES, found, strict=True))


def _not_judged(rule: str) -> Finding:
    return Finding(rule=rule, fired=False, text="no live counts are judged here")


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
    text = "; ".join(finding.text for finding in found)
    none_fired = Finding(rule="guardrails", fired=False, text=text)
    return next((finding for finding in found if finding.fired), none_fired)


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
    # Days enough to know how alike neighbours are would leave a canary that harms for nine days and more.
    change = metric_change(sums, guardrail, inputs.policy, alpha, neighbours=False)
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


def _sample_sizes(sums: MetricSums) -> str:
    sizes = f"{sums.champion_units} and {sums.challenger_units} units in {sums.difference.clusters} cohorts"
    if not sums.too_large:
        return sizes
    return f"{sizes}; {sums.too_large} values are beyond {LARGEST:g}: give the guardrail of the next rollout a floor and a cap"
