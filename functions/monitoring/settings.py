"""Settings that several monitors have, each with what forms, pages, help and OpenAPI say of it."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

CohortLength = Annotated[
    timedelta,
    Field(
        gt=timedelta(0),
        description="Length of the cohorts, windows of prediction time, by which rows are judged.",
    ),
]
Delay = Annotated[timedelta, Field(description="Time after a cohort's end from which it is judged.")]
Lookback = Annotated[timedelta, Field(description="How far back a monitor without a state begins.")]
Clip = Annotated[
    float,
    Field(
        gt=0, lt=0.5, description="Probabilities are held in [clip, 1 - clip] before their log loss is taken."
    ),
]
Window = Annotated[
    int, Field(le=100_000, ge=1, description="Number of the last cohorts that are compared together.")
]


class CohortMonitor(BaseModel):
    """Settings of every monitor that judges cohorts. kind: its name, unique within a model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str = Field(description="Kind of the monitor.")
    cohort: CohortLength = timedelta(days=1)
    lookback: Lookback = timedelta(days=10)

    @property
    def wait(self) -> timedelta:
        """Time after a cohort's end from which it is judged: at once, where a monitor does not say otherwise."""
        return timedelta(0)


class RequestMonitor(CohortMonitor):
    """Settings of every monitor of requests, which need no label."""

    delay: Delay = timedelta(hours=1)

    @property
    def wait(self) -> timedelta:
        """Time after a cohort's end from which it is judged."""
        return self.delay


class LabelMonitor(CohortMonitor):
    """Settings of every monitor of losses."""

    clip: Clip = 0.01
    label_delay: timedelta = Field(
        default=timedelta(days=1),
        ge=timedelta(0),
        description="Time after a cohort's end from which its labels count as complete.",
    )


class WindowMonitor(RequestMonitor):
    """Settings of every monitor that compares the last cohorts together, and alarms on k of n windows."""

    window: Window = 7
    k: int = Field(
        default=1,
        ge=1,
        le=10_000,
        description="Windows, of the last `n` that share no cohort, that must have drifted before an alarm is raised.",
    )
    n: int = Field(
        default=1,
        le=10_000,
        ge=1,
        description=(
            "Last separate windows, without a common cohort, of which `k` raise an alarm; "
            "it is over once none of the newest `n`, one a cohort, has drifted."
        ),
    )

    @model_validator(mode="after")
    def _enough_windows(self) -> Self:
        if self.k > self.n:
            raise ValueError(f"k of n windows needs k <= n, got k={self.k}, n={self.n}: lower k, or raise n")
        return self

    @property
    def flags_kept(self) -> int:
        """Number of windows, one a cohort, among which are the last `n` separate ones, and the newest `n`."""
        return max(self.window * (self.n - 1) + 1, self.n)


class ColumnMonitor(WindowMonitor):
    """Settings of every monitor that compares columns by their sketches."""

    bins: int = Field(default=20, le=100_000, ge=2, description="Quantile bins of a numeric column.")
    alpha: float = Field(
        default=0.01, gt=0, lt=0.5, description="False-discovery level over the columns of a window."
    )
    min_effect: float = Field(
        default=0.15,
        ge=0,
        lt=1,
        description="Difference of the shares of values below which nothing is drift.",
    )
    min_null_change: float = Field(
        default=0.1, ge=0, lt=1, description="Change of the share of nulls below which it is no drift."
    )
