"""Shapes of a load over time: how many requests a second are due at each moment, and the moments drawn from that.

Arrivals are a Poisson process, as of many callers who do not know of each other. Several processes each draw a share of the
rate; their sum is the whole process, without a word between them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Ramp", "Shape", "Spike", "Steady", "Steps", "Wave", "arrivals"]

Times = npt.NDArray[np.float64]
_Rate = Annotated[float, Field(gt=0, description="requests a second")]
_Seconds = Annotated[float, Field(gt=0)]


class _Shape(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Steady(_Shape):
    """Load of one rate all the time."""

    kind: Literal["steady"] = "steady"
    rate: _Rate
    seconds: _Seconds

    def rate_at(self, at_s: Times) -> Times:
        """Rates (n,) at moments (n,) in seconds from the start."""
        return np.full_like(at_s, self.rate)


class Ramp(_Shape):
    """Load that grows, or falls, in a straight line from `rate` to `to_rate`."""

    kind: Literal["ramp"]
    rate: _Rate
    to_rate: _Rate
    seconds: _Seconds

    def rate_at(self, at_s: Times) -> Times:
        """Rates (n,) at moments (n,) in seconds from the start."""
        return self.rate + (self.to_rate - self.rate) * np.clip(at_s / self.seconds, 0, 1)


class Steps(_Shape):
    """Load in equal steps from `rate` to `to_rate`, `steps` of them, each as long as the others."""

    kind: Literal["steps"]
    rate: _Rate
    to_rate: _Rate
    steps: int = Field(ge=2)
    seconds: _Seconds

    def rate_at(self, at_s: Times) -> Times:
        """Rates (n,) at moments (n,) in seconds from the start."""
        step = np.clip(np.floor(at_s / self.seconds * self.steps), 0, self.steps - 1)
        return self.rate + (self.to_rate - self.rate) * step / (self.steps - 1)


class Spike(_Shape):
    """Load of `rate` that jumps to `to_rate` at `at_s`, for `for_s` seconds, and back."""

    kind: Literal["spike"]
    rate: _Rate
    to_rate: _Rate
    at_s: _Seconds
    for_s: _Seconds
    seconds: _Seconds

    def rate_at(self, at_s: Times) -> Times:
        """Rates (n,) at moments (n,) in seconds from the start."""
        inside = (at_s >= self.at_s) & (at_s < self.at_s + self.for_s)
        return np.where(inside, self.to_rate, self.rate)


class Wave(_Shape):
    """Load between `rate` and `to_rate` like the hours of a day, a day being `period_s`: the shape of a soak."""

    kind: Literal["wave"]
    rate: _Rate
    to_rate: _Rate
    period_s: _Seconds
    seconds: _Seconds

    def rate_at(self, at_s: Times) -> Times:
        """Rates (n,) at moments (n,) in seconds from the start."""
        height = (1 - np.cos(2 * np.pi * np.maximum(at_s, 0) / self.period_s)) / 2
        return self.rate + (self.to_rate - self.rate) * height


Shape = Annotated[Steady | Ramp | Steps | Spike | Wave, Field(discriminator="kind")]
AnyShape = Steady | Ramp | Steps | Spike | Wave


def arrivals(shape: AnyShape, *, warm_up_s: float, share: float, rng: np.random.Generator) -> Iterator[float]:
    """Draw the moments at which a request is due, in seconds from the start; those of the warm-up are negative.

    The warm-up has the rate of the start. share: of the rate that this caller sends. Drawn second by second, so that a load of
    hours takes no more memory than one of seconds.
    Source: thinning, Lewis and Shedler, Simulation of nonhomogeneous Poisson processes, 1979.
    """
    begin = -warm_up_s
    while begin < shape.seconds:
        end = min(begin + 1.0, 0.0 if begin < 0 else shape.seconds)
        most = _peak(shape, begin, end)
        drawn = np.sort(rng.uniform(begin, end, size=rng.poisson(most * share * (end - begin))))
        kept = rng.uniform(size=len(drawn)) * most <= shape.rate_at(drawn)
        yield from drawn[kept].tolist()
        begin = end


def _peak(shape: AnyShape, begin: float, end: float) -> float:
    """Bound the rate within a second: no less than the rate at any moment in it."""
    slack = 1.01  # of a wave or a ramp between two of the moments that are looked at
    most = float(shape.rate_at(np.linspace(begin, end, 101)).max())
    edges = getattr(shape, "to_rate", most) if isinstance(shape, Spike | Steps) else most
    return max(most * slack, edges)
