"""Plan of a rollout before it starts: many simulated rollouts on noise as large as the log's was.

What varies is taken from past days as the rollout itself will take it: between cohorts, where losses of one cohort hang
together. A day on which a storm delays every flight is then one observation, and more flights a day help little.

Symbols: a cohort's mean difference is effect + τ·ε; σ is the spread of one unit; k counts cohorts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict
from scipy import special

from toque.functions.rollout.evidence.sums import PairedLoss
from toque.functions.rollout.policy import RolloutPolicy
from toque.functions.stats import asymptotic_threshold
from toque.functions.stats.comparison.cluster_sums import variance_ratio

Floats = npt.NDArray[np.float64]
POWER = 0.8
_MAX_SIMULATED = 2_000_000  # runs times cohorts that are simulated at a time
_MAX_COHORTS = 5_000  # more are joined into longer ones, which makes no difference for looks that dense
_MAX_TIME_FACTOR = 8  # times the policy's time limits, after which an effect counts as never found
_FEW_COHORTS = 10


@dataclass(frozen=True, slots=True)
class Noise:
    """Noise of paired loss differences: cohort (τ), of a cohort's mean; unit (σ), of one label; labels in a cohort."""

    cohort: float
    unit: float
    labels: float

    @classmethod
    def of(cls, loss: PairedLoss) -> Noise:
        """Estimate the noise from past cohorts.

        Raises: ValueError with fewer than two of them, or differences that do not vary.
        """
        units, cohorts = loss.by_unit, loss.by_cohort
        if cohorts.clusters < 2:  # noqa: PLR2004 - a variance needs two
            raise ValueError(
                f"a plan needs labels of at least two past cohorts, got {cohorts.clusters}: look further back, or wait"
            )
        found = cls(
            cohort=cohorts.standard_error() * math.sqrt(cohorts.clusters),
            unit=units.standard_error() * math.sqrt(units.rows),
            labels=units.rows / cohorts.clusters,
        )
        if not (math.isfinite(found.cohort + found.unit) and found.unit > 0):
            raise ValueError(
                f"the paired differences of {units.rows} labels do not vary or are no numbers; are the versions the same?"
            )
        return found

    def joined(self, cohorts: int) -> Noise:
        """Return the noise of cohorts that are as long as several of these."""
        return Noise(self.cohort / math.sqrt(cohorts), self.unit, self.labels * cohorts)


class RolloutPlan(BaseModel):
    """Expected course of a rollout whose challenger is better by `effect`.

    alpha: that it is judged at. past_cohorts, past_labels, labels_a_cohort: what the plan rests on. cohort_spread: standard
    deviation of a cohort's mean difference. dependence: variance of the mean against that of independent units; 1: no dependence.
    chance_promoted, chance_stopped, chance_undecided: sum to 1. days_expected: on average, until it ends; days_worst: at most.
    smallest_effect: that is promoted in four of five rollouts within the policy's times; None: no effect is.
    days_needed: for `effect` to be found in four of five, without time limits; None: not in eight times of them.
    replayed: the difference of the versions on the past labels, and its error, where the plan rests on a replay.
    summary: the plan in sentences.
    """

    model_config = ConfigDict(frozen=True)

    effect: float
    alpha: float
    past_cohorts: int
    past_labels: int
    labels_a_cohort: float
    cohort_spread: float
    dependence: float
    chance_promoted: float
    chance_stopped: float
    chance_undecided: float
    days_expected: float
    days_worst: float
    smallest_effect: float | None
    days_needed: float | None
    replayed: float | None = None
    replayed_error: float | None = None
    summary: tuple[str, ...] = ()


def plan(loss: PairedLoss, policy: RolloutPolicy, effect: float) -> RolloutPlan:
    """Plan a rollout from the paired losses of past cohorts.

    loss: of any two versions that differ as much as champion and challenger will. effect: how much better the challenger is
    supposed to be, in mean loss.
    Raises: ValueError if the past has fewer than two cohorts with labels, or effect is not a number.
    """
    if not math.isfinite(effect):
        raise ValueError(f"effect {effect} must be a finite difference of mean losses")
    noise = Noise.of(loss)
    within = _Simulation.of(noise, policy)
    promoted, stopped, days = within.play(effect)
    found = RolloutPlan(
        effect=effect,
        alpha=policy.alpha,
        past_cohorts=loss.by_cohort.clusters,
        past_labels=loss.labels,
        labels_a_cohort=noise.labels,
        cohort_spread=noise.cohort,
        dependence=(loss.by_cohort.standard_error() / loss.by_unit.standard_error()) ** 2,
        chance_promoted=float(promoted.mean()),
        chance_stopped=float(stopped.mean()),
        chance_undecided=float(1 - promoted.mean() - stopped.mean()),
        days_expected=float(days.mean()),
        days_worst=_days(policy.shadow_timeout + policy.canary_timeout),
        smallest_effect=_smallest(within, noise, policy),
        days_needed=_needed(noise, policy, effect),
    )
    return found.model_copy(update={"summary": tuple(_sentences(found, policy))})


@dataclass(frozen=True, slots=True)
class _Simulation:
    """Simulated evidence of many rollouts, cohort by cohort, for an effect of zero; an effect only shifts the mean.

    at: (cohorts,) days after the start at which each is judged. mean, radius: (runs, cohorts).
    """

    policy: RolloutPolicy
    at: Floats
    labels: Floats
    mean: Floats
    radius: Floats

    @classmethod
    def of(cls, noise: Noise, policy: RolloutPolicy) -> _Simulation:
        cohort, delay = _days(policy.cohort), _days(policy.label_delay)
        limit = _days(policy.shadow_timeout + policy.canary_timeout)
        joined = max(1, math.ceil((limit - delay) / cohort / _MAX_COHORTS))
        cohort, noise = cohort * joined, noise.joined(joined)
        cohorts = max(2, int((limit - delay) / cohort))
        runs = int(np.clip(_MAX_SIMULATED // cohorts, 100, 2_000))
        k = np.arange(1, cohorts + 1, dtype=np.float64)
        draws = np.random.default_rng(20_130_101).standard_normal((runs, cohorts)) * noise.cohort
        mean = np.cumsum(draws, axis=1) / k
        labels = noise.labels * k
        radius = _radius(policy, noise, draws, labels, k)
        return cls(policy, k * cohort + delay, labels, mean, radius)

    def play(self, effect: float) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], Floats]:
        """Run every simulated rollout to its end.

        Returns, (runs,) each: promoted; stopped as worse or too small; days until the end.
        """
        policy, floor = self.policy, self.policy.min_effect
        mean = self.mean + effect
        lower, upper = mean - self.radius, mean + self.radius
        stop = _first((upper < 0) | (upper < floor), self.at)
        enough = self.labels >= max(policy.shadow_min_labels, policy.burn_in)
        advance = _first((mean > floor) & enough, self.at)
        shadow_end = _days(policy.shadow_timeout)
        advances = (advance <= shadow_end) & (advance < stop)
        opens = np.where(advances, advance + _days(policy.canary_min), np.inf)
        whole = self.at >= _days(policy.season + policy.label_delay)
        promote = _first((lower > floor) & whole & (self.at >= opens[:, None]), self.at)
        end = np.where(advances, advance + _days(policy.canary_timeout), shadow_end)
        promoted = advances & (promote <= end) & (promote < stop)
        stopped = ~promoted & (stop <= end)
        days = np.where(promoted, promote, np.where(stopped, stop, end))
        return promoted, stopped, days


def _radius(policy: RolloutPolicy, noise: Noise, draws: Floats, labels: Floats, k: Floats) -> Floats:
    """Compute half the width of the confidence sequence (runs, cohorts), as `improvement` does."""
    z = np.array(
        [
            asymptotic_threshold(n, alpha=policy.alpha, n_opt=policy.planned_labels, alternative="greater")
            for n in labels.tolist()
        ]
    )
    radius = np.broadcast_to(z * noise.unit / np.sqrt(labels), draws.shape)
    if policy.dependence == "cohort":
        radius = np.maximum(radius, _by_cohort(draws, z, k))
    return np.where(labels >= policy.burn_in, radius, np.inf)


def _by_cohort(draws: Floats, z: Floats, k: Floats) -> Floats:
    """Compute what the variation between cohorts asks for (runs, cohorts), as `SeriesSums.long_run` does of one series."""
    total = np.cumsum(draws, axis=1)
    mean = total / k
    residual = np.maximum(np.cumsum(draws**2, axis=1) - k * mean**2, 0.0)
    neighbours = np.cumsum(draws[:, 1:] * draws[:, :-1], axis=1)
    neighbours = np.concatenate([np.zeros((len(draws), 1)), neighbours], axis=1)
    products = neighbours - mean * (2 * total - draws[:, :1] - draws) + (k - 1) * mean**2
    with np.errstate(divide="ignore", invalid="ignore"):
        longer = variance_ratio(products / residual, k)
        error = np.sqrt(residual / (k - 1) / k * longer)
        student = -special.stdtrit(np.maximum((k - 1) / longer, 1.0), special.ndtr(-z))
        return np.where(k > 1, student * error, np.inf)


def _first(met: npt.NDArray[np.bool_], at: Floats) -> Floats:
    """Find the day on which each run first meets the condition, infinity for never."""
    return np.where(met.any(axis=1), at[met.argmax(axis=1)], np.inf)


def _smallest(course: _Simulation, noise: Noise, policy: RolloutPolicy) -> float | None:
    """Find the smallest effect with enough power, by bisection on the same noise."""

    def found(effect: float) -> bool:
        return bool(course.play(effect)[0].mean() >= POWER)

    low, high = policy.min_effect, policy.min_effect + 100 * (noise.cohort + noise.unit)
    if not found(high):
        return None
    while high - low > 1e-3 * (high - policy.min_effect):
        middle = (low + high) / 2
        low, high = (low, middle) if found(middle) else (middle, high)
    return high


def _needed(noise: Noise, policy: RolloutPolicy, effect: float) -> float | None:
    """Compute the days in which four of five rollouts find the effect if nothing ends them."""
    patient = policy.model_copy(
        update={
            "shadow_timeout": policy.shadow_timeout * _MAX_TIME_FACTOR,
            "canary_timeout": policy.canary_timeout * _MAX_TIME_FACTOR,
        }
    )
    course = _Simulation.of(noise, patient)
    promoted, _, days = course.play(effect)
    if promoted.mean() < POWER:
        return None
    return float(np.quantile(np.where(promoted, days, np.inf), POWER, method="higher"))


def _sentences(found: RolloutPlan, policy: RolloutPolicy) -> list[str]:
    past = (
        f"{found.past_labels:,} past labels in {found.past_cohorts} cohorts of {policy.cohort}: {found.labels_a_cohort:.0f} "
        f"labels a cohort, whose mean differences spread by {found.cohort_spread:.5f}, give or take "
        f"{1 / math.sqrt(2 * (found.past_cohorts - 1)):.0%}."
    )
    chances = (
        f"A challenger better by {found.effect:.5f} is promoted in {found.chance_promoted:.0%} of such rollouts, stopped in "
        f"{found.chance_stopped:.0%}, and left undecided in {found.chance_undecided:.0%}, after {found.days_expected:.1f} days "
        f"on average and {found.days_worst:.1f} at most."
    )
    sentences = [past, chances]
    if found.smallest_effect is None:
        sentences.append("No improvement, however large, is found in four of five within these time limits.")
    else:
        sentences.append(
            f"The smallest improvement found in four of five within these limits is {found.smallest_effect:.5f}."
        )
    if found.chance_promoted < POWER:
        sentences.append(_remedy(found))
    if policy.dependence == "cohort" and found.dependence > 2:  # noqa: PLR2004 - twice the variance is worth a word
        sentences.append(
            f"Labels of one cohort hang together: the variance is {found.dependence:.1f} times that of independent ones, so "
            "more cohorts help and more labels a cohort hardly do."
        )
    if found.past_cohorts < _FEW_COHORTS:
        sentences.append(
            f"{found.past_cohorts} cohorts tell little of how they vary: take the plan as a guess."
        )
    return sentences


def _remedy(found: RolloutPlan) -> str:
    if found.days_needed is None:
        return (
            f"An improvement of {found.effect:.5f} is too small for this stream of labels even with {_MAX_TIME_FACTOR} times the time: "
            "look for a larger one, or judge by a metric that varies less."
        )
    return (
        f"For {found.effect:.5f} it needs about {found.days_needed:.0f} days: lengthen shadow_timeout and canary_timeout, or "
        "look for a larger improvement."
    )


def _days(span: timedelta) -> float:
    return span.total_seconds() / 86_400
