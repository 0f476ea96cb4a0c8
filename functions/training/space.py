"""What a sweep may try, typed distributions over the settings of the tabular network, and what it finds of each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from functions.training.errors import TrainingDataError
from functions.training.params import TabularParams

_OF_THE_DATA = {
    "task",
    "bins",
    "min_category_rows",
    "max_categories",
    "split",
    "valid_fraction",
    "rows_in",
    "seed",
}


class Trial(BaseModel):
    """One setting and how far it came. valid_loss: its best; NaN if it failed before the first epoch ended."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    run_id: str
    params: TabularParams
    valid_loss: float
    epochs: int
    failed: bool
    error: str = ""


class Choice(BaseModel):
    """One of several values, each as likely."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    choices: list[Any] = Field(min_length=1)

    def draw(self, generator: np.random.Generator) -> Any:
        """One value."""
        return self.choices[int(generator.integers(len(self.choices)))]


class Range(BaseModel):
    """A number between two bounds; with `log`, its logarithm is uniform."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.high or (self.log and self.low <= 0):
            raise ValueError(
                f"low={self.low} must be at most high={self.high}, and above 0 with log={self.log}"
            )
        return self

    def draw(self, generator: np.random.Generator) -> float:
        """One value."""
        if self.log:
            return math.exp(generator.uniform(math.log(self.low), math.log(self.high)))
        return float(generator.uniform(self.low, self.high))


Space = dict[str, Choice | Range]

DEFAULT_SPACE: Space = {
    "lr": Range(low=1e-3, high=8e-3, log=True),
    "dropout": Choice(choices=[0.1, 0.2, 0.3, 0.4]),
    "hidden": Choice(choices=[(64, 32), (128, 64), (256, 128)]),
    "embedding_dim": Choice(choices=[4, 8]),
    "weight_decay": Range(low=5e-3, high=2e-1, log=True),
}


def draw_points(
    space: Mapping[str, Choice | Range], base: TabularParams, count: int, seed: int
) -> list[TabularParams]:
    """The settings to try: `base`, then `count - 1` draws from `space`.

    Raises: TrainingDataError if the space names what is no parameter of the network or its training, or a draw is not
    allowed.
    """
    unknown = sorted(name for name in space if name not in TabularParams.model_fields or name in _OF_THE_DATA)
    if unknown or count < 1:
        allowed = sorted(set(TabularParams.model_fields) - _OF_THE_DATA)
        raise TrainingDataError(
            f"num_samples={count} with a space over {sorted(space)}: want at least one trial, and {unknown} cannot be "
            f"tuned; choose from {allowed}"
        )
    generator = np.random.default_rng(seed)
    points = [base]
    try:
        for _ in range(count - 1):
            drawn = {name: source.draw(generator) for name, source in space.items()}
            points.append(TabularParams.model_validate(base.model_dump() | drawn))
    except (ValidationError, ValueError) as error:
        raise TrainingDataError(f"the space draws a setting that is not allowed: {error}") from error
    return points
