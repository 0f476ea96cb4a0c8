"""Policy of a rollout: its rules, fixed before it starts and recorded with it."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from toque.functions.evaluation.meanings import Loss
from toque.registry.models.traffic import Holdout, LayerShare

Share = Annotated[float, Field(gt=0.0, lt=1.0)]
MetricName = Annotated[str, Field(pattern=r"^[a-z0-9_-]+$", max_length=64)]
Level = Annotated[float, Field(gt=0.0, lt=0.5)]


class Guardrail(BaseModel):
    """Business metric whose mean a canary must not worsen, compared with the champion's at the same time.

    name: also of the metric's table, if source is "table" (`record_metric` writes it, by prediction id), and of the scorer, if
        source is "score".
    source: where a value comes from: the "label" (what became of an answer: a sale, a complaint), the first "output",
        "latency_ms", a "table" of its own, or a "score" of a language model's live answers, of which a sample has one.
    margin: the mean may be worse by this much. Proven worse by more, the rollout is rolled back; until it is proven not to
        be, or where one arm's answers have a value more seldom than the other's, nothing is promoted.
    better: which direction is good. floor, cap: values are held within, fixed before any is seen, which bounds one outlier; with
        both of them, and of a score, values that are all the same are judged, too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: MetricName
    source: Literal["label", "output", "latency_ms", "table", "score"] = "label"
    margin: float = Field(ge=0.0, allow_inf_nan=False)
    better: Literal["higher", "lower"] = "higher"
    floor: float | None = Field(default=None, allow_inf_nan=False)
    cap: float | None = Field(default=None, allow_inf_nan=False)

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Least and greatest value that there can be; None where one is not known."""
        least, most = (0.0, 1.0) if self.source == "score" else (None, None)
        least = least if self.floor is None else self.floor
        most = most if self.cap is None else self.cap
        return None if least is None or most is None else (least, most)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.floor is not None and self.cap is not None and self.floor >= self.cap:
            raise ValueError(
                f"guardrail {self.name!r}: floor {self.floor} must be below cap {self.cap}; swap them"
            )
        return self


class Slo(BaseModel):
    """Service level objective of a model: the share of answers that arrive, or that arrive in time.

    target: the share of good answers over `window`; what it leaves is the error budget. slow_ms: an answer above it is bad;
    None: an answer without an output is bad.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: MetricName
    target: Share = 0.999
    slow_ms: float | None = Field(default=None, gt=0.0)
    window: timedelta = timedelta(days=28)

    @model_validator(mode="after")
    def _has_a_window(self) -> Self:
        if self.window <= timedelta(0):
            raise ValueError(f"slo {self.name!r}: window must be longer than zero, got {self.window}")
        return self


class RolloutPolicy(BaseModel):
    """Rules by which a challenger advances from shadow to canary, is promoted, stopped, or given up on.

    An equal challenger is stopped, by one rule or another, with at most the chance `stops_equal`.

    The success metric is the paired difference in realised loss: the challenger scores, as a shadow, the
    requests that the champion answers, and both are held against the same label. One confidence sequence
    runs over shadow and canary alike, so looking at every tick costs nothing.

    alpha: bound on the chance that a challenger no better than `min_effect` is ever promoted, and (separately) that an equal
        one is ever stopped as worse.
    min_effect: improvement in mean loss that is worth a promotion; 0 asks only for "better". Below 0 it is a margin, as for a
        model trained anew on more rows: one proven to lose no more than that is promoted, one proven worse at all is not.
    planned_labels: number of paired labels at which the confidence sequence is tightest.
    burn_in: paired labels below which the loss is not judged at all (the sequence is asymptotic).
    clip: probabilities are held within [clip, 1 - clip] before their logarithm, which bounds one label's loss. loss_cap: the most
        that one label's squared error, deviance or distance counts: the sequence needs differences with more than two moments,
        and is asymptotic. The default bounds infinities alone: where losses have heavy tails, set it to the most that one label
        should weigh.
    cohort: length of the windows of prediction time in which labels are collected.
    label_delay: how long after its end a cohort waits for its labels; only waited-out cohorts are scored, so
        that outcomes which are reported late weigh as much as early ones.
    dependence: "cohort" takes losses within one cohort as dependent (a storm delays every flight of a day) and
        lets the variation between cohorts widen the sequence; "unit" takes only the rows of one unit so.
        Neighbouring cohorts may be alike, too, which widens it further.
    season: nothing is promoted by its loss before labels of a whole season were judged, since what is better from Monday to Friday
        may be worse on the week's other days. Zero: at once.
    min_label_share: below this share of labelled pairs nothing is decided by loss (the label stream stopped); below this share of
        either arm's answers that have a value, no guardrail lets through.
    min_shadow_share: below this share of champion requests scored by the shadow, nothing is decided by loss either.
    slow_ms: an answer above it counts as slow; slow answers are judged as errors are. None: latency is free.
    guard_alpha: chance that a challenger with the champion's error rate is rolled back for its errors; and, shared
        among the guardrails, that one as good as the champion is rolled back for any of them.
    guardrails: business metrics beside loss, errors and latency.
    slos: error budgets of the model, over all versions that users meet. Spent, a rollout is not started and does not advance;
        burning fast, a canary is rolled back.
    live_alpha: chance that a challenger that serves as the champion does is rolled back by what the last minutes show, judged every
        ten seconds: more errors, more missing answers, or a median or 95th percentile of latency above `slow_ratio` times the
        champion's.
    ramp: shares of the canary, each larger than the one before; a step is guarded by itself and held for `ramp_hold`, until the
        challenger is shown to serve as well: at most `error_margin` more of its requests unanswered, and not slower by
        `slow_ratio`. Above that margin nothing is promoted by its loss either. Empty: `canary_share` is the only step.
    promote_by: "labels"; or "service", where labels never come or come late: what is shown to serve as well at the last step is
        promoted, whatever its answers are worth.
    go_back: whether a champion that breaks within `go_back_within` of its release is replaced by the one before it, without asking.
    mismatch_alpha: chance that a canary whose units are split as declared is stopped for a mismatch of the split.
    layer: the part of a layer that the rollout has to itself, from its start on: no unit of it is in another model's experiment
        there. `canary_share` is of that part. None: all units.
    holdout: units that the model holds out; begun with the rollout unless it is there, and left there when it ends. They meet
        the champion and count in no comparison.
    wrong_promotions_a_year: bound on the expected number of promotions of challengers that are not better, over all of the
        model's rollouts of any 365 days. A rollout that the rest of it does not afford runs at a smaller alpha. None: no bound.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    alpha: Level = 0.05
    min_effect: float = Field(default=0.0, allow_inf_nan=False)
    planned_labels: int = Field(default=2_000, ge=10)
    burn_in: int = Field(default=100, ge=10)
    loss: Loss = "log_loss"
    clip: float = Field(default=0.01, gt=0.0, lt=0.5)
    loss_cap: float = Field(default=1e6, gt=0.0)
    cohort: timedelta = timedelta(days=1)
    label_delay: timedelta = timedelta(days=1)
    dependence: Literal["cohort", "unit"] = "cohort"
    season: timedelta = timedelta(days=7)
    min_label_share: Share = 0.5
    min_shadow_share: Share = 0.5
    shadow_min_labels: int = Field(default=400, ge=30)
    shadow_timeout: timedelta = timedelta(days=21)
    canary_share: Share = 0.1
    canary_min: timedelta = timedelta(days=1)
    canary_min_requests: int = Field(default=20, ge=1)
    canary_timeout: timedelta = timedelta(days=28)
    guard_alpha: Level = 0.05
    slow_ms: float | None = Field(default=None, gt=0.0)
    live_alpha: Level = 0.02
    slow_ratio: float = Field(default=1.25, gt=1.0, le=100.0)
    ramp: tuple[Share, ...] = Field(default=(), max_length=20)
    ramp_hold: timedelta = timedelta(minutes=10)
    error_margin: Share = 0.01
    promote_by: Literal["labels", "service"] = "labels"
    go_back: bool = False
    go_back_within: timedelta = timedelta(days=1)
    guardrails: tuple[Guardrail, ...] = ()
    slos: tuple[Slo, ...] = ()
    mismatch_alpha: Level = 0.01
    layer: LayerShare | None = None
    holdout: Holdout | None = None
    wrong_promotions_a_year: float | None = Field(default=None, gt=0.0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _positive_times(self) -> Self:
        for name in ("cohort", "shadow_timeout", "canary_timeout"):
            if getattr(self, name) <= timedelta(0):
                raise ValueError(f"{name} must be longer than zero, got {getattr(self, name)}")
        if list(self.ramp) != sorted(set(self.ramp)):
            raise ValueError(f"ramp {self.ramp}: each share must be larger than the one before")
        for name in ("label_delay", "season", "canary_min", "ramp_hold", "go_back_within"):
            if getattr(self, name) < timedelta(0):
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for what, named in (("guardrails", self.guardrails), ("slos", self.slos)):
            names = [one.name for one in named]
            if len(set(names)) < len(names):
                raise ValueError(f"{what} {names} have a name twice; rename one")
        if self.canary_min >= self.canary_timeout:
            raise ValueError(
                f"canary_min {self.canary_min} must be shorter than canary_timeout {self.canary_timeout}; "
                "as it stands no canary could ever be promoted"
            )
        return self

    @property
    def stops_equal(self) -> float:
        """Bound on the chance that the rules stop a challenger that equals the champion: the sum of their levels.

        errors, slow answers and guardrails have `guard_alpha` each, worse loss `alpha`, the last minutes `live_alpha`, the split
        `mismatch_alpha`.
        """
        guards = 1 + (self.slow_ms is not None) + bool(self.guardrails)
        return guards * self.guard_alpha + self.alpha + self.live_alpha + self.mismatch_alpha

    @property
    def shares(self) -> tuple[float, ...]:
        """Shares of the canary in their order."""
        return self.ramp or (self.canary_share,)
