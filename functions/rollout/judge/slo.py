"""Error budgets of a model's objectives, and the rules that hold or end a rollout by how fast they are spent.

The guards ask whether the challenger is at fault; these rules do not: a model whose budget is spent takes no new version.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta

from toque.functions.prediction_log.reading.totals import answer_totals
from toque.functions.rollout.evidence.sums import SloSums
from toque.functions.rollout.judge.verdict import Finding, RuleInput
from toque.functions.rollout.policy import RolloutPolicy, Slo
from toque.registry import ObjectStore

# Long window, short window, and how many times as fast as allowed the budget burns in both.
BURN_RATES = (
    (timedelta(hours=1), timedelta(minutes=5), 14.4),
    (timedelta(hours=6), timedelta(minutes=30), 6.0),
)
_MIN_BAD = 10  # bad answers in the long window: a single failure of a quiet hour is no emergency


def slo_sums(
    slos: Collection[Slo], store: ObjectStore, model: str, now: datetime, *, challenger: int | None = None
) -> dict[str, SloSums]:
    """Count, for each objective, the answers that users got and the bad ones among them, whichever version gave them.

    Windows begin at a full minute, those of more than two days at a full hour. challenger: whose answers are left out of the second
    count of the burn rates.
    """
    if not slos:
        return {}
    longest = max(BURN_RATES[-1][0], *(slo.window for slo in slos))
    limits = {slo.slow_ms for slo in slos if slo.slow_ms is not None}
    totals = answer_totals(store, model, now - longest, now, slow_ms=limits)

    def sums(slo: Slo) -> SloSums:
        def within(span: timedelta, without: int | None = None) -> tuple[int, int]:
            return totals.within(now - span, now, slow_ms=slo.slow_ms, without=without)

        answers, bad = within(slo.window)
        recent = tuple((within(long), within(short)) for long, short, _ in BURN_RATES)
        others = tuple((within(long, challenger), within(short, challenger)) for long, short, _ in BURN_RATES)
        return SloSums(
            answers=answers,
            bad=bad,
            recent=recent,
            without_challenger=() if challenger is None else others,
        )

    return {slo.name: sums(slo) for slo in slos}


def budget_burns(inputs: RuleInput) -> Finding:
    """Check for an error budget that burns down within days while a canary is live, and would not without its answers."""
    if inputs.state.stage != "canary" or not inputs.policy.slos:
        return Finding(rule="budget_burns", fired=False, text="no error budget is watched here")
    verdicts = [
        _burnt_by_canary(slo, inputs.evidence.slos.get(slo.name, SloSums())) for slo in inputs.policy.slos
    ]
    return next((verdict for verdict in verdicts if verdict.fired), verdicts[0])


def budget_spent(inputs: RuleInput) -> Finding:
    """Check for an error budget that is spent, or that burns by others' answers; it holds the rollout while the stage's time goes on."""
    spent = spent_budget(inputs.policy, inputs.evidence.slos) or _burnt_by_others(inputs)
    if spent is None:
        text = "no error budget is spent" if inputs.policy.slos else "no error budget is watched here"
        return Finding(rule="budget_spent", fired=False, text=text)
    limit = inputs.policy.canary_timeout if inputs.state.stage == "canary" else inputs.policy.shadow_timeout
    return Finding(rule="budget_spent", fired=inputs.in_stage < limit, text=spent)


def _burnt_by_canary(slo: Slo, sums: SloSums) -> Finding:
    """Check the burn rates of one objective; a canary is not at fault for what burns without it."""
    burns = burning(slo, sums)
    if not burns.fired or not sums.without_challenger:
        return burns
    others = burning(slo, sums.model_copy(update={"recent": sums.without_challenger}))
    if not others.fired:
        return burns
    text = f"{burns.text}; so it does without the canary's answers: {others.text}"
    return burns.model_copy(update={"fired": False, "text": text})


def _burnt_by_others(inputs: RuleInput) -> str | None:
    """Describe the first objective whose budget burns without the challenger's answers, or None."""
    for slo in inputs.policy.slos:
        sums = inputs.evidence.slos.get(slo.name, SloSums())
        burns = burning(slo, sums.model_copy(update={"recent": sums.without_challenger}))
        if burns.fired:
            return f"{burns.text}, by the answers of others than the challenger"
    return None


def spent_budget(policy: RolloutPolicy, sums: dict[str, SloSums]) -> str | None:
    """Describe the first objective whose budget is spent, or None."""
    for slo in policy.slos:
        one = sums.get(slo.name, SloSums())
        allowed = (1 - slo.target) * one.answers
        if one.bad > allowed:
            return (
                f"the error budget of {slo.name} is spent: {one.bad} of {one.answers} answers in {slo.window} were bad, "
                f"{allowed:.1f} are allowed"
            )
    return None


def burning(slo: Slo, sums: SloSums) -> Finding:
    """Check the burn rates of one objective.

    Source: Beyer and others, The Site Reliability Workbook, 2018, chapter 5 (multiwindow, multi-burn-rate alerts).
    """
    allowed, fastest = 1 - slo.target, 0.0
    for (long, short, factor), counts in zip(BURN_RATES, sums.recent, strict=False):
        rates = [bad / answers / allowed if answers else 0.0 for answers, bad in counts]
        fastest = max(fastest, min(rates))
        if min(rates) >= factor and counts[0][1] >= _MIN_BAD:
            text = f"{slo.name} burns its budget {min(rates):.1f} times too fast over {long} and {short}; {factor} is the limit"
            return Finding(rule="budget_burns", fired=True, text=text, statistic=min(rates), threshold=factor)
    text = f"{slo.name} burns its budget at {fastest:.1f} times the rate that it lasts with"
    return Finding(
        rule="budget_burns", fired=False, text=text, statistic=fastest, threshold=BURN_RATES[-1][2]
    )
