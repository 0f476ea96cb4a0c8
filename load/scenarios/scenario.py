"""Scenarios of load and what must hold under them, as a file in TOML says both."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from toque.load.scenarios.shape import Shape, Steady

__all__ = ["Ask", "Objectives", "Scenario", "Slo"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


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
    client: the native one, or locust. as_users: do not mark the requests as a load test, so that monitors, rollouts and
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
    client: Literal["native", "locust"] = "native"
    abort_after_s: float | None = Field(default=None, gt=0)
    as_users: bool = False
    seed: int = 7


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
