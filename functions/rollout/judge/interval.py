"""Statistics of a rollout: bounds of the improvement, and p-values of excess errors.

A thin layer over `toque.functions.stats` that adds dependence. Rows of one unit, and on request all rows of one cohort,
are one observation for the variance; cohorts may be like their neighbours, and few of them pay for their few degrees of freedom.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy import special

from toque.functions.rollout.evidence.sums import MetricSums, PairedLoss
from toque.functions.rollout.policy import Guardrail, RolloutPolicy
from toque.functions.stats import SeriesSums, asymptotic_threshold, sequential_counts

_PRIOR_COUNTS = 5.0  # the prior around the null share weighs five events: quick from .5 % to 2 % errors at a tenth of traffic


@dataclass(frozen=True, slots=True)
class Improvement:
    """Improvement of the mean loss by the challenger: an estimate and one-sided bounds, each valid at every look."""

    labels: int
    estimate: float
    lower: float
    upper: float


def improvement(loss: PairedLoss, policy: RolloutPolicy) -> Improvement | None:
    """Compute anytime-valid bounds of the mean paired difference; None where there is nothing to judge.

    Nothing to judge: fewer than `policy.burn_in` labels, sums that are not finite, or differences that do not vary. Before a
    whole `policy.season` of cohorts there is no lower bound.
    Source: Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, Time-uniform central limit theory and asymptotic
    confidence sequences, 2021.
    """
    units, cohorts = loss.by_unit, loss.by_cohort
    if units.rows < policy.burn_in or not math.isfinite(units.total + units.square):
        return None
    once, deviation = units.standard_error(), loss.unit_error
    if once == 0.0:
        return None
    # The sequence's clock is the variance of the sum so far, as of `metric_change`.
    clock = units.rows * (deviation / once) ** 2 if deviation < math.inf else units.rows
    z = asymptotic_threshold(clock, alpha=policy.alpha, n_opt=policy.planned_labels, alternative="greater")
    is_series = cohorts.span > 0  # sums of before are judged as they were then
    returning = loss.by_returning_unit
    radius = z * deviation
    if is_series and deviation < math.inf:
        freedom = (returning.effective if returning.rows else units.clusters) - 1
        radius = _student(z, freedom) * loss.cautious_error
    if policy.dependence == "cohort":
        radius = max(radius, _by_cohort(z, cohorts))
    waits = is_series and cohorts.span * policy.cohort < policy.season
    return Improvement(
        labels=units.rows,
        estimate=units.mean,
        lower=-math.inf if waits else units.mean - radius,
        upper=units.mean + radius,
    )


def metric_change(
    sums: MetricSums, guardrail: Guardrail, policy: RolloutPolicy, alpha: float, *, neighbours: bool = True
) -> Improvement | None:
    """Compute anytime-valid bounds of how much better (below 0: worse) a guardrail's mean is in the canary.

    None where there is nothing to judge: fewer than `policy.burn_in` units in an arm, values too large to be summed or that do
    not vary. alpha: of each of the two one-sided bounds. neighbours: whether neighbouring cohorts may be alike, if the policy says
    that cohorts hang together; the change between equal versions is not, as both answer in each cohort.
    Source: as `improvement`, on the difference of means stratified by cohort.
    """
    gap = sums.difference
    if sums.too_large or min(sums.champion_units, sums.challenger_units) < policy.burn_in:
        return None
    if not math.isfinite(gap.total + gap.square + sums.noise + sums.unit_noise) or sums.noise <= 0.0:
        return None
    noise, observations = max(sums.noise, sums.unit_noise), sums.observations
    # The sequence's clock is the variance of the sum so far: looks are no more alike than those of independent units with as much.
    clock = (
        observations * (noise / sums.noise) if observations else sums.champion_units + sums.challenger_units
    )
    z = asymptotic_threshold(clock, alpha=alpha, n_opt=policy.planned_labels, alternative="greater")
    radius = z * math.sqrt(noise) / gap.rows
    if policy.dependence == "cohort":
        radius = max(radius, _by_cohort(z, gap, neighbours=neighbours))
    better = gap.mean if guardrail.better == "higher" else -gap.mean
    return Improvement(labels=sums.rows, estimate=better, lower=better - radius, upper=better + radius)


def _by_cohort(z: float, cohorts: SeriesSums, *, neighbours: bool = True) -> float:
    """Half the width that the variation between cohorts asks for, where neighbours may be alike and few pay for being few."""
    if cohorts.clusters < 2:  # noqa: PLR2004 — no degree of freedom
        return math.inf
    if not (cohorts.span and neighbours):
        return _student(z, cohorts.clusters - 1) * cohorts.standard_error()
    error, freedom = cohorts.long_run()
    return _student(z, freedom) * error


def _student(z: float, freedom: float) -> float:
    """Return the Student quantile with so many degrees of freedom at the tail of a normal `z`."""
    return float(-special.stdtrit(freedom, special.ndtr(-z)))


def excess_p_value(challenger: int, champion: int, share: float) -> float:
    """Compute the sequential p-value of more events at the challenger than its `share` explains; 1 without an excess.

    Under the null the arm of each event is Bernoulli(share), however the rate of events moves over time.
    Source: Lindon and Malek, Anytime-valid inference for multinomial count data, 2022.
    """
    if challenger <= share * (challenger + champion):
        return 1.0
    return sequential_counts([challenger, champion], [share, 1 - share], concentration=_PRIOR_COUNTS).p
