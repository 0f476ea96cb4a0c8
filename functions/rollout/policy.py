"""The rules of one rollout, fixed before it starts and recorded with it."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(gt=0.0, lt=1.0)]
Level = Annotated[float, Field(gt=0.0, lt=0.5)]


class RolloutPolicy(BaseModel):
    """When a challenger advances from shadow to canary, is promoted, stopped, or given up on.

    The success metric is the paired difference in realised loss: the challenger scores, as a shadow, the
    requests that the champion answers, and both are held against the same label. One confidence sequence
    runs over shadow and canary alike, so looking at every tick costs nothing.

    alpha: bound on the chance that an equal challenger is ever promoted, and (separately) that an equal one is
        ever stopped as worse.
    min_effect: improvement in mean loss that is worth a promotion; 0 asks only for "better".
    planned_labels: number of paired labels at which the confidence sequence is tightest.
    burn_in: paired labels below which the loss is not judged at all (the sequence is asymptotic).
    clip: probabilities are held within [clip, 1 - clip] before their logarithm, which bounds one label's loss.
    cohort: length of the windows of prediction time in which labels are collected.
    label_delay: how long after its end a cohort waits for its labels; only waited-out cohorts are scored, so
        that outcomes which are reported late weigh as much as early ones.
    dependence: "cohort" takes losses within one cohort as dependent (a storm delays every flight of a day) and
        lets the variation between cohorts widen the sequence; "unit" takes only the rows of one unit so.
    min_label_share: below this share of labelled pairs nothing is decided by loss (the label stream stopped).
    min_shadow_share: below this share of champion requests that the shadow scored, the same.
    slow_ms: an answer above it counts as slow; slow answers are judged as errors are. None: latency is free.
    guard_alpha: chance that a challenger with the champion's error rate is rolled back for its errors.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    alpha: Level = 0.05
    min_effect: float = Field(default=0.0, ge=0.0)
    planned_labels: int = Field(default=2_000, ge=10)
    burn_in: int = Field(default=100, ge=10)
    loss: Literal["log_loss", "squared_error"] = "log_loss"
    clip: float = Field(default=0.01, gt=0.0, lt=0.5)
    loss_cap: float = Field(default=1e6, gt=0.0)
    cohort: timedelta = timedelta(days=1)
    label_delay: timedelta = timedelta(days=1)
    dependence: Literal["cohort", "unit"] = "cohort"
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

    @model_validator(mode="after")
    def _positive_times(self) -> Self:
        for name in ("cohort", "shadow_timeout", "canary_timeout"):
            if getattr(self, name) <= timedelta(0):
                raise ValueError(f"{name} must be longer than zero, got {getattr(self, name)}")
        for name in ("label_delay", "canary_min"):
            if getattr(self, name) < timedelta(0):
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.canary_min >= self.canary_timeout:
            raise ValueError(
                f"canary_min {self.canary_min} must be shorter than canary_timeout {self.canary_timeout}; "
                "as it stands no canary could ever be promoted"
            )
        return self
