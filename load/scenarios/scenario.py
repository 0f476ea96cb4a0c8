"""Scenarios of load and what must hold under them, as a file in TOML says both.

Arrivals are a Poisson process, as of many callers who do not know of each other. Several processes each draw a share of the
shape's rate; their sum is the whole process, without a word between them.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

Times = npt.NDArray[np.float64]
_Rate = Annotated[float, Field(gt=0, description="requests a second")]
_Seconds = Annotated[float, Field(gt=0)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Shape(_Part):
    rate: _Rate
    seconds: _Seconds


class _Changing(_Shape):
    to_rate: _Rate


class Steady(_Shape):
    """Load of one rate all the time."""

    kind: Literal["steady"] = "steady"

    def rate_at(self, at_s: Times) -> Times:
        """Rates (n,) at moments (n,) in seconds from the start."""
        return np.full_like(at_s, self.rate)


class Ramp(_Changing):
    """Load that grows, or falls, in a straight line from `rate` to `to_rate`."""

    kind: Literal["ramp"]

    def rate_at(self, at_s: Times) -> Times:
        """Rates (n,) at moments (n,) in seconds from the start."""
        return self.rate + (self.to_rate - self.rate) * np.clip(at_s / self.seconds, 0, 1)


class Steps(_Changing):
    """Load in equal steps from `rate` to `to_rate`, `steps` of them, each as long as the others."""

    kind: Literal["steps"]
    steps: int = Field(ge=2)

    def rate_at(self, at_s: Times) -> Times:
        """Rates (n,) at moments (n,) in seconds from the start."""
        step = np.clip(np.floor(at_s / self.seconds * self.steps), 0, self.steps - 1)
        return self.rate + (self.to_rate - self.rate) * step / (self.steps - 1)


class Spike(_Changing):
    """Load of `rate` that jumps to `to_rate` at `at_s`, for `for_s` seconds, and back."""

    kind: Literal["spike"]
    at_s: _Seconds
    for_s: _Seconds

    def rate_at(self, at_s: Times) -> Times:
        """Rates (n,) at moments (n,) in seconds from the start."""
        inside = (at_s >= self.at_s) & (at_s < self.at_s + self.for_s)
        return np.where(inside, self.to_rate, self.rate)


class Wave(_Changing):
    """Load between `rate` and `to_rate` like the hours of a day, a day being `period_s`: the shape of a soak."""

    kind: Literal["wave"]
    period_s: _Seconds

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


class Objectives(_Part):
    """Objectives of a run; one that is left out is not checked. At least one request is always needed.

    error_share: of the requests that were due, failed or dropped ones. requests_per_s: good answers at least.
    """

    p50_ms: float | None = Field(default=None, gt=0)
    p99_ms: float | None = Field(default=None, gt=0)
    error_share: float | None = Field(default=None, ge=0, le=1)
    requests_per_s: float | None = Field(default=None, gt=0)


class Ask(_Part):
    """Part of a mix of requests: which model, with how many rows, and how often beside the others.

    model: empty for the one that the command names. keys: file of rows for requests by key (JSON lines), relative to where
    one stands; tensors are sent without it. weight: share of the requests, relative to the other parts.
    """

    model: str = ""
    workspace: str = ""
    rows: int = Field(default=1, ge=1)
    keys: Path | None = None
    weight: float = Field(default=1.0, gt=0)


class Scenario(_Part):
    """Load of a run, and its objectives.

    warm_up_s: before the shape begins, at its first rate, and not counted. connections: of each process, so many requests in
    flight at most. patience_s: an arrival that found no free connection for so long is dropped. timeout_s: of a request.
    as_users: do not mark the requests as a load test, so that monitors, rollouts and
    retraining take them for those of users. abort_after_s: end the run when the objectives did not hold for so long.
    """

    shape: Shape = Steady(rate=40, seconds=30)
    mix: tuple[Ask, ...] = Field(default=(Ask(),), min_length=1)
    objectives: Objectives = Objectives()
    warm_up_s: float = Field(default=5.0, ge=0)
    processes: int = Field(default=1, ge=1)
    connections: int = Field(default=64, ge=1, le=900)
    patience_s: float = Field(default=1.0, gt=0)
    timeout_s: float = Field(default=10.0, gt=0)
    abort_after_s: float | None = Field(default=None, gt=0)
    as_users: bool = False
    seed: int = 7

    @model_validator(mode="before")
    @classmethod
    def _without_client(cls, document: Any) -> Any:
        """Leave out the client that scenarios of before named; locust sends them all."""
        return (
            {name: value for name, value in document.items() if name != "client"}
            if isinstance(document, dict)
            else document
        )


class Slo(_Part):
    """Scenarios by name, as the file `slo.toml` holds them."""

    scenarios: dict[str, Scenario] = Field(min_length=1)

    @model_validator(mode="after")
    def _named(self) -> Self:
        bad = [name for name in self.scenarios if not name.replace("-", "").isalnum()]
        if bad:
            raise ValueError(f"scenario {bad[0]!r}: use letters, digits and hyphens in its name")
        return self

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read scenarios from a TOML file. Raises: ValueError naming the field, FileNotFoundError."""
        return cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))

    def pick(self, name: str | None) -> tuple[str, Scenario]:
        """Pick a scenario by name, by default the first of the file. Raises: ValueError if there is none of the name."""
        chosen = name or next(iter(self.scenarios))
        if chosen not in self.scenarios:
            raise ValueError(f"no scenario {chosen!r}; there are {', '.join(self.scenarios)}")
        return chosen, self.scenarios[chosen]
