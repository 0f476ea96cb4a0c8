"""Plan of a rollout before it starts: many simulated rollouts on noise as large as the prediction log's was.

Logged vectors are scored again, as if the challenger had been a shadow. What varies is taken from past days as the rollout itself will
take it: between cohorts, where losses of one cohort hang together. A day on which a storm delays every flight is then one
observation, and more flights a day help little.
Symbols: a cohort's mean difference is effect + τ·ε; σ is the spread of one unit; k counts cohorts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field
from scipy import special

from toque.functions.arguments import Model
from toque.functions.evaluation.errors import EvaluationError
from toque.functions.evaluation.realised_loss import Scorer, rescore
from toque.functions.model_formats.errors import TrainingError
from toque.functions.model_formats.load import load_version
from toque.functions.prediction_log import outcomes
from toque.functions.prediction_log.records import ANSWER_TEXT
from toque.functions.rollout.errors import RolloutError
from toque.functions.rollout.evidence.cohort_sums import ReadOutcomes, sum_cohorts
from toque.functions.rollout.evidence.sums import PairedLoss
from toque.functions.rollout.jobs import declared_policy, fitting_policy, rollouts
from toque.functions.rollout.policy import RolloutPolicy
from toque.functions.rollout.state import RolloutState, budget
from toque.functions.runtime.context import context
from toque.functions.runtime.declaration.command import View
from toque.functions.runtime.function import function
from toque.functions.stats import asymptotic_threshold
from toque.functions.stats.comparison.cluster_sums import variance_ratio
from toque.registry.models import ModelVersion, Signature

Floats = npt.NDArray[np.float64]
POWER = 0.8
_MAX_SIMULATED = 2_000_000  # runs times cohorts that are simulated at a time
_MAX_COHORTS = 5_000  # more are joined into longer ones, which makes no difference for looks that dense
_MAX_TIME_FACTOR = 8  # times the policy's time limits, after which an effect counts as never found
_FEW_COHORTS = 10
_COLUMNS = ("prediction_id", "version", "arm", "shadow", "unit", "predicted_at", "latency_ms", "outputs")
_VECTORS = ("numeric", "categorical")
_DEFAULT_EFFECT = 0.02  # of the champion's loss: the effect that is planned for, unless one is named


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
            unit=loss.unit_error * math.sqrt(units.rows),
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


@function(http=True, timeout_s=300, command="rollout plan MODEL VERSION", view=View(text="{summary}"))
def plan_rollout(
    model: Model,
    version: Annotated[int, Field(ge=1, le=1_000_000_000, description="Version that would be tried.")],
    policy: Annotated[
        RolloutPolicy | None,
        Field(description="Rules of the rollout; the model's declared ones unless given."),
    ] = None,
    effect: Annotated[
        float | None,
        Field(
            gt=0,
            le=1_000_000_000,
            description="Improvement in mean loss that is looked for; 2 % of the champion's loss unless given.",
        ),
    ] = None,
    days: Annotated[
        int, Field(ge=1, le=36_500, description="Past days of the champion's log that the plan rests on.")
    ] = 28,
) -> RolloutPlan:
    """Plan a rollout of `version` by `policy`: what it may be expected to find, and when; starts nothing.

    The logged vectors of the champion's past `days` are scored by `version`, and the rollout is simulated on noise as large
    as the differences had. A version that learnt from those days looks better on them than it is: believe the noise, and not
    `replayed`.
    Raises: RolloutError if the log has labels of fewer than two cohorts, or lacks a column that the version reads, or the loss is none of texts
    and the version a language model's; NotFound if there is no such version, or no champion.
    """
    used = context()
    registry = used.registry()
    champion = registry.traffic(model).champion.version
    now = used.clock()
    policy = fitting_policy(policy or declared_policy(model), model, version)
    judged = policy.model_copy(
        update={"alpha": budget(rollouts(model).history(), policy, now).alpha or policy.alpha}
    )
    logged = registry.get_version(model, champion).signature
    if logged is None:
        raise RolloutError(f"{model}@{champion} has no signature, so its logged vectors cannot be read")
    challenger = registry.get_version(model, version)
    try:
        loss = replayed_loss(
            lambda since, until: outcomes(
                used.store, model, since, until, labelled_only=False, columns=(*_COLUMNS, *_VECTORS)
            ),
            load_version(registry, challenger),
            judged,
            champion=champion,
            logged=logged,
            start=now - timedelta(days=days),
            now=now,
        )
    except TrainingError as error:  # of a file with which this process cannot score
        raise RolloutError(f"{model}@{version} cannot be planned: {_reason(challenger, error)}") from error
    except EvaluationError as error:
        raise RolloutError(f"{model}@{version} cannot be planned from the log: {error}") from error
    wanted = effect if effect is not None else _DEFAULT_EFFECT * loss.champion_loss / max(loss.labels, 1)
    try:
        found = plan(loss, judged, wanted)
    except ValueError as error:
        raise RolloutError(f"{model}: {error}") from error
    cohort, unit = loss.by_cohort.standard_error(), loss.unit_error
    error_ = max(cohort, unit) if policy.dependence == "cohort" else unit
    return found.model_copy(update={"replayed": loss.by_unit.mean, "replayed_error": error_})


def _reason(challenger: ModelVersion, error: Exception) -> str:
    """Say why a version cannot score the log, and what to do."""
    if challenger.signature is None or challenger.signature.kind != "chat":
        return str(error)
    return (
        "a plan scores the logged requests in its own process, and this version answers by an engine alone; `toque rollout start` "
        "begins with the shadow, which no user sees: its first cohorts show how far the answers differ"
    )


class _DiscardingStore:
    """Store that discards the sums of a replay."""

    def find(self, key: str) -> bytes | None:  # noqa: ARG002 - the store's verb
        return None

    def put(self, key: str, data: bytes) -> None:
        """Discard the object without storing it."""


def replayed_loss(
    read: ReadOutcomes,
    scorer: Scorer,
    policy: RolloutPolicy,
    *,
    champion: int,
    logged: Signature,
    start: datetime,
    now: datetime,
) -> PairedLoss:
    """Compute the paired losses that a shadow would have had from `start` until `now`.

    read: outcomes with the logged `numeric` and `categorical`, unlabelled ones included. scorer: the loaded challenger.
    logged: signature of the champion, whose vectors the log holds.
    """
    replay = champion + 1  # any other number
    state = RolloutState(
        rollout=0,
        champion=champion,
        challenger=replay,
        policy=policy,
        stage="shadow",
        started_at=start,
        stage_since=start,
        traffic_entry=0,
    )

    def with_shadow(since: datetime, until: datetime) -> pa.Table:
        rows = read(since, until)
        mine = pc.and_(pc.equal(rows["version"], champion), pc.invert(rows["shadow"]))
        for name in _logged_sides(logged):  # null where a row was too large to be logged
            mine = pc.and_(mine, pc.is_valid(rows[name]))
        rows = rows.filter(mine)
        return pa.concat_tables([rows, _shadow_of(rows, scorer, {champion: logged}, replay)])

    (sums,) = sum_cohorts(_DiscardingStore(), "replay", [state], with_shadow, now)
    return sums.whole.loss


def _logged_sides(signature: Signature) -> list[str]:
    """Columns of the log that hold the inputs of a version: numbers, texts or both."""
    texts = {spec.datatype == "BYTES" for spec in signature.inputs}
    return [name for name, text in (("numeric", False), ("categorical", True)) if text in texts]


def _shadow_of(rows: pa.Table, scorer: Scorer, logged: Mapping[int, Signature], version: int) -> pa.Table:
    outputs = rescore(rows, scorer, logged)
    changed = {}
    if outputs.dtype == object:
        texts = outputs[:, 0].tolist()
        outputs = np.array([[len(each)] for each in texts])
        if ANSWER_TEXT.name in rows.column_names:
            changed[ANSWER_TEXT.name] = pa.array(texts, ANSWER_TEXT.type)
    answers = pa.array(outputs.astype(np.float32).tolist(), type=rows.schema.field("outputs").type)
    changed |= {
        "version": pa.array(np.full(rows.num_rows, version, dtype=np.int64)),
        "shadow": pa.array(np.ones(rows.num_rows, dtype=bool)),
        "outputs": answers,
    }
    for name, column in changed.items():
        at = rows.schema.get_field_index(name)
        rows = rows.set_column(at, rows.schema.field(at), column)
    return rows


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
