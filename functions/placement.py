"""Where a model is served: in replicas of its own, its versions in some of their own, or in the pool with others."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Placement(BaseModel):
    """Where a model is served.

    pool: beside others in the replicas of the pool, loaded when it is asked for; the rest does not apply then.
    min_replicas, max_replicas: of its own, as many as the requests in flight take; min_replicas=0: none while
    nobody asks, and the first request after that waits for one to start. target_latency_ms: as many, too, as it takes for
    95 % of the answers to take less.
    dedicated: each live version in replicas of its own, so many of them, each with `num_cpus` and `num_gpus` to
    itself; one replica beside them is the door to all versions and keeps no model.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pool: bool = False
    dedicated: bool = False
    min_replicas: int = Field(default=1, ge=0)
    max_replicas: int = Field(default=1, ge=1)
    target_latency_ms: float | None = Field(default=None, gt=0)
    num_cpus: float = Field(default=0.0, ge=0)
    num_gpus: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas={self.min_replicas} is more than max_replicas={self.max_replicas}; raise max_replicas"
            )
        if self.target_latency_ms is not None and self.min_replicas == self.max_replicas:
            raise ValueError(
                f"target_latency_ms={self.target_latency_ms:g} for always {self.max_replicas} replicas: nothing is scaled; "
                "raise max_replicas, or leave it out"
            )
        if self.pool and self.dedicated:
            raise ValueError("pool=True and dedicated=True exclude each other; leave one of them out")
        for name in ("num_cpus", "num_gpus"):
            value = getattr(self, name)
            if value and not self.dedicated:
                raise ValueError(
                    f"{name}={value:g} is for each replica of a dedicated version; add dedicated=True or leave it out"
                )
        return self
