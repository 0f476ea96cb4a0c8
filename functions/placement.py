"""Where a model is served: in replicas of its own, however many, or in the pool with others."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Placement(BaseModel):
    """Where a model is served.

    pool: beside others in the replicas of the pool, loaded when it is asked for; the rest does not apply then.
    min_replicas, max_replicas: of its own, as many as the requests in flight take; min_replicas=0: none while
    nobody asks, and the first request after that waits for one to start.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pool: bool = False
    min_replicas: int = Field(default=1, ge=0)
    max_replicas: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas={self.min_replicas} is more than max_replicas={self.max_replicas}; raise max_replicas"
            )
        return self
