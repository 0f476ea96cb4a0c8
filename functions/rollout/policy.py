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

    Proven worse by more than its margin, the rollout is rolled back; until it is proven not to be, or where one arm's answers have
    a value more seldom than the other's, nothing is promoted. Floor and cap bound what one outlier does; with both of them, and of a
    score, values that are all the same are judged, too. A table is written by `record_metric`; a score is of a language model's live
    answers, of which a sample has one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: MetricName = Field(
        description='Name of the metric; also of its table if `source` is "table", of the scorer if it is "score".'
    )
    source: Literal["label", "output", "latency_ms", "table", "score"] = Field(
        default="label",
        description=(
            "Where an answer's value comes from: what became of it, "
            "its first output, its latency (ms), a table, or a scorer."
        ),
    )
    margin: float = Field(
        ge=0.0, allow_inf_nan=False, description="How much worse the mean may be, in the unit of the metric."
    )
    better: Literal["higher", "lower"] = Field(
        default="higher", description="Direction in which the metric is better."
    )
    floor: float | None = Field(
        default=None,
        allow_inf_nan=False,
        description="Least value that counts, to which smaller ones are raised; none unless given.",
    )
    cap: float | None = Field(
        default=None,
        allow_inf_nan=False,
        description="Greatest value that counts, to which larger ones are lowered; above `floor`; none unless given.",
    )

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
    """Service level objective of a model: the share of answers that arrive, or that arrive in time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: MetricName = Field(description="Name of the objective, which no other one of the model has.")
    target: Share = Field(
        default=0.999,
        description="Share of good answers over `window`, in (0, 1); what it leaves is the error budget.",
    )
    slow_ms: float | None = Field(
        default=None,
        gt=0.0,
        description="Milliseconds above which an answer is bad; unless given, one without an output is.",
    )
    window: timedelta = Field(
        default=timedelta(days=28), description="Time up to now over which answers are counted."
    )

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

    The sequence is asymptotic and needs differences with more than two moments: where losses have heavy tails, set `loss_cap` to the
    most that one label should weigh. Cohorts may be like their neighbours, too, which widens it further. One proven worse at all is
    stopped, whatever `min_effect` below 0 allows, as for a model trained anew on more rows.

    The last minutes are judged every ten seconds: more errors, more missing answers, or a median or 95th percentile of latency above
    `slow_ratio` times the champion's. A step of the ramp is guarded by itself and held for `ramp_hold`, until the challenger is shown
    to serve as well: at most `error_margin` more of its requests unanswered, and not slower by `slow_ratio`.

    A rollout that the rest of `wrong_promotions_a_year` does not afford runs at a smaller alpha.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    alpha: Level = Field(
        default=0.05,
        description=(
            "Bound on the chance that one no better than `min_effect` is ever promoted, "
            "and that an equal one is stopped as worse."
        ),
    )
    min_effect: float = Field(
        default=0.0,
        allow_inf_nan=False,
        description=(
            "Improvement in mean loss that is worth a promotion; "
            "0 asks only for better, below 0 it is the worsening that is accepted."
        ),
    )
    planned_labels: int = Field(
        default=2_000,
        ge=10,
        description="Number of paired labels at which the confidence sequence is tightest.",
    )
    burn_in: int = Field(
        default=100,
        ge=10,
        description="Paired labels, or units of each arm for a guardrail, below which nothing is judged by them.",
    )
    loss: Loss = Field(
        default="log_loss",
        description="Loss of an answer against its label; for a language model one of texts unless given.",
    )
    clip: float = Field(
        default=0.01,
        gt=0.0,
        lt=0.5,
        description=(
            "Probabilities are held within [clip, 1 - clip] before their logarithm, "
            "which bounds the loss of one label."
        ),
    )
    loss_cap: float = Field(
        default=1e6,
        gt=0.0,
        description=(
            "Most that the squared error, deviance or distance of one label counts; "
            "the default bounds infinities alone."
        ),
    )
    cohort: timedelta = Field(
        default=timedelta(days=1),
        description="Length of the windows of prediction time in which labels are collected; longer than zero.",
    )
    label_delay: timedelta = Field(
        default=timedelta(days=1),
        description=(
            "How long after its end a cohort waits for its labels before it is scored, "
            "so that late ones weigh as much."
        ),
    )
    dependence: Literal["cohort", "unit"] = Field(
        default="cohort",
        description=(
            "Within what losses may depend on each other: "
            "a cohort (a storm delays all flights of a day), or the rows of a unit."
        ),
    )
    season: timedelta = Field(
        default=timedelta(days=7),
        description=(
            "Time whose labels must be judged before a promotion by loss, "
            "as weekends may differ; zero: at once."
        ),
    )
    min_label_share: Share = Field(
        default=0.5,
        description=(
            "Share of pairs that must have a label, "
            "and of each arm's answers a guardrail's value, before a promotion by them."
        ),
    )
    min_shadow_share: Share = Field(
        default=0.5,
        description=(
            "Share of the champion's requests that the shadow must "
            "have scored before the loss lets anything through."
        ),
    )
    shadow_min_labels: int = Field(
        default=400,
        ge=30,
        description="Paired labels from which on a shadow may become a canary by its loss.",
    )
    shadow_timeout: timedelta = Field(
        default=timedelta(days=21),
        description="Time in the shadow after which the rollout is given up; longer than zero.",
    )
    canary_share: Share = Field(
        default=0.1,
        description=(
            "Share of units that the canary answers, where `ramp` is empty; "
            "of the layer's part if there is a `layer`."
        ),
    )
    canary_min: timedelta = Field(
        default=timedelta(days=1),
        description="Least time in the canary before a promotion; shorter than `canary_timeout`.",
    )
    canary_min_requests: int = Field(
        default=20,
        ge=1,
        description="Requests that the canary must have met before it is promoted or goes on to the next share.",
    )
    canary_timeout: timedelta = Field(
        default=timedelta(days=28),
        description="Time in the canary after which the rollout is given up; longer than zero.",
    )
    guard_alpha: Level = Field(
        default=0.05,
        description=(
            "Chance that an equal challenger is rolled back for its errors; "
            "slow answers, and all guardrails together, have as much."
        ),
    )
    slow_ms: float | None = Field(
        default=None,
        gt=0.0,
        description=(
            "Milliseconds above which an answer counts as slow, "
            "which is judged as errors are; none does unless given."
        ),
    )
    live_alpha: Level = Field(
        default=0.02,
        description=(
            "Chance that a challenger that serves as the champion "
            "does is rolled back for what the last minutes show."
        ),
    )
    slow_ratio: float = Field(
        default=1.25,
        gt=1.0,
        le=100.0,
        description="How many times the champion's median or 95th percentile of latency the challenger's may be.",
    )
    ramp: tuple[Share, ...] = Field(
        default=(),
        max_length=20,
        description=(
            "Shares of the canary in turn, each larger than the one before; "
            "`canary_share` is the only step where it is empty."
        ),
    )
    ramp_hold: timedelta = Field(
        default=timedelta(minutes=10),
        description="Least time at each share, and in a shadow judged without labels, before the rollout goes on.",
    )
    error_margin: Share = Field(
        default=0.01,
        description=(
            "Share of requests by which the challenger may leave "
            "more unanswered than the champion and still go on."
        ),
    )
    promote_by: Literal["labels", "service"] = Field(
        default="labels",
        description=(
            'What promotes: "labels"; or "service", '
            "where labels come late or never: serving as well at the last step."
        ),
    )
    go_back: bool = Field(
        default=False,
        description=(
            "Whether a champion that breaks soon after its release "
            "is replaced by the one before it, without asking."
        ),
    )
    go_back_within: timedelta = Field(
        default=timedelta(days=1),
        description="Time after its release in which a champion that breaks is replaced, if `go_back` is set.",
    )
    guardrails: tuple[Guardrail, ...] = Field(
        default=(),
        description="Business metrics that the canary must not worsen, beside loss, errors and latency.",
    )
    slos: tuple[Slo, ...] = Field(
        default=(),
        description=(
            "Error budgets of all versions that users meet: spent, "
            "nothing starts or advances; burning fast, a canary is rolled back."
        ),
    )
    mismatch_alpha: Level = Field(
        default=0.01,
        description="Chance that a canary whose units are split as declared is stopped for a mismatch of the split.",
    )
    layer: LayerShare | None = Field(
        default=None,
        description=(
            "Part of a layer that no other model's experiment shares, "
            "from the rollout's start on; all units unless given."
        ),
    )
    holdout: Holdout | None = Field(
        default=None,
        description=(
            "Units that meet the champion alone and count nowhere; "
            "begun with the rollout, kept after it; none unless given."
        ),
    )
    wrong_promotions_a_year: float | None = Field(
        default=None,
        gt=0.0,
        allow_inf_nan=False,
        description=(
            "Bound on the expected promotions of challengers no better, "
            "in any 365 days of the model; none unless given."
        ),
    )

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
