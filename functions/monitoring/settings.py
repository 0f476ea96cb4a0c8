"""Settings that several monitors have, each with what forms, pages, help and OpenAPI say of it."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from pydantic import Field

CohortLength = Annotated[
    timedelta,
    Field(
        gt=timedelta(0),
        description="Length of the cohorts, windows of prediction time, by which rows are judged.",
    ),
]
Delay = Annotated[timedelta, Field(description="Time after a cohort's end from which it is judged.")]
LabelDelay = Annotated[
    timedelta,
    Field(ge=timedelta(0), description="Time after a cohort's end from which its labels count as complete."),
]
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
Bins = Annotated[int, Field(le=100_000, ge=2, description="Quantile bins of a numeric column.")]
FalseDiscovery = Annotated[
    float, Field(gt=0, lt=0.5, description="False-discovery level over the columns of a window.")
]
MinEffect = Annotated[
    float, Field(ge=0, lt=1, description="Difference of the shares of values below which nothing is drift.")
]
MinNullChange = Annotated[
    float, Field(ge=0, lt=1, description="Change of the share of nulls below which it is no drift.")
]
WindowsDrifted = Annotated[
    int,
    Field(
        ge=1,
        le=10_000,
        description="Windows, of the last `n` that share no cohort, that must have drifted before an alarm is raised.",
    ),
]
LastWindows = Annotated[
    int,
    Field(
        le=10_000,
        ge=1,
        description=(
            "Last separate windows, without a common cohort, of which `k` raise an alarm; "
            "it is over once none of the newest `n`, one a cohort, has drifted."
        ),
    ),
]


def check_windows(k: int, n: int) -> None:
    """Check that `k` of the last `n` windows can have drifted. Raises: ValueError."""
    if k > n:
        raise ValueError(f"k of n windows needs k <= n, got k={k}, n={n}: lower k, or raise n")


def flags_kept(window: int, n: int) -> int:
    """Number of windows, one a cohort, among which are the last `n` separate ones, and the newest `n`."""
    return max(window * (n - 1) + 1, n)
